"""Connect the ranks of a run."""
