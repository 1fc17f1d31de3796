"""One self-contained HTML page a run: what it did, what it learned, what became of it."""
