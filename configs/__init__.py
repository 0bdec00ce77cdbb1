"""Configs: `base` holds every key with its default, each other file states its differences."""
