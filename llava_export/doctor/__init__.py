"""What ``llava doctor`` finds in checkpoints and packages."""
