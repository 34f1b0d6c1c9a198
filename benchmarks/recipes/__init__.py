"""Measures recipes on a real language model and writes docs/RECIPES.md: ``python -m benchmarks.recipes --help``.

What measures imports neither ExecuTorch nor what shows things, so that it runs on a machine with torch and a GPU.
"""
