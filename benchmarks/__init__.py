"""Measure the project and the programs it is compared with, in the same process run."""
