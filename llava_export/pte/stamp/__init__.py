"""Lowering that costs the same for any number of layers: one layer is lowered and copied."""
