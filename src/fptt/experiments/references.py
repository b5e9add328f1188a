"""Figures of others, beside which ours are shown; where they come from stands with each."""

from fptt.experiments.results import Reference
