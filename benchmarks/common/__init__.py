"""Share what several benchmarks use: timing, memory, rates, images, features, baselines, ranks."""
