"""Run one node's share of a job: torchrun, its ranks and their exit codes."""
