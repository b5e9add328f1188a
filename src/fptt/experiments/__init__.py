"""The command line: tasks, training, evaluation and comparison of BPTT, TBPTT and FPTT."""
