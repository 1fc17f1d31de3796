"""Submit jobs to SLURM, ask for their state, and decide on its nodes whether they go on."""
