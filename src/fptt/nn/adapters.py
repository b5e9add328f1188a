"""Adapters that make a user's own layer or cell speak `(inputs, state) -> (outputs, state)`."""

from typing import Any

import torch
from torch import Tensor, nn

from fptt._sequence import State, flatten_state, initial_state, model_attribute, state_batch_dim


class Recurrent(nn.Module):
    """A recurrent layer of your own, `(inputs, state) -> (hidden, state)`, with a read-out behind it.

    Args:
        rnn: Such as `torch.nn.GRU`, or any module that takes a state (or None) and returns one.
        readout: Module on the hidden outputs; None leaves them as they are.

    Raises:
        TypeError: If `rnn` is a cell of torch, which `Unroll` makes a layer.

    Examples:
        >>> model = fptt.nn.Recurrent(nn.GRU(3, 5), nn.Linear(5, 2))
        >>> tuple(model(torch.randn(7, 4, 3))[0].shape)
        (7, 4, 2)
    """

    def __init__(self, rnn: nn.Module, readout: nn.Module | None = None) -> None:
        super().__init__()
        if isinstance(rnn, nn.RNNCellBase):
            raise TypeError(
                "rnn must be a layer, (inputs, state) -> (hidden, state), got the cell "
                f"{type(rnn).__name__}: wrap it in fptt.nn.Unroll."
            )
        self.rnn = rnn
        self.readout = nn.Identity() if readout is None else readout

    @property
    def batch_first(self) -> bool:
        """Whether the layer takes (B, T, …)."""
        return bool(model_attribute(self.rnn, "batch_first", False))

    @property
    def state_batch_dim(self) -> int:
        """Which dimension of every tensor of the state is the batch: that of the layer, -2 if it does not say."""
        return state_batch_dim(self.rnn)

    @state_batch_dim.setter
    def state_batch_dim(self, dim: int) -> None:
        self.rnn.state_batch_dim = dim  # pyright: ignore[reportArgumentType]  # no tensor and no module

    def forward(self, inputs: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Return outputs and next state."""
        hidden, state = self.rnn(inputs, state)
        return self.readout(hidden), state

    def initial_state(self, inputs: Tensor) -> State:
        """Return where sequences begin, by the layer's own `initial_state(inputs)`; None, for zeros, without one."""
        return initial_state(self.rnn, inputs)


class Unroll(nn.Module):
    """A cell of your own, `(input, state) -> state`, run over time; its output is the first tensor of its state.

    Args:
        cell: Such as `torch.nn.LSTMCell`, or any module that takes an input (B, D) and a state (or None) and returns
            the next state, any nest of tensors.

    Raises:
        TypeError: If `cell` has a layout, `batch_first`, and so is a layer, of whole sequences.

    Examples:
        >>> model = fptt.nn.Recurrent(fptt.nn.Unroll(nn.LSTMCell(3, 5)), nn.Linear(5, 2))
        >>> tuple(model(torch.randn(7, 4, 3))[0].shape)
        (7, 4, 2)
    """

    batch_first = False

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        if model_attribute(cell, "batch_first", None) is not None:  # one time step has no such thing
            raise TypeError(
                "cell must be a cell, (input, state) -> state, got the layer "
                f"{type(cell).__name__}: give it to fptt.nn.Recurrent as it is."
            )
        self.cell = cell

    @property
    def state_batch_dim(self) -> int:
        """Which dimension of every tensor of the state is the batch: that of the cell, -2 if it does not say."""
        return state_batch_dim(self.cell)

    @state_batch_dim.setter
    def state_batch_dim(self, dim: int) -> None:
        self.cell.state_batch_dim = dim  # pyright: ignore[reportArgumentType]  # no tensor and no module

    def forward(self, inputs: Tensor, state: State = None) -> tuple[Tensor, Any]:
        """Return the outputs of all steps, (T, B, H), and the last state."""
        outputs: list[Tensor] = []
        for step in inputs:
            state = self.cell(step, state)
            # h of an LSTMCell's (h, c), and the state itself of a GRUCell
            outputs.append(flatten_state(state)[0])
        return torch.stack(outputs), state

    def initial_state(self, inputs: Tensor) -> State:
        """Return where sequences begin, by the cell's own `initial_state(input)`; None, for zeros, without one."""
        return initial_state(self.cell, inputs[0])
