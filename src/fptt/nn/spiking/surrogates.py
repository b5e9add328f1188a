"""Spikes, and the derivatives that stand in for that of the step function."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fptt._checks import check_positive
from fptt.nn.cells import transforms_are_active

# A check has to set these for neurons anywhere inside a user's own module, so they cannot be arguments.
_smooth = ContextVar("smooth", default=False)
_watch: ContextVar["SpikeCount | None"] = ContextVar("watch", default=None)


@contextmanager
def smooth_spikes() -> Iterator[None]:
    """Replace every spike by the primitive of its surrogate: outputs are smooth, and gradients are their derivatives.

    With spikes, the gradient is no derivative of the loss, and finite differences say nothing about it. Inside this
    context the backward pass is the same and the forward pass is a function that has this derivative; resets let the
    gradient through whatever `detach_reset` says. `fptt.check_gradient` enters it by itself.

    Examples:
        >>> potential = torch.tensor([-0.5, 0.5])
        >>> with fptt.nn.spiking.smooth_spikes():
        ...     fptt.nn.spiking.spike(potential, fptt.nn.spiking.Sigmoid(slope=2.0))
        tensor([0.2689, 0.7311])
    """
    token = _smooth.set(True)
    try:
        yield
    finally:
        _smooth.reset(token)


def is_smooth() -> bool:
    """Return whether this runs inside `smooth_spikes`."""
    return _smooth.get()


@dataclass
class SpikeCount:
    """How many spikes there were, of how many there could have been."""

    spikes: float = 0.0
    possible: int = 0


@contextmanager
def count_spikes() -> Iterator[SpikeCount]:
    """Count what `spike` returns inside this context."""
    count = SpikeCount()
    token = _watch.set(count)
    try:
        yield count
    finally:
        _watch.reset(token)


@dataclass(frozen=True)
class Surrogate(ABC):
    """A derivative in place of that of the step function, and a function that has it.

    A surrogate of your own is a frozen dataclass with these two methods, and numbers above 0 for its fields.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            check_positive(field.name, getattr(self, field.name))

    @abstractmethod
    def derivative(self, u: Tensor) -> Tensor:
        """Return what stands for ds/du, of the shape of u, the distance from the threshold."""

    @abstractmethod
    def primitive(self, u: Tensor) -> Tensor:
        """Return a smooth function of u whose derivative is `derivative`."""


@dataclass(frozen=True)
class MultiGaussian(Surrogate):
    """A Gaussian with negative flanks: γ [(1 + h) N(u; 0, σ²) − h N(u; σ, (kσ)²) − h N(u; −σ, (kσ)²)].

    Of Yin, Corradi & Bohté (Nature Machine Intelligence 2021), for adaptive neurons; the defaults are those of their
    released code.

    Args:
        gamma: γ, the scale of the whole, > 0.
        height: h, the weight of the flanks, > 0.
        width: σ, of the peak, > 0.
        flank: k, the width of the flanks in widths of the peak, > 0.
    """

    gamma: float = 0.5
    height: float = 0.15
    width: float = 0.5
    flank: float = 6.0

    def derivative(self, u: Tensor) -> Tensor:
        """Return the sum of the three Gaussians."""
        wide = self.width * self.flank
        scale = self.gamma / math.sqrt(2 * math.pi)
        peak = (u.square() * (-0.5 / self.width**2)).exp_()
        left, right = (((u + shift).square() * (-0.5 / wide**2)).exp_() for shift in (self.width, -self.width))
        return (peak * (scale * (1 + self.height) / self.width)).sub_(left + right, alpha=scale * self.height / wide)

    def primitive(self, u: Tensor) -> Tensor:
        """Return the same sum of normal distribution functions, from 0 to γ (1 − h)."""
        wide = self.width * self.flank
        flanks = torch.special.ndtr((u - self.width) / wide) + torch.special.ndtr((u + self.width) / wide)
        return self.gamma * ((1 + self.height) * torch.special.ndtr(u / self.width) - self.height * flanks)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """1 / (1 + k|u|)²  (SuperSpike: Zenke & Ganguli, Neural Computation 2018); its primitive is u / (1 + k|u|).

    Args:
        slope: k > 0.
    """

    slope: float = 10.0

    def derivative(self, u: Tensor) -> Tensor:
        """Return 1 / (1 + k|u|)²."""
        return (1 + self.slope * u.abs()).pow(-2)

    def primitive(self, u: Tensor) -> Tensor:
        """Return u / (1 + k|u|), from −1/k to 1/k."""
        return u / (1 + self.slope * u.abs())


@dataclass(frozen=True)
class ArcTan(Surrogate):
    """1 / (1 + (πku)²)  (Fang et al., ICCV 2021); its primitive is atan(πku) / (πk).

    Args:
        slope: k > 0.
    """

    slope: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        """Return 1 / (1 + (πku)²)."""
        return (1 + (math.pi * self.slope * u).square()).reciprocal()

    def primitive(self, u: Tensor) -> Tensor:
        """Return atan(πku) / (πk), from −1/(2k) to 1/(2k)."""
        return (math.pi * self.slope * u).atan() / (math.pi * self.slope)


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """The derivative of a logistic function, k σ(ku) (1 − σ(ku)); its primitive is σ(ku).

    Args:
        slope: k > 0.
    """

    slope: float = 4.0

    def derivative(self, u: Tensor) -> Tensor:
        """Return k σ(ku) (1 − σ(ku))."""
        value = (self.slope * u).sigmoid_()
        return (self.slope * value).mul_(1 - value)

    def primitive(self, u: Tensor) -> Tensor:
        """Return σ(ku), from 0 to 1."""
        return (self.slope * u).sigmoid()


class _Spike(torch.autograd.Function):
    """A step in the forward pass, or the surrogate's primitive, and the surrogate's derivative in the backward pass."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate, smooth: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        # not (u > 0).to(dtype): a copy of booleans takes three times as long as a comparison in place
        return surrogate.primitive(u) if smooth else u.clone().gt_(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate.derivative(u), None, None


def _composed(u: Tensor, surrogate: Surrogate, smooth: bool) -> Tensor:
    """Return the same by operations that `torch.func` transforms: with a `setup_context` each spike would be slower."""
    soft = surrogate.primitive(u)
    return soft if smooth else (u > 0).to(u.dtype) + (soft - soft.detach())


def spike(u: Tensor, surrogate: Surrogate) -> Tensor:
    """Return 1 where u is above 0 and 0 elsewhere, with the surrogate's derivative (Neftci, Mostafa & Zenke 2019).

    Args:
        u: Distance of the membrane potential from the threshold, any shape.
        surrogate: Whose derivative the backward pass takes.

    Returns:
        Zeros and ones of the shape, dtype and device of u.

    Examples:
        >>> u = torch.tensor([-0.1, 0.1], requires_grad=True)
        >>> spikes = fptt.nn.spiking.spike(u, fptt.nn.spiking.FastSigmoid(slope=10.0))
        >>> spikes.tolist(), torch.autograd.grad(spikes.sum(), u)[0].tolist()
        ([0.0, 1.0], [0.25, 0.25])
    """
    run = _composed if transforms_are_active() else _Spike.apply
    spikes = run(u, surrogate, _smooth.get())
    assert isinstance(spikes, Tensor)
    count = _watch.get()
    if count is not None:
        count.spikes += spikes.detach().sum().item()
        count.possible += spikes.numel()
    return spikes
