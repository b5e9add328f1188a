"""What the names of a setting stand for, once for all that have such settings."""

import fptt

CELLS: dict[str, type[fptt.nn.LSTM] | type[fptt.nn.GRU]] = {
    "lstm": fptt.nn.LSTM,
    "gru": fptt.nn.GRU,
    "rnn": fptt.nn.RNN,  # a GRU of another cell
}

OF_FPTT = ("alpha", "beta", "form", "coupling", "mu", "previous_gradient", "num_duals")
"""Settings of `fptt.FPTT` that the other methods do not have."""
