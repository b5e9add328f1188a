"""The states of the recurrent models."""

from typing import NamedTuple

from torch import Tensor


class LSTMState(NamedTuple):
    """Output and memory of an LSTM, each (num_layers, B, H)."""

    h: Tensor
    c: Tensor
