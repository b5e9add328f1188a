"""One recurrent layer by cuDNN, as an operator that a compiler takes as it is: all time steps in one call.

PyTorch's own layer cannot be traced so: a compiler takes it apart into steps, and its weights must lie where cuDNN
wants them. Here they are one tensor, in cuDNN's order.
"""

# ruff: noqa: PLR0917  # the arguments of an operator are positional

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MODES = {1: 1, 4: 2, 3: 3}
"""cuDNN's number of a cell (tanh, LSTM, GRU), by its number of gates."""

SHORTEST = 4
"""The time steps from which on cuDNN is faster than the steps written out."""


def suits_cudnn(inputs: Tensor) -> bool:
    """Return whether cuDNN should run a layer on these inputs, (T, B, D).

    Not under autocast, which would change the types of what the operator returns, and not with AMD's library.
    """
    if not inputs.is_cuda or torch.version.hip is not None or torch.is_autocast_enabled("cuda"):
        return False
    return len(inputs) >= SHORTEST and torch.backends.cudnn.is_acceptable(inputs)


def run_cudnn(
    inputs: Tensor, weights: Sequence[Tensor], state: Sequence[Tensor], num_gates: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer.

    Args:
        inputs: (T, B, D).
        weights: From the input, (G · H, D), from the hidden state, (G · H, H), and the biases of both, (G · H,).
        state: The tensors of the state, (B, H) each.
        num_gates: G.

    Returns:
        Outputs, (T, B, H), and the last state.
    """
    # cuDNN wants the weights in one block; autograd cuts the gradient of it apart again
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    memory = state[1].unsqueeze(0).contiguous() if len(state) > 1 else None
    hidden, trains = state[0].unsqueeze(0).contiguous(), torch.is_grad_enabled()
    outputs, *final = _layer(inputs.contiguous(), flat, hidden, memory, num_gates, trains)
    return outputs, tuple(tensor.squeeze(0) for tensor in final[: len(state)])


def _split(flat: Tensor, input_size: int, hidden_size: int, num_gates: int) -> list[Tensor]:
    """Return the weights in a flat tensor, as views."""
    rows = num_gates * hidden_size
    shapes = [(rows, input_size), (rows, hidden_size), (rows,), (rows,)]
    parts = flat.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _settings(hidden_size: int, num_gates: int, *, trains: bool = True) -> tuple[Any, ...]:
    """Return the arguments of PyTorch's operators from the mode on: one layer, one direction, no dropout."""
    return (MODES[num_gates], hidden_size, 0, 1, False, 0.0, trains, False, [], None)


@torch.library.custom_op("fptt::cudnn_layer", mutates_args=(), device_types="cuda")
def _layer(
    inputs: Tensor, flat: Tensor, hidden: Tensor, memory: Tensor | None, num_gates: int, trains: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return outputs, the last hidden state and memory, and what cuDNN wants to find again in the backward pass."""
    hidden_size = hidden.shape[-1]
    weights = _split(flat, inputs.shape[-1], hidden_size, num_gates)
    outputs, hidden, last_memory, reserve, _ = torch.ops.aten._cudnn_rnn(
        inputs, weights, len(weights), flat, hidden, memory, *_settings(hidden_size, num_gates, trains=trains)
    )
    # an operator returns tensors, never None
    return outputs, hidden, last_memory if memory is not None else inputs.new_empty(0), reserve


@_layer.register_fake
def _(
    inputs: Tensor,
    flat: Tensor,  # noqa: ARG001
    hidden: Tensor,
    memory: Tensor | None,
    num_gates: int,  # noqa: ARG001
    trains: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = inputs.new_empty(*inputs.shape[:2], hidden.shape[-1])
    last_memory = inputs.new_empty(0) if memory is None else torch.empty_like(memory)
    # only cuDNN knows the size of its reserve; PyTorch's own fake kernel returns an empty one, too
    return outputs, torch.empty_like(hidden), last_memory, inputs.new_empty(0, dtype=torch.uint8)


@torch.library.custom_op("fptt::cudnn_layer_backward", mutates_args=(), device_types="cuda")
def _backward(
    inputs: Tensor,
    flat: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    outputs: Tensor,
    reserve: Tensor,
    to_outputs: Tensor,
    to_hidden: Tensor | None,
    to_memory: Tensor | None,
    num_gates: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to inputs, weights, hidden state and memory."""
    hidden_size = hidden.shape[-1]
    weights = _split(flat, inputs.shape[-1], hidden_size, num_gates)
    from_inputs, from_hidden, from_memory, from_weights = torch.ops.aten._cudnn_rnn_backward(
        inputs,
        weights,
        len(weights),
        flat,
        hidden,
        memory,
        outputs,
        to_outputs,
        to_hidden,
        to_memory,
        *_settings(hidden_size, num_gates),
        reserve.clone(),  # the backward pass writes into it
        [True, True, memory is not None, True],
    )
    from_flat = torch.cat([gradient.reshape(-1) for gradient in from_weights])
    return from_inputs, from_flat, from_hidden, inputs.new_empty(0) if memory is None else from_memory


@_backward.register_fake
def _(
    inputs: Tensor,
    flat: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    outputs: Tensor,  # noqa: ARG001
    reserve: Tensor,  # noqa: ARG001
    to_outputs: Tensor,  # noqa: ARG001
    to_hidden: Tensor | None,  # noqa: ARG001
    to_memory: Tensor | None,  # noqa: ARG001
    num_gates: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from_memory = inputs.new_empty(0) if memory is None else torch.empty_like(memory)
    return torch.empty_like(inputs), torch.empty_like(flat), torch.empty_like(hidden), from_memory


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.num_gates, _ = inputs
    outputs, _, _, reserve = output
    ctx.save_for_backward(*tensors, outputs, reserve)
    ctx.mark_non_differentiable(reserve)  # bytes


def _gradients(ctx: Any, to_outputs: Tensor, to_hidden: Tensor, to_memory: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    inputs, flat, hidden, memory, outputs, reserve = ctx.saved_tensors
    # gradients may come expanded, as that of a sum does; cuDNN reads them as dense memory
    from_inputs, from_flat, from_hidden, from_memory = _backward(
        inputs,
        flat,
        hidden,
        memory,
        outputs,
        reserve,
        to_outputs.contiguous(),
        to_hidden.contiguous(),
        None if memory is None else to_memory.contiguous(),
        ctx.num_gates,
    )
    return from_inputs, from_flat, from_hidden, None if memory is None else from_memory, None, None


_layer.register_autograd(_gradients, setup_context=_remember)
