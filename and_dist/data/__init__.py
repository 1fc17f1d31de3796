"""Images: which row is which, in which order, how each is cut, and DALI that does it."""
