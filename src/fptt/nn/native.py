"""A recurrent layer on a processor by machine code of our own (native.cpp): all time steps of a chunk in one call.

For eager training it is an autograd function, for a compiler an operator that is taken as it is. Weights and states are
ordinary tensors, so that it stands where `torch.nn`'s layers stand.
"""

# ruff: noqa: PLR0917  # the arguments of an operator are positional

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fptt.nn.machine_code import load_machine_code

DTYPES = (torch.float32,)
"""Of the weights. It computes in float64 as well, to be tested; training keeps the bits that `torch.nn` gives there."""

MODES = ("LSTM", "GRU", "RNN_TANH")
"""The layers, as `torch.nn` names them."""

HIDDEN_SIZES = range(32, 513)
"""Widths at which it is faster: what a narrower one could win is not worth compiling, wider weights leave the cache."""

LARGEST_INPUTS = 512
"""The widest inputs: their product is taken step by step, with weights from the cache, and not for all at once."""

SHORTEST_COMPILED = {1: 12, 32: 7, 128: 4}
"""The time steps from which on a compiled step calls it instead of writing the steps out, by the sequences of a batch.

A call costs as much as half a dozen steps of one sequence, and a step of a large batch more by itself (docs/log.md).
"""

NUM_SAVED = {1: 0, 3: 4, 4: 5}
"""Numbers a unit and step that the backward pass wants to find, by the cell's gates."""

WIDEST_VECTOR = 32
"""Units that the machine code takes at once, at most."""


def is_usual(rnn: nn.RNNBase) -> bool:
    """Return whether a layer of `torch.nn` has biases, one direction, no projection, and tanh in an `nn.RNN`."""
    return rnn.mode in MODES and rnn.bias and not rnn.bidirectional and not rnn.proj_size


def suits_compiled(inputs: Tensor) -> bool:
    """Return whether a compiled step gains by it on inputs, (T, B, D), of a layer that suits."""
    steps, batch = inputs.shape[:2]
    # the steps first: an exported program is of one, for batches of any size
    return any(steps >= shortest and batch >= least for least, shortest in SHORTEST_COMPILED.items())


def suits_native(rnn: nn.RNNBase, inputs: Tensor) -> bool:
    """Return whether the machine code should run a layer of `torch.nn` on inputs (T, B, D).

    On processors, for usual layers of float32 weights, widths in `HIDDEN_SIZES` and inputs of at most `LARGEST_INPUTS`;
    under autocast to bfloat16 where the processor multiplies in it; and where there is a C++ compiler, for which the
    first layer that suits otherwise has to wait.
    """
    weight = rnn.weight_hh_l0
    has_right_size = rnn.hidden_size in HIDDEN_SIZES and rnn.input_size <= LARGEST_INPUTS and inputs.numel() > 0
    is_here = inputs.device.type == weight.device.type == "cpu" and weight.dtype in DTYPES
    if not has_right_size or not is_usual(rnn) or not is_here:
        return False
    is_rounded = torch.is_autocast_enabled("cpu")
    if is_rounded and (weight.dtype, torch.get_autocast_dtype("cpu")) != (torch.float32, torch.bfloat16):
        return False
    if not is_rounded and inputs.dtype != weight.dtype:
        return False  # an error, which torch.nn is to raise
    library = _library()
    return library is not None and (not is_rounded or bool(library.has_bfloat16()))


def run_native(
    inputs: Tensor,
    weights: Sequence[Tensor],
    state: Sequence[Tensor],
    num_gates: int,
    *,
    as_operator: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer.

    Under autocast the products are in bfloat16, and everything else, outputs and states included, in float32.

    Args:
        inputs: (T, B, D).
        weights: From the input, (G · H, D), from the hidden state, (G · H, H), and the biases of both, (G · H,).
        state: The tensors of the state, (B, H) each.
        num_gates: G.
        as_operator: Whether a compiler looks on: the operator can be traced, but costs more to call.

    Returns:
        Outputs, (T, B, H), and the last state. They can be differentiated once.
    """
    tensors = [tensor.to(weights[0].dtype).contiguous() for tensor in (inputs, *weights, *state)]
    memory = tensors[6] if len(state) > 1 else None
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    call = _layer if as_operator or torch.compiler.is_compiling() else _Layer.apply
    outputs, *final = call(*tensors[:6], memory, num_gates, torch.is_autocast_enabled("cpu"), trains)[:3]
    return outputs, tuple(final[: len(state)])


# -- the machine code --------------------------------------------------------------------------------------------------


class _Job(ctypes.Structure):
    """The arguments of both passes, as native.cpp names them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "inputs", "hidden", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        *(
            (name, ctypes.c_void_p)
            for name in ("first_hidden", "first_memory", "outputs", "last_hidden", "last_memory")
        ),
        *((name, ctypes.c_void_p) for name in ("saved", "to_outputs", "to_hidden", "to_memory")),
        *((f"from_{name}", ctypes.c_void_p) for name in ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        *((f"from_{name}", ctypes.c_void_p) for name in ("hidden", "memory")),
        ("wants_state", ctypes.c_int64),
    )


@cache
def _library(*flags: str) -> Any:
    """Return the machine code, or None where there is none.

    Args:
        *flags: For the compiler, besides its own: which instructions of this processor to do without.
    """
    # a product and a sum in one instruction, which Inductor has them not
    library = load_machine_code("fptt.nn", "native.cpp", "-ffp-contract=fast", *flags)
    if library is None:
        return None
    raise_mmap_threshold()
    library.run_layer.argtypes = [ctypes.POINTER(_Job), ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    library.run_layer.restype = None
    return library


@cache
def raise_mmap_threshold() -> None:
    """Let the C library keep what a chunk frees for the next one.

    At first glibc gives blocks above 128 KiB back to the system at once, and every chunk would have to fetch its pages
    anew, which doubles the time of a compiled step. It learns from the largest block that was freed, up to 32 MiB
    (mallopt(3), M_MMAP_THRESHOLD).
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _run(
    num_gates: int, *, rounds: bool, is_forward: bool, x: Tensor, wants_state: bool = True, **tensors: Tensor | None
) -> None:
    """Run a pass over tensors, each in the place of its name."""
    weight_hh = tensors["weight_hh"]
    assert weight_hh is not None
    job = _Job(*x.shape, weight_hh.shape[-1], torch.get_num_threads(), x.data_ptr(), wants_state=wants_state)
    for name, tensor in tensors.items():
        setattr(job, name, None if tensor is None else tensor.data_ptr())
    kind = 2 if rounds else int(x.dtype == torch.float64)
    _library().run_layer(job, kind, num_gates, is_forward)


def _forward(
    inputs: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    num_gates: int,
    rounds: bool,
    trains: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return outputs, the last hidden state and memory, and what the backward pass wants to find again.

    Empty where there is none. All are new: whoever holds them, no later call writes into them.
    """
    outputs, last_hidden, last_memory, saved = results = _new_results(inputs, hidden, memory, num_gates, trains=trains)
    _run(
        num_gates,
        rounds=rounds,
        is_forward=True,
        x=inputs,
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        bias_ih=bias_ih,
        bias_hh=bias_hh,
        first_hidden=hidden,
        first_memory=memory,
        outputs=outputs,
        last_hidden=last_hidden,
        last_memory=last_memory,
        saved=saved if trains else None,
    )
    return results


def _new_results(
    inputs: Tensor, hidden: Tensor, memory: Tensor | None, num_gates: int, *, trains: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors that `_forward` fills."""
    (steps, batch, _), size = inputs.shape, hidden.shape[-1]
    padded_size = -(-size // WIDEST_VECTOR) * WIDEST_VECTOR
    return (
        inputs.new_empty(steps, batch, size),
        torch.empty_like(hidden),
        _empty(inputs) if memory is None else torch.empty_like(memory),
        inputs.new_empty(steps * batch * NUM_SAVED[num_gates] * padded_size) if trains else _empty(inputs),
    )


def _backward(
    inputs: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    outputs: Tensor,
    saved: Tensor,
    to_outputs: Tensor | None,
    to_hidden: Tensor | None,
    to_memory: Tensor | None,
    num_gates: int,
    rounds: bool,
    wants_inputs: bool,
    wants_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to inputs, weights, biases, hidden state and memory.

    Of the inputs nothing, and of the state nonsense, where they are not wanted.
    """
    gradients = _new_gradients(inputs, weight_ih, weight_hh, hidden, memory, wants_inputs=wants_inputs)
    from_inputs, from_weight_ih, from_weight_hh, from_bias_ih, from_bias_hh, from_hidden, from_memory = gradients
    _run(
        num_gates,
        rounds=rounds,
        is_forward=False,
        x=inputs,
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        first_hidden=hidden,
        first_memory=memory,
        outputs=outputs,
        saved=saved,
        to_outputs=to_outputs,
        to_hidden=to_hidden,
        to_memory=to_memory,
        from_x=from_inputs if wants_inputs else None,
        from_weight_ih=from_weight_ih,
        from_weight_hh=from_weight_hh,
        from_bias_ih=from_bias_ih,
        from_bias_hh=from_bias_hh,
        from_hidden=from_hidden,
        from_memory=from_memory,
        wants_state=wants_state,
    )
    return gradients


def _new_gradients(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, hidden: Tensor, memory: Tensor | None, *, wants_inputs: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors that `_backward` fills."""
    return (
        torch.empty_like(inputs) if wants_inputs else _empty(inputs),
        torch.empty_like(weight_ih),
        torch.empty_like(weight_hh),
        inputs.new_empty(len(weight_hh)),
        inputs.new_empty(len(weight_hh)),
        torch.empty_like(hidden),
        _empty(inputs) if memory is None else torch.empty_like(memory),
    )


def _empty(like: Tensor) -> Tensor:
    """Return nothing, as an operator can: it returns tensors, never None."""
    return like.new_empty(0)


# -- as a function and as an operator ----------------------------------------------------------------------------------


class _Layer(torch.autograd.Function):
    """The layer for eager training: several times cheaper to call than the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _forward(*inputs)
        _remember(ctx, inputs, output)
        return output[:3]  # the rest is saved, and nobody's else

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its names are of no use
        ctx: Any, *towards: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return _differentiate(_backward, ctx, *towards)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight_ih, weight_hh, _, _, hidden, memory, ctx.num_gates, ctx.rounds, _ = inputs
    outputs, _, _, *kept = output
    ctx.save_for_backward(x, weight_ih, weight_hh, hidden, memory, outputs, *kept)
    ctx.set_materialize_grads(False)  # zeros the size of the gates would cost more than the gradient


def _differentiate(backward: Any, ctx: Any, *towards: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients with respect to all arguments.

    Raises:
        RuntimeError: If they are to be differentiated once more.
    """
    if torch.is_grad_enabled():  # create_graph=True: the result would be a constant, without a word
        raise RuntimeError("fptt.nn's layers can be differentiated once with this kernel: use kernel='plain'.")
    saved = ctx.saved_tensors
    memory = saved[4]
    # gradients may come expanded, as that of a sum does, or not at all
    to_outputs, to_hidden, to_memory = (None if to is None else to.contiguous() for to in towards[:3])
    wants_inputs, wants_state = ctx.needs_input_grad[0], any(ctx.needs_input_grad[5:7])
    from_inputs, *from_weights, from_hidden, from_memory = backward(
        *saved, to_outputs, to_hidden, to_memory, ctx.num_gates, ctx.rounds, wants_inputs, wants_state
    )
    return (
        from_inputs if wants_inputs else None,
        *from_weights,
        from_hidden if wants_state else None,
        from_memory if wants_state and memory is not None else None,
        *(None, None, None),
    )


_layer = torch.library.custom_op("fptt::native_layer", _forward, mutates_args=(), device_types="cpu")
_layer_backward = torch.library.custom_op("fptt::native_layer_backward", _backward, mutates_args=(), device_types="cpu")


@_layer.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, *_, hidden, memory, num_gates, _, trains = arguments
    return _new_results(inputs, hidden, memory, num_gates, trains=trains)


@_layer_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, wants_inputs, _ = arguments
    return _new_gradients(*tensors[:5], wants_inputs=wants_inputs)


def _remember_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _remember(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[3:])


def _gradients(ctx: Any, *towards: Tensor | None) -> tuple[Tensor | None, ...]:
    return _differentiate(_layer_backward, ctx, *towards)


_layer.register_autograd(_gradients, setup_context=_remember_operator)
