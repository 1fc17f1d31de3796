"""Plan a job before it is submitted: its memory, traffic and time, without torch."""
