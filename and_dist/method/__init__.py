"""Compute Anchor Neighbourhood Discovery, equation by equation."""
