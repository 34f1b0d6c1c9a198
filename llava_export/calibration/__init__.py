"""Calibration: what inputs a set of samples gives a decoder, weights that fit them, and what each linear loses."""
