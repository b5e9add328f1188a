"""One chunk run eagerly before its step is compiled: what it uses, and whether a compiled step could do the same."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fptt._engine.compiled.compiler import EAGER_INSTEAD, CompilationError
from fptt._engine.compiled.constants import changed, constants


class Probe(NamedTuple):
    """What one eager chunk showed.

    Attributes:
        used: Names of the parameters that get a gradient.
        moving: Names of the parameters and buffers that the forward pass changes by itself.
        is_random: Whether it draws random numbers.
        loss: Its loss.
        norm: The norm of its gradient.
    """

    used: frozenset[str]
    moving: frozenset[str]
    is_random: bool
    loss: Tensor
    norm: Tensor


class _Run(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor]
    moving: frozenset[str]
    is_random: bool


def probe(forward: Callable[[], Tensor], module: nn.Module, trained: list[Tensor]) -> Probe:
    """Run a chunk twice, without a lasting effect on tensors or on torch's random numbers, and look at what it does.

    Args:
        forward: Returns the loss.
        module: What it calls.
        trained: The parameters of the optimizer.

    Raises:
        CompilationError: If it keeps something from one run to the next, or trains what is not in the module: a
            compiled step would do so once and never again.
        ValueError: If a gradient is sparse.
    """
    names = {param: name for name, param in module.named_parameters()}
    params = [param for param in dict.fromkeys([*names, *trained]) if param.requires_grad]
    first, second = (_run(forward, module, params, names) for _ in range(2))
    _check_equal(first, second)
    if any(gradient.is_sparse for gradient in first.gradients.values()):
        raise ValueError("params must have dense gradients, got a sparse one: use nn.Embedding(sparse=False).")
    gradients = list(first.gradients.values())
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(first.loss)
    return Probe(frozenset(first.gradients), first.moving, first.is_random, first.loss, norm)


def _run(forward: Callable[[], Tensor], module: nn.Module, params: list[Tensor], names: dict[Any, str]) -> _Run:
    before, random_before = constants(module), _python_random()
    with _restored(module) as originals, _torch_random_watched() as draws:
        loss = forward()
        gradients = torch.autograd.grad(loss, params, allow_unused=True)
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        moving = frozenset(name for name, tensor in named.items() if not _same(tensor, originals[name]))
    attribute = changed(before, constants(module))
    if attribute is not None:
        raise CompilationError(
            f"engine='compiled' cannot follow {attribute}, which the forward pass changes: return it in the state, or "
            f"register it as a buffer and change it in place. {EAGER_INSTEAD}"
        )
    if random_before != _python_random():
        raise CompilationError(
            "engine='compiled' cannot follow random numbers of Python or NumPy, which the model or the loss draws: "
            f"draw them with torch. {EAGER_INSTEAD}"
        )
    found = {param: gradient for param, gradient in zip(params, gradients, strict=True) if gradient is not None}
    strangers = [tuple(param.shape) for param in found if param not in names]
    if strangers:
        raise CompilationError(
            f"engine='compiled' cannot train a parameter of shape {strangers[0]} that the optimizer holds and neither "
            f"model nor loss has registered: make it an attribute of a module. {EAGER_INSTEAD}"
        )
    return _Run(loss.detach(), {names[param]: gradient for param, gradient in found.items()}, moving, draws[0])


def _check_equal(first: _Run, second: _Run) -> None:
    """Two runs from the same state and random numbers differ if something else is remembered."""
    tolerance = 0 if first.loss.device.type == "cpu" else 1e-4  # sums on accelerators have no fixed order
    for one, other in [
        (first.loss, second.loss),
        *zip(first.gradients.values(), second.gradients.values(), strict=False),
    ]:
        if one.is_sparse or torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True):
            continue
        raise CompilationError(
            "engine='compiled' needs a model and a loss that give the same numbers when they are run again on the same "
            f"chunk; these keep something outside of parameters, buffers and state. {EAGER_INSTEAD}"
        )


def check_first(run: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], found: Probe) -> None:
    """Run a compiled step on copies, with the random numbers of the probe, and compare its figures with the eager ones.

    Raises:
        CompilationError: If they differ by more than rounding explains.
    """
    with _torch_random_watched(), torch.no_grad():
        loss, norm, *_ = run(*(tensor.clone() for tensor in examples))
    for name, compiled, eager in (("loss", loss, found.loss), ("gradient norm", norm, found.norm)):
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(eager.dtype, 0.1)
        if not torch.allclose(compiled.double(), eager.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
            raise CompilationError(
                f"engine='compiled' gives a {name} of {compiled.item():.6g} where the model gives {eager.item():.6g}: "
                "something in its forward or backward pass runs once, as it is compiled, and not again, such as a hook "
                f"or a seed. {EAGER_INSTEAD}"
            )


@contextmanager
def _restored(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put parameters and buffers back as they were; yields copies of them."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    originals = {name: tensor.detach().clone() for name, tensor in named.items()}
    try:
        with torch.enable_grad():
            yield originals
    finally:
        with torch.no_grad():
            for name, tensor in named.items():
                if not _same(tensor, originals[name]):
                    tensor.copy_(originals[name])


def _same(tensor: Tensor, original: Tensor) -> bool:
    return torch.equal(tensor, original) or torch.allclose(tensor, original, rtol=0, atol=0, equal_nan=True)


@contextmanager
def _torch_random_watched() -> Iterator[list[bool]]:
    """Put torch's random numbers back; the list that it yields tells afterwards whether some were drawn."""
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    draws: list[bool] = []
    with torch.random.fork_rng([torch.cuda.current_device()] if has_cuda else []):
        before = _torch_random(has_cuda)
        yield draws
        draws.append(
            any(not torch.equal(one, other) for one, other in zip(before, _torch_random(has_cuda), strict=True))
        )


def _torch_random(has_cuda: bool) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if has_cuda else [])]


def _python_random() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else numpy.random.get_state()
    return random.getstate(), None if drawn is None else (drawn[1].tobytes(), drawn[2])
