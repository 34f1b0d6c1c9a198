"""Calibration: quantizes a decoder for the inputs that a set of samples gives each of its layers."""
