"""Map images to rows, order and augment them, and load them as batches by DALI."""
