"""The training methods BPTT, TBPTT and FPTT."""
