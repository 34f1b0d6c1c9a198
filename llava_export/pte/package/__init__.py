"""The files of a package beside its program: manifest, tokenizer, sample image."""
