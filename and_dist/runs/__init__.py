"""Keep and show what a run leaves behind."""
