"""Define the verbs of `and-dist`, one module each."""
