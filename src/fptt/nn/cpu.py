"""One recurrent layer on a processor, as an operator that a compiler takes as it is: all time steps in one call."""

# ruff: noqa: PLR0917  # the arguments of an operator are positional

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

POINTERS = (
    *("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "first_hidden", "first_memory"),
    *("outputs", "memories", "gates", "to_outputs", "to_hidden", "to_memory"),
    *("from_x", "from_weight_ih", "from_weight_hh", "from_bias_ih", "from_bias_hh", "from_hidden", "from_memory"),
    *("hidden_before", "from_gates"),
)
SIZES = ("steps", "batch", "inputs", "hidden", "threads")

NUM_SUMS = {1: 1, 3: 4, 4: 4}
NUM_SAVED = {1: 0, 3: 4, 4: 4}
NARROW = 4


class _Job(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in SIZES), *((name, ctypes.c_void_p) for name in POINTERS)]


@cache
def _library():
    return ctypes.CDLL("/tmp/layer.so")


def _run(num_gates: int, bfloat16: bool, is_forward: bool, tensors: dict[str, Tensor | None]) -> None:
    x = tensors["x"]
    steps, batch, inputs = x.shape
    job = _Job(steps, batch, inputs, tensors["weight_hh"].shape[-1], torch.get_num_threads())
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(job, name, tensor.data_ptr())
    kind = 2 if bfloat16 else int(x.dtype == torch.float64)
    _library().run_layer(ctypes.byref(job), ctypes.c_int64(kind), ctypes.c_int64(num_gates), ctypes.c_int64(is_forward))


@torch.library.custom_op("fptt::cpu_layer", mutates_args=(), device_types="cpu")
def _layer(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, hidden: Tensor,
    memory: Tensor | None, num_gates: int, bfloat16: bool, trains: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    steps, batch, _ = inputs.shape
    size = hidden.shape[-1]
    none = inputs.new_empty(0)
    outputs = inputs.new_empty(steps, batch, size)
    memories = none if memory is None else inputs.new_empty(steps if trains else 1, batch, size)
    gates = inputs.new_empty(steps, batch, NUM_SAVED[num_gates], size) if trains else inputs.new_empty(0)
    before = inputs.new_empty(steps, batch, size, dtype=torch.bfloat16) if trains and bfloat16 else inputs.new_empty(0)
    _run(num_gates, bfloat16, True, dict(x=inputs, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh,
        first_hidden=hidden, first_memory=memory, outputs=outputs, memories=memories, gates=gates if trains else None,
        hidden_before=before if bfloat16 and trains else None))
    last_memory = inputs.new_empty(0) if memory is None else memories[-1].clone()
    return outputs, outputs[-1].clone(), last_memory, memories, gates, before


@torch.library.custom_op("fptt::cpu_layer_backward", mutates_args=(), device_types="cpu")
def _backward(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, hidden: Tensor, memory: Tensor | None,
    outputs: Tensor, memories: Tensor, gates: Tensor, before: Tensor,
    to_outputs: Tensor, to_hidden: Tensor | None, to_memory: Tensor | None,
    num_gates: int, bfloat16: bool, wants_inputs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    steps, batch, width = inputs.shape
    size, rows, sums = hidden.shape[-1], steps * batch, NUM_SUMS[num_gates]
    kind = torch.bfloat16 if bfloat16 else inputs.dtype
    from_gates = inputs.new_empty(rows, sums * size, dtype=kind) if bfloat16 else None
    from_hidden = torch.empty_like(hidden)
    from_memory = inputs.new_empty(0) if memory is None else torch.empty_like(memory)
    from_weight_ih, from_weight_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
    from_bias_ih, from_bias_hh = (inputs.new_empty(num_gates * size) for _ in range(2))
    from_inputs = torch.empty_like(inputs) if wants_inputs else inputs.new_empty(0)
    _run(num_gates, bfloat16, False, dict(x=inputs, weight_ih=weight_ih, weight_hh=weight_hh, first_hidden=hidden, first_memory=memory,
        outputs=outputs, memories=memories, gates=gates, to_outputs=to_outputs, to_hidden=to_hidden, to_memory=to_memory,
        from_gates=from_gates, from_hidden=from_hidden, from_memory=from_memory, from_bias_ih=from_bias_ih, from_bias_hh=from_bias_hh,
        from_weight_ih=from_weight_ih, from_weight_hh=from_weight_hh, from_x=from_inputs if wants_inputs else None))
    if bfloat16:
        first = (sums - num_gates) * size
        from_weight_hh = (from_gates[:, : num_gates * size].T @ before.view(rows, size)).float()
        if first:
            from_weight_hh = torch.cat([from_weight_hh[first:], from_weight_hh[:first]])
        if width > NARROW:
            from_weight_ih = (from_gates[:, first:].T @ inputs.view(rows, width).to(kind)).to(inputs.dtype)
    return from_inputs, from_weight_ih, from_weight_hh, from_bias_ih, from_bias_hh, from_hidden, from_memory


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight_ih, weight_hh, _, _, hidden, memory, ctx.num_gates, ctx.bfloat16, _ = inputs
    outputs, _, _, *kept = output
    ctx.save_for_backward(x, weight_ih, weight_hh, hidden, memory, outputs, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, to_outputs: Tensor | None, to_hidden: Tensor | None, to_memory: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    outputs = saved[5]
    dense = [None if t is None else t.contiguous() for t in (to_hidden, to_memory)]
    if saved[4] is None: dense[1] = None
    to_outputs = torch.zeros_like(outputs) if to_outputs is None else to_outputs.contiguous()
    wants = ctx.needs_input_grad[0]
    fx, *weights, fh, fm = _backward(*saved, to_outputs, *dense, ctx.num_gates, ctx.bfloat16, wants)
    return fx if wants else None, *weights, fh, None if saved[4] is None else fm, None, None, None


_layer.register_autograd(_gradients, setup_context=_remember)
