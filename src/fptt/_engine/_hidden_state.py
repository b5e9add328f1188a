"""What a compiled step could not see: state that a model keeps outside its parameters, buffers and arguments."""

import random
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fptt._engine._compiler import EAGER_INSTEAD, CompilationError
from fptt._sequence import State

CONSTANTS = (bool, int, float, str, type(None))


class Usage(NamedTuple):
    """What one eager chunk showed: the parameters with a gradient, and whether random numbers were drawn."""

    names: frozenset[str]
    is_random: bool


def constants(module: nn.Module) -> tuple[Any, ...]:
    """Return what of a module a compiled step takes as constant: plain attributes (a dropout rate), and freezing."""
    attributes = tuple(
        (name, key, value)
        for name, owner in module.named_modules()
        for key, value in vars(owner).items()
        if isinstance(value, CONSTANTS)
    )
    return attributes, tuple(param.requires_grad for param in module.parameters())


def probe(forward: Callable[[], tuple[Tensor, State]], module: nn.Module) -> Usage:
    """Run one chunk eagerly, without any lasting effect, and look at what it does.

    Args:
        forward: Returns loss and next state.
        module: What it calls; its buffers are put back as they were.

    Raises:
        CompilationError: If a module changes an attribute, or Python's or NumPy's random numbers are drawn: a compiled
            step would do so once and never again.
        ValueError: If a gradient is sparse.
    """
    params = {name: param for name, param in module.named_parameters() if param.requires_grad}
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    before, random_before = _attributes(module), _python_random()
    torch_before = torch.get_rng_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        cuda_before = torch.cuda.get_rng_state() if devices else torch_before
        with torch.enable_grad():
            loss, _ = forward()
            gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        cuda_after = torch.cuda.get_rng_state() if devices else torch_before
        is_random = not (torch.equal(torch_before, torch.get_rng_state()) and torch.equal(cuda_before, cuda_after))
    with torch.no_grad():
        for buffer, value in buffers.items():
            buffer.copy_(value)
    _check_attributes(before, _attributes(module))
    if random_before != _python_random():
        raise CompilationError(
            "engine='compiled' cannot follow random numbers of Python or NumPy, which the model or the loss draws: "
            f"draw them with torch. {EAGER_INSTEAD}"
        )
    used = {name: gradient for name, gradient in zip(params, gradients, strict=True) if gradient is not None}
    if any(gradient.is_sparse for gradient in used.values()):
        raise ValueError("params must have dense gradients, got a sparse one: use nn.Embedding(sparse=False).")
    return Usage(frozenset(used), is_random)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return a fingerprint of every attribute of every module; of buffers and parameters only which ones they are.

    The modules of torch.nn are left out: they keep nothing but caches outside their buffers.
    """
    return {
        f"{name or type(owner).__name__}.{key}": _fingerprint(value)
        for name, owner in module.named_modules()
        if not type(owner).__module__.startswith("torch.nn.")
        for key, value in vars(owner).items()
    }


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, CONSTANTS):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return id(value), len(value), tuple(id(entry) for entry in value)
    if isinstance(value, dict):
        return id(value), tuple((key, id(entry)) for key, entry in value.items())
    return id(value)


def _check_attributes(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in after.keys() | before.keys():
        if before.get(name) != after.get(name):
            raise CompilationError(
                f"engine='compiled' cannot follow {name}, which the forward pass changes: return it in the state, or "
                f"register it as a buffer and change it in place. {EAGER_INSTEAD}"
            )


def _python_random() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else numpy.random.get_state()
    return random.getstate(), None if drawn is None else (drawn[1].tobytes(), drawn[2])
