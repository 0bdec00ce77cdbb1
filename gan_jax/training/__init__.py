"""A run in training: the loop, what it writes and how it is scored."""
