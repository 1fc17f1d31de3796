"""Provide what all packages use: random numbers, text formats, progress, file ownership."""
