"""Writers behind `scripts/prepare_datasets.py`: unpacked archives, TFDS, caches."""
