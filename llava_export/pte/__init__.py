"""The product for ExecuTorch: from a checkpoint to a package, and a package read and verified."""
