"""The arithmetic of quantizing: from the weight of a linear or an embedding to integers and scales."""
