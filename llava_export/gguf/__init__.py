"""The product for llama.cpp: from a checkpoint to GGUF files, and those verified."""
