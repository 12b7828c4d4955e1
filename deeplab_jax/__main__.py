"""Runs `python -m deeplab_jax VERB ...`."""

from deeplab_jax import cli

if __name__ == "__main__":
    cli.main()
