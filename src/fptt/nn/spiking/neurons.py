"""Layers of spiking neurons, one step at a time: leaky, adaptive, and with time constants that follow the input."""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fptt.nn.spiking.surrogates import Surrogate, is_smooth, spike

Reset = Literal["zero", "subtract"]
"""What a spike does to the potential: sets it to zero, or takes the threshold off."""


class LIFState(NamedTuple):
    """Spikes and potentials of the last step, the spikes of each unit so far, and the number of steps.

    `s`, `v` and `num_spikes` are (num_layers, B, H), `num_steps` is (B, 1).
    """

    s: Tensor
    v: Tensor
    num_spikes: Tensor
    num_steps: Tensor


class ALIFState(NamedTuple):
    """As `LIFState`, with the adaptation `a`, (num_layers, B, H)."""

    s: Tensor
    v: Tensor
    a: Tensor
    num_spikes: Tensor
    num_steps: Tensor


torch.serialization.add_safe_globals([LIFState, ALIFState])  # torch.load reads a checkpoint that holds one


class LIFLayer(nn.Module):
    """Leaky integrate-and-fire neurons; see `fptt.nn.spiking.LIF` for the equations and the arguments."""

    state: ClassVar[type[LIFState] | type[ALIFState]] = LIFState
    num_moving: ClassVar[int] = 2
    """Tensors that a step changes: s, v, and a where there is one."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        recurrent: bool,
        threshold: float,
        reset: Reset,
        detach_reset: bool,
        surrogate: Surrogate,
        tau: tuple[float, float],
        learn_tau: bool,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, hidden_size)
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        self.recurrent = nn.Parameter(torch.empty(hidden_size, hidden_size)) if recurrent else None
        if self.recurrent is not None:
            nn.init.orthogonal_(self.recurrent)
        # α = σ(logit) = 1 − exp(−1/τ), (H,)
        self.rate_logit = nn.Parameter(_rate_logits(hidden_size, tau), requires_grad=learn_tau)
        self.threshold, self.reset, self.detach_reset, self.surrogate = threshold, reset, detach_reset, surrogate

    def run(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the spikes of all steps, (T, B, H), and the moving tensors after the last, (B, H) each."""
        weights = self._weights()
        recurrent = None if self.recurrent is None else self.recurrent.t()
        detaches = self.detach_reset and not is_smooth()
        dtype, spikes = state[1].dtype, []
        # the products with the inputs do not wait for the state: one for all steps
        currents = self._currents(inputs)
        # the gradient of a single step is a view of it, that of `unbind` a copy
        for current in [currents.squeeze(0)] if len(currents) == 1 else currents.unbind():
            drive = current if recurrent is None else torch.addmm(current, state[0], recurrent)
            # autocast makes products short, and the potentials stay as they are
            state = self._step(drive.to(dtype), state, weights, detaches)
            spikes.append(state[0])
        return torch.stack(spikes), state

    def _currents(self, inputs: Tensor) -> Tensor:
        """Return W x + b of all steps, (T, B, H); one number a step needs no matrix product."""
        if inputs.shape[-1] == 1:
            return inputs * self.input.weight.squeeze(-1) + self.input.bias
        return self.input(inputs)

    def _weights(self) -> tuple[Any, ...]:
        """Return what the steps of one call share."""
        return (self.rate_logit.sigmoid(),)

    def _step(
        self, drive: Tensor, state: tuple[Tensor, ...], weights: tuple[Any, ...], detaches: bool
    ) -> tuple[Tensor, ...]:
        (rate,) = weights
        v = torch.lerp(state[1], drive, rate)
        s = spike(v - self.threshold, self.surrogate)
        return s, self._after_spike(v, s.detach() if detaches else s, self.threshold)

    def _after_spike(self, v: Tensor, s: Tensor, threshold: Tensor | float) -> Tensor:
        """Return (1 − s) v, or v − θ s."""
        if self.reset == "zero":
            return torch.addcmul(v, s, v, value=-1)
        if not isinstance(threshold, Tensor):
            return torch.sub(v, s, alpha=threshold)
        return torch.addcmul(v, s, threshold, value=-1)


class ALIFLayer(LIFLayer):
    """Neurons whose thresholds rise with each of their spikes; see `fptt.nn.spiking.ALIF`."""

    state = ALIFState
    num_moving = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        adaptation: float,
        tau_adaptation: tuple[float, float],
        learn_tau: bool,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, learn_tau=learn_tau, **options)
        self.adaptation = adaptation
        # ρ = σ(logit) = exp(−1/τ), (H,)
        self.keep_logit = nn.Parameter(-_rate_logits(hidden_size, tau_adaptation), requires_grad=learn_tau)

    def _weights(self) -> tuple[Any, ...]:
        base = torch.full_like(self.rate_logit, self.threshold, requires_grad=False)
        return self.rate_logit.sigmoid(), self.keep_logit.sigmoid(), base

    def _step(
        self, drive: Tensor, state: tuple[Tensor, ...], weights: tuple[Any, ...], detaches: bool
    ) -> tuple[Tensor, ...]:
        (s, v, a), (rate, keep, base) = state, weights
        return self._fire(torch.lerp(v, drive, rate), torch.lerp(s, a, keep), base, detaches)

    def _fire(self, v: Tensor, a: Tensor, base: Tensor, detaches: bool) -> tuple[Tensor, ...]:
        """Return spikes, potentials and adaptation, given the last two before the spike."""
        threshold = torch.add(base, a, alpha=self.adaptation)
        s = spike(v - threshold, self.surrogate)
        if not detaches:
            return s, self._after_spike(v, s, threshold), a
        return s, self._after_spike(v, s.detach(), threshold.detach()), a


class LiquidLIFLayer(ALIFLayer):
    """Adaptive neurons whose rates follow the input and their own state; see `fptt.nn.spiking.LiquidLIF`."""

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__(input_size, hidden_size, **options)
        self.rate_weight = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))
        self.keep_weight = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))
        for weight in (self.rate_weight, self.keep_weight):
            nn.init.xavier_uniform_(weight)

    def _weights(self) -> tuple[Any, ...]:
        base = torch.full_like(self.rate_logit, self.threshold, requires_grad=False)
        return self.rate_weight.t(), self.rate_logit, self.keep_weight.t(), self.keep_logit, base

    def _step(
        self, drive: Tensor, state: tuple[Tensor, ...], weights: tuple[Any, ...], detaches: bool
    ) -> tuple[Tensor, ...]:
        (s, v, a), (rate_weight, rate_bias, keep_weight, keep_bias, base) = state, weights
        rate = torch.addmm(rate_bias, torch.cat([drive, v], dim=-1), rate_weight).sigmoid().to(v.dtype)
        keep = torch.addmm(keep_bias, torch.cat([drive, a], dim=-1), keep_weight).sigmoid().to(v.dtype)
        return self._fire(torch.lerp(v, drive, rate), torch.lerp(s, a, keep), base, detaches)


def _rate_logits(size: int, tau: tuple[float, float]) -> Tensor:
    """Return logit(1 − exp(−1/τ)) for time constants between two bounds in steps, log-uniform over the units."""
    shortest, longest = (math.log(bound) for bound in tau)
    drawn = torch.empty(size).uniform_(shortest, longest) if longest > shortest else torch.full((size,), shortest)
    # logit(1 − x) = log(1 − x) − log x with x = exp(−1/τ)
    inverse = drawn.neg().exp()
    return torch.log(-torch.expm1(-inverse)) + inverse
