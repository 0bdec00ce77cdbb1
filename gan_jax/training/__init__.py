"""A run: the loop, its checkpoints, its folder and what it writes."""
