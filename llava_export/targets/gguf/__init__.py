"""GGUF: the files that llama.cpp reads, one of the language model and one of vision encoder and projector."""
