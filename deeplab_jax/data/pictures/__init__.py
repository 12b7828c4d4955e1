"""Photographs beyond 8 bits, TIFF's own forms, and pictures read by windows."""
