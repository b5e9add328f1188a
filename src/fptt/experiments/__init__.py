"""The command line: tasks, training, evaluation and comparison of BPTT, TBPTT and FPTT."""

from fptt.experiments.run_loading import load_run as load_run
