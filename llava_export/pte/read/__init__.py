"""What is inside a program, read from its file alone."""
