"""Where the gates of a recurrent layer begin: how long each unit remembers before anything is learned."""

import torch
from torch import Tensor, nn


def add_forget_bias(rnn: nn.RNNBase, forget_bias: float) -> None:
    """Add to the forget gates' biases of all layers (Gers, Schmidhuber & Cummins 2000)."""
    if forget_bias and not isinstance(rnn, nn.LSTM):
        raise ValueError(f"forget_bias belongs to the LSTM, got {forget_bias} for a {type(rnn).__name__}.")
    for layer in range(rnn.num_layers if forget_bias else 0):
        _gate(rnn, f"bias_ih_l{layer}", 1).add_(forget_bias)


def init_chrono(rnn: nn.RNNBase, longest: int) -> None:
    """Let the units of all layers remember for up to `longest` steps (Tallec & Ollivier 2018).

    LSTM: b_f ~ log U(1, T − 1), b_i = −b_f. GRU: b_z ~ log U(1, T − 1), for z here is what is kept.
    """
    if not isinstance(rnn, nn.LSTM | nn.GRU):
        raise ValueError(f"chrono_init belongs to LSTM and GRU, got {longest} for a {type(rnn).__name__}.")
    if longest < 2:
        raise ValueError(f"chrono_init must be at least 2, got {longest}.")
    for layer in range(rnn.num_layers):
        keeps = torch.empty(rnn.hidden_size).uniform_(1, longest - 1).log_()
        _set_bias(rnn, layer, 1, keeps)
        if isinstance(rnn, nn.LSTM):
            _set_bias(rnn, layer, 0, -keeps)


def _set_bias(rnn: nn.RNNBase, layer: int, gate: int, value: Tensor) -> None:
    """Set what the two biases of a gate add up to."""
    _gate(rnn, f"bias_ih_l{layer}", gate).copy_(value)
    _gate(rnn, f"bias_hh_l{layer}", gate).zero_()


def _gate(rnn: nn.RNNBase, name: str, number: int) -> Tensor:
    return rnn.get_parameter(name).detach().split(rnn.hidden_size)[number]
