"""Costs of training: time (`fptt bench speed`) and memory (`fptt bench memory`)."""
