"""Submit a config as a job on many nodes, and follow it until it ends: `and-launch`.

A login node needs neither torch nor faiss nor DALI for it.
"""
