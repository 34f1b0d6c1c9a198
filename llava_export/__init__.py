"""LLaVA-family checkpoints become packages for ExecuTorch and GGUF files for llama.cpp, which can be verified."""
