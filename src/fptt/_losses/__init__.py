"""Losses of a chunk."""
