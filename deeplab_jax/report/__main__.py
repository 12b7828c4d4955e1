"""Runs `python -m deeplab_jax.report`."""

from deeplab_jax import cli
from deeplab_jax.report import main

cli.run(main)
