"""Online learning: steps that come one by one."""
