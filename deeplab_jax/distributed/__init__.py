"""Devices and hosts of one run: the mesh, the start of processes, and their collectives."""
