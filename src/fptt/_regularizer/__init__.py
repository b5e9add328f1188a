"""The dynamic regularizer of FPTT."""
