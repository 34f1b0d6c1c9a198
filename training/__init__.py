"""What trains the built-in models: rendered scenes, questions about them, and two stages of learning."""
