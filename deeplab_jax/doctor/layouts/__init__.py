"""Guesses where the images and masks of a folder lie, as fields of `config.data`.

The official layouts are known by their inner folders (`official`). All others are found by content:
folders whose pictures pair by name (`naming`, `matches`), of which one has a name usual for masks
(`words`) or looks so (`contents`). Matches of one shape are one data set (`shapes`); what is not
used is told (`choose`, `unused`, `per_class`).
"""

from deeplab_jax.doctor.layouts.guess import GuessedLayout, guess

__all__ = ["GuessedLayout", "guess"]
