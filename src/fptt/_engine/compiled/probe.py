"""The probe: a chunk run eagerly before its step is compiled, to see whether a compiled step could do the same."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fptt._engine.compiled.compiler import EAGER_INSTEAD, CompilationError
from fptt._engine.compiled.constants import changed, constants, is_made_by_hook
from fptt._random_state import RandomState


class Probe(NamedTuple):
    """What one eager chunk showed.

    Attributes:
        used: Names of the parameters that get a gradient.
        moving: Names of the parameters and buffers that the forward pass changes by itself.
        is_random: Whether it draws random numbers.
        loss: Its loss.
        norm: The norm of its gradient.
        writes_given: Whether the forward pass writes into the inputs or the state that it is given.
    """

    used: frozenset[str]
    moving: frozenset[str]
    is_random: bool
    loss: Tensor
    norm: Tensor
    writes_given: bool = False

    def equals(self, other: "Probe") -> bool:
        """Return whether both have the same loss, and the same gradient for the same parameters."""
        tolerance = _tolerance(self.loss)
        return self.used == other.used and all(
            torch.allclose(one, two, rtol=tolerance, atol=tolerance, equal_nan=True)
            for one, two in ((self.loss, other.loss), (self.norm, other.norm))
        )


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
        trained: The parameters of the optimizer; none stands for all.

    Raises:
        CompilationError: If it keeps something from one run to the next, or trains what is not in the module: a
            compiled step would do so once and never again.
        ValueError: If a gradient is sparse.
    """
    names: dict[Tensor, str] = {param: name for name, param in module.named_parameters()}
    params = [param for param in dict.fromkeys([*names, *trained]) if param.requires_grad]
    # twice: what a model remembers outside of parameters, buffers and state shows in the second run
    first, second = (_run(forward, module, params, names) for _ in range(2))
    _check_equal(first, second)
    if any(gradient.is_sparse for gradient in first.gradients.values()):
        raise ValueError("params must have dense gradients, got a sparse one: use nn.Embedding(sparse=False).")
    # the norm stands for all gradients when the compiled step is compared: one number, and no parameter is missed. What
    # the optimizer does not hold has no gradient there
    own = {names[param] for param in trained if param in names} if trained else first.gradients.keys()
    gradients = [gradient for name, gradient in first.gradients.items() if name in own]
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(first.loss)
    return Probe(frozenset(first.gradients), first.moving, first.is_random, first.loss, norm)


def _run(forward: Callable[[], Tensor], module: nn.Module, params: list[Tensor], names: dict[Any, str]) -> _Run:
    before, random = constants(module), _random_state()
    with _restored(module) as originals, random.replay():
        loss = forward()
        if not params or not loss.requires_grad:
            raise CompilationError(
                "engine='compiled' needs a loss that depends on a weight that requires a gradient: all parameters of "
                "the model are frozen, or it runs under torch.no_grad() or on detached tensors."
            )
        gradients = torch.autograd.grad(loss, params, allow_unused=True)
        drawn = _random_state()
        attribute = changed(before, constants(module))
        if attribute is not None:
            raise CompilationError(
                f"engine='compiled' cannot follow {attribute}, which the forward pass changes: "
                f"{_remedy(module, attribute)}. {EAGER_INSTEAD}"
            )
        moving = frozenset(name for name, (tensor, original) in originals.items() if not _same(tensor, original))
    # torch's own may be drawn, for dropout: the trace keeps the drawing. Python's and NumPy's would be constants
    if not replace(random, cpu=drawn.cpu, devices=drawn.devices).equals(drawn):
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
    gradients = {names[param]: gradient for param, gradient in found.items()}
    return _Run(loss.detach(), gradients, moving, is_random=not drawn.equals(random))


def _remedy(module: nn.Module, attribute: str) -> str:
    """Return what to do with an attribute that the forward pass changes."""
    place, _, name = attribute.rpartition(".")
    if is_made_by_hook(name, dict(module.get_submodule(place).named_parameters(recurse=False))):
        return (
            "a hook of torch.nn.utils makes it anew; take weight_norm and spectral_norm from "
            "torch.nn.utils.parametrizations, and in the place of prune register the mask with "
            "torch.nn.utils.parametrize"
        )
    return (
        "return it in the state, as fptt.integrations.stateful.Explicit does (see docs/spiking.md), or register it as "
        "a buffer and change it in place"
    )


def _check_equal(first: _Run, second: _Run) -> None:
    """Two runs from the same state and random numbers differ if something else is remembered."""
    tolerance = _tolerance(first.loss)
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


def _tolerance(loss: Tensor) -> float:
    # none on a processor: the same operations on the same numbers give the same bits
    return 0 if loss.device.type == "cpu" else 1e-4  # sums on accelerators have no fixed order


def check_first(run: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], found: Probe) -> None:
    """Run a compiled step on copies, with the random numbers of the probe, and compare its figures with the eager ones.

    Raises:
        CompilationError: If they differ by more than rounding explains.
    """
    with _random_state().replay(), torch.no_grad():  # the same dropout as in the probe
        loss, norm, *_ = run(*(tensor.clone() for tensor in examples))
    # under autocast a number in float32 may have been one in bfloat16 before
    rounds = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    for name, place, compiled, eager in (
        ("loss", "forward pass", loss, found.loss),
        ("gradient norm", "forward or backward pass", norm, found.norm),
    ):
        tolerance = 0.1 if rounds else {torch.float64: 1e-6, torch.float32: 1e-3}.get(eager.dtype, 0.1)
        if not torch.allclose(compiled.double(), eager.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
            raise CompilationError(
                f"engine='compiled' gives a {name} of {compiled.item():.6g} where the model gives {eager.item():.6g}: "
                f"something in its {place} runs once, as it is compiled, and not again, such as a hook or a seed. "
                f"{EAGER_INSTEAD}"
            )


@contextmanager
def _restored(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Put parameters and buffers back as they were; yields each by name, with a copy of it."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    originals = {name: (tensor, tensor.detach().clone()) for name, tensor in named.items()}
    bindings = [(owner, dict(owner._buffers)) for owner in module.modules()]
    try:
        with torch.enable_grad():
            yield originals
    finally:
        for owner, buffers in bindings:  # a forward pass may have put another tensor in the place of one
            owner._buffers.clear()
            owner._buffers.update(buffers)
        with torch.no_grad():
            for tensor, original in originals.values():
                if not _same(tensor, original):
                    tensor.copy_(original)


def _same(tensor: Tensor, original: Tensor) -> bool:
    return torch.equal(tensor, original) or torch.allclose(tensor, original, rtol=0, atol=0, equal_nan=True)


def _random_state() -> RandomState:
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = [torch.device("cuda", torch.cuda.current_device())] if has_cuda else []
    return RandomState.capture(devices, include_others=True)
