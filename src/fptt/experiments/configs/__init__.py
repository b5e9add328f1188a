"""Settings of runs and recipes."""
