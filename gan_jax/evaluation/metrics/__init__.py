"""The scores, as functions of arrays."""
