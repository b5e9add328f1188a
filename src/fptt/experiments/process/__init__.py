"""This process: console, signals, rank, machine, files."""
