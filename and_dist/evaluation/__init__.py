"""Measure what an encoder has learned, by labels that training never sees."""
