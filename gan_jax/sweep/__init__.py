"""Sweeps: many runs that differ in a few config keys, those that one program can train together as populations."""
