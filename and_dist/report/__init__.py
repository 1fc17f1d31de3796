"""Report on runs: one self-contained HTML page for a run, and tables that compare runs."""
