"""The product for llama.cpp: GGUF files are written from a checkpoint, and verified."""
