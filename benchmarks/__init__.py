"""Measures what the documentation says, and compares with other pipelines and runners."""
