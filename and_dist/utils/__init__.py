"""Hold code that every package may use: random numbers, formats, progress, file ownership."""
