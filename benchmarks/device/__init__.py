"""Hold checks and benchmarks that are sized for a few minutes on one GPU."""
