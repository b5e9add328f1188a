"""Plain cells on the weights of `torch.nn`'s recurrent layers: one pointwise function each, and one loop for all."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt.nn.cudnn import run_cudnn, suits_cudnn
from fptt.nn.native import SHORTEST_COMPILED, run_native, suits_native

CellState = tuple[Tensor, ...]
"""The tensors of one layer's state, (B, H) each; the first is its output."""

Gates = Sequence[Tensor]
"""The gates before their nonlinearities, (B, H) each."""

Cell = Callable[[Gates, Gates, CellState], CellState]
"""(gates from the input, gates from the hidden state, state) -> state."""


def lstm_cell(from_input: Gates, from_hidden: Gates, state: CellState) -> CellState:
    """c⁺ = σ(f) c + σ(i) tanh(g),  h⁺ = σ(o) tanh(c⁺)  (Hochreiter & Schmidhuber 1997; gates i, f, g, o)."""
    i, f, g, o = (x + h for x, h in zip(from_input, from_hidden, strict=True))
    memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def gru_cell(from_input: Gates, from_hidden: Gates, state: CellState) -> CellState:
    """h⁺ = (1 − z) tanh(n_x + r n_h) + z h  (Cho et al. 2014, in the variant of cuDNN; gates r, z, n)."""
    input_r, input_z, input_n = from_input
    hidden_r, hidden_z, hidden_n = from_hidden
    r, z = (input_r + hidden_r).sigmoid(), (input_z + hidden_z).sigmoid()
    candidate = (input_n + r * hidden_n).tanh()
    return (candidate + z * (state[0] - candidate),)  # one product less than (1 − z) n + z h


def rnn_cell(from_input: Gates, from_hidden: Gates, state: CellState) -> CellState:  # noqa: ARG001
    """h⁺ = tanh(x + h)  (Elman 1990)."""
    return ((from_input[0] + from_hidden[0]).tanh(),)


CELLS: dict[type[nn.RNNBase], tuple[Cell, int]] = {
    nn.LSTM: (lstm_cell, 4),
    nn.GRU: (gru_cell, 3),
    nn.RNN: (rnn_cell, 1),
}
"""The cell of each layer, and how many gates it has."""


def run_plain(
    rnn: nn.RNNBase, inputs: Tensor, states: Sequence[Tensor], *, may_fuse: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Run a `torch.nn` recurrent layer by its plain cell, step by step, or all steps by one operator where it may.

    Args:
        rnn: The holder of the weights, of one direction.
        inputs: (T, B, D).
        states: The tensors of the state, (num_layers, B, H) each.
        may_fuse: Whether `fused_operator` may run all steps of a layer at once, where there is one.

    Returns:
        Outputs, (T, B, H), and the tensors of the last state. Between layers, dropout draws its own random numbers:
        another stream than that of the fused kernel.
    """
    finals: list[CellState] = []
    for layer in range(rnn.num_layers):
        if layer:
            # on the outputs of all layers but the last, as torch.nn has it
            inputs = functional.dropout(inputs, rnn.dropout, rnn.training)
        run = RUNS[fused_operator(rnn, inputs) if may_fuse else None]
        inputs, final = run(rnn, layer, inputs, tuple(state[layer] for state in states))
        finals.append(final)
    return inputs, [torch.stack(tensors) for tensors in zip(*finals, strict=True)]


def fused_operator(rnn: nn.RNNBase, inputs: Tensor) -> Literal["cudnn", "native"] | None:
    """Return the operator that a compiled step should call for all time steps of a layer on inputs, (T, B, D)."""
    if suits_cudnn(inputs):
        return "cudnn"
    return "native" if len(inputs) >= SHORTEST_COMPILED and suits_native(rnn, inputs) else None


def run_layers(rnn: nn.RNNBase, inputs: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run a `torch.nn` recurrent layer by machine code of our own, for eager training; arguments as for `run_plain`."""
    finals: list[CellState] = []
    for layer in range(rnn.num_layers):
        if layer:
            inputs = functional.dropout(inputs, rnn.dropout, rnn.training)
        state = tuple(state[layer] for state in states)
        inputs, final = run_native(inputs, _weights(rnn, layer), state, CELLS[type(rnn)][1])
        finals.append(final)
    return inputs, [torch.stack(tensors) for tensors in zip(*finals, strict=True)]


def _weights(rnn: nn.RNNBase, layer: int) -> list[Tensor]:
    return [getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _run_cudnn(rnn: nn.RNNBase, layer: int, inputs: Tensor, state: CellState) -> tuple[Tensor, CellState]:
    return run_cudnn(inputs, _weights(rnn, layer), state, CELLS[type(rnn)][1])


def _run_native(rnn: nn.RNNBase, layer: int, inputs: Tensor, state: CellState) -> tuple[Tensor, CellState]:
    return run_native(inputs, _weights(rnn, layer), state, CELLS[type(rnn)][1], as_operator=True)


def _run_layer(rnn: nn.RNNBase, layer: int, inputs: Tensor, state: CellState) -> tuple[Tensor, CellState]:
    cell, num_gates = CELLS[type(rnn)]
    weight_ih, weight_hh, bias_ih, bias_hh = _weights(rnn, layer)
    biases = bias_hh.chunk(num_gates)
    outputs: list[Tensor] = []
    # the products with the inputs do not wait for the state: one for all steps
    for from_input in _input_gates(inputs, weight_ih, bias_ih):
        # each gate's bias by itself: as one matrix, a compiler would copy it under the product
        products = functional.linear(state[0], weight_hh).chunk(num_gates, dim=-1)
        from_hidden = [product + bias for product, bias in zip(products, biases, strict=True)]
        state = cell(from_input.chunk(num_gates, dim=-1), from_hidden, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _input_gates(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return W x + b of all steps, (T, B, G · H); one number a step needs no matrix product."""
    if inputs.shape[-1] == 1:
        return inputs * weight.squeeze(-1) + bias
    return functional.linear(inputs, weight, bias)


RUNS = {"cudnn": _run_cudnn, "native": _run_native, None: _run_layer}
"""What runs one layer, by the operator that does; None for the plain cell."""
