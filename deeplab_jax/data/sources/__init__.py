"""Where samples are read: files of a folder, TFDS, or a cache of decoded samples."""
