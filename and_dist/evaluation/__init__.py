"""What a representation is worth, by labels training never saw."""
