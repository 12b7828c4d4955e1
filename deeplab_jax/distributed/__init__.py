"""Devices and hosts of one run: the mesh, joining processes, and what they agree on."""
