"""A server of a checkpoint's predictions, and the page on which people try it.

The extra `[serve]` is imported by `run.py` and what it imports, never by `__main__.py`.
"""
