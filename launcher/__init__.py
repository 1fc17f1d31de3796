"""and-launch: from a config to a job on many nodes, followed until it is done.

A login node needs neither torch nor faiss nor DALI for it.
"""
