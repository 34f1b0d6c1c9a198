"""The files of a package next to its program: manifest, tokenizer, sample image."""
