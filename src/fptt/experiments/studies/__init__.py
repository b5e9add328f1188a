"""Many runs: comparisons, ablations, tables and the results page."""
