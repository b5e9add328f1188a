"""Plain cells on the weights of `torch.nn`'s recurrent layers: one pointwise function each, and one loop for all."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt.nn.cudnn import run_cudnn, suits_cudnn
from fptt.nn.native import run_native, suits_compiled, suits_native

CellState = tuple[Tensor, ...]
"""The tensors of one layer's state, (B, H) each; the first is its output."""

Gates = Sequence[Tensor]
"""The gates before their nonlinearities, (B, H) each."""

Cell = Callable[[Gates, Gates, CellState], CellState]
"""(gates from the input, gates from the hidden state, state) -> state."""

RunLayer = Callable[[Tensor, Sequence[Tensor], CellState, int], tuple[Tensor, CellState]]
"""(inputs, weights and biases of a layer, state, number of gates) -> outputs, state."""

# private, and thus perhaps absent from another torch
transforms_are_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
"""Whether a transform of `torch.func` runs this, which sees operations of torch alone."""


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


CELLS: dict[str, tuple[Cell, int]] = {"LSTM": (lstm_cell, 4), "GRU": (gru_cell, 3), "RNN_TANH": (rnn_cell, 1)}
"""The cell of each layer, by the name that `torch.nn` gives it, and how many gates it has."""


def kernel_in_step(rnn: nn.RNNBase, inputs: Tensor) -> Literal["cudnn", "native", "plain"]:
    """Return which of `KERNELS_IN_STEP` is the fastest for a `torch.nn` recurrent layer on inputs, (T, B, D)."""
    if suits_cudnn(inputs):
        return "cudnn"
    return "native" if suits_compiled(inputs) and suits_native(rnn, inputs) else "plain"


def run_layers(rnn: nn.RNNBase, inputs: Tensor, states: Sequence[Tensor], run: RunLayer) -> tuple[Tensor, list[Tensor]]:
    """Run the layers of a `torch.nn` recurrent layer, one after the other.

    Args:
        rnn: The holder of the weights, of one direction.
        inputs: (T, B, D).
        states: The tensors of the state, (num_layers, B, H) each.
        run: What runs one of them.

    Returns:
        Outputs, (T, B, H), and the tensors of the last state. Between layers, dropout draws its own random numbers:
        another stream than that of `torch.nn`.
    """
    finals: list[CellState] = []
    for layer in range(rnn.num_layers):
        if layer:
            # on the outputs of all layers but the last, as torch.nn has it
            inputs = functional.dropout(inputs, rnn.dropout, rnn.training)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(rnn, f"{name}_l{layer}") for name in names]
        inputs, final = run(inputs, weights, tuple(state[layer] for state in states), CELLS[rnn.mode][1])
        finals.append(final)
    return inputs, [torch.stack(tensors) for tensors in zip(*finals, strict=True)]


def run_steps(inputs: Tensor, weights: Sequence[Tensor], state: CellState, num_gates: int) -> tuple[Tensor, CellState]:
    """Run one layer by its plain cell, step by step; see `run_native` for the arguments."""
    (cell,) = (cell for cell, gates in CELLS.values() if gates == num_gates)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
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


KERNELS: dict[str, RunLayer] = {"native": run_native, "plain": run_steps}
"""What runs a layer in the place of `torch.nn`."""

KERNELS_IN_STEP: dict[str, RunLayer] = {
    "cudnn": run_cudnn,
    "native": partial(run_native, as_operator=True),
    "plain": run_steps,
}
"""What runs a layer inside a compiled step: step by step, or as one operator for all steps."""
