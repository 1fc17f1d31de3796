"""Define, load, check and compare configs, without torch."""
