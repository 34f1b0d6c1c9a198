"""The files of a package: golden record, tokenizer, sample image, manifest."""
