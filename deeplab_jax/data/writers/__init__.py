"""What `scripts/prepare_datasets.py` writes: unpacked archives, TFDS, caches."""
