"""From a model's name to its weights: find the folder, open the shards, read one tensor at a time."""
