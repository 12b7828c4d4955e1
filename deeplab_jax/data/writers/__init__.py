"""Writers behind `deeplab prepare`: unpacked archives, TFDS, caches."""
