"""Plain cells on the weights of `torch.nn`'s recurrent layers: one pointwise function each, and one loop for all."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CellState = tuple[Tensor, ...]
"""The tensors of one layer's state, (B, H) each; the first is its output."""

Cell = Callable[[Tensor, Tensor, CellState], CellState]
"""(input gates, hidden gates, state) -> state, with gates (B, G · H) before their nonlinearities."""


def lstm_cell(input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> CellState:
    """c⁺ = σ(f) c + σ(i) tanh(g),  h⁺ = σ(o) tanh(c⁺)  (Hochreiter & Schmidhuber 1997; gates i, f, g, o)."""
    i, f, g, o = (input_gates + hidden_gates).chunk(4, dim=-1)
    memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def gru_cell(input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> CellState:
    """h⁺ = (1 − z) tanh(n_x + r n_h) + z h  (Cho et al. 2014, in the variant of cuDNN; gates r, z, n)."""
    input_r, input_z, input_n = input_gates.chunk(3, dim=-1)
    hidden_r, hidden_z, hidden_n = hidden_gates.chunk(3, dim=-1)
    r, z = (input_r + hidden_r).sigmoid(), (input_z + hidden_z).sigmoid()
    candidate = (input_n + r * hidden_n).tanh()
    return (candidate + z * (state[0] - candidate),)


def rnn_cell(input_gates: Tensor, hidden_gates: Tensor, state: CellState) -> CellState:  # noqa: ARG001
    """h⁺ = tanh(x + h)  (Elman 1990)."""
    return ((input_gates + hidden_gates).tanh(),)


CELLS: dict[type[nn.RNNBase], Cell] = {nn.LSTM: lstm_cell, nn.GRU: gru_cell, nn.RNN: rnn_cell}


def run_plain(rnn: nn.RNNBase, inputs: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run a `torch.nn` recurrent layer by its plain cell, step by step.

    Args:
        rnn: The holder of the weights, of one direction.
        inputs: (T, B, D).
        states: The tensors of the state, (num_layers, B, H) each.

    Returns:
        Outputs, (T, B, H), and the tensors of the last state. Between layers, dropout draws its own random numbers:
        another stream than that of the fused kernel.
    """
    finals: list[CellState] = []
    for layer in range(rnn.num_layers):
        if layer:
            inputs = functional.dropout(inputs, rnn.dropout, rnn.training)
        inputs, final = _run_layer(rnn, layer, inputs, tuple(state[layer] for state in states))
        finals.append(final)
    return inputs, [torch.stack(tensors) for tensors in zip(*finals, strict=True)]


def _run_layer(rnn: nn.RNNBase, layer: int, inputs: Tensor, state: CellState) -> tuple[Tensor, CellState]:
    cell = CELLS[type(rnn)]
    weight_ih, weight_hh, bias_ih, bias_hh = (
        getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    outputs: list[Tensor] = []
    for input_gates in functional.linear(inputs, weight_ih, bias_ih):
        state = cell(input_gates, functional.linear(state[0], weight_hh, bias_hh), state)
        outputs.append(state[0])
    return torch.stack(outputs), state
