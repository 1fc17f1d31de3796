"""Build encoders, load weights into them and build their optimiser."""
