"""Engines: executors of the chunks of a batch, eager and compiled."""
