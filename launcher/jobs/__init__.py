"""Hold the request of a job, its folder, its cluster profile and the outcome of its starts."""
