"""Train a run by Algorithm 1."""
