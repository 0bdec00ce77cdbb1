"""Devices and processes: the only room with collectives, meshes and shardings."""
