"""Save and load checkpoints, and export encoders from them."""
