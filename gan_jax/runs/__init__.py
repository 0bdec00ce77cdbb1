"""The folder of a run, its checkpoints, and what is made of them."""
