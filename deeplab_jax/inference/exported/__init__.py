"""Folders that `deeplab export` wrote: what they hold, their runtimes, and `load` of them."""
