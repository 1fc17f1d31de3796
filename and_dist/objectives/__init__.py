"""Define what a run can minimise, one module each."""
