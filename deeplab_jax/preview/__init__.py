"""`deeplab preview`: a page with the first training samples before and after augmentation."""
