"""From a model's name to its weights: find the folder, open the shards, hand out one tensor at a time."""
