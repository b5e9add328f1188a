"""A leaky read-out of spikes, pooled over time inside its state."""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fptt._checks import check_choice, check_count, check_dtype, check_positive, check_sequences

Pool = Literal["last", "mean", "max"]
"""What is read out at a step: the potential itself, or its mean or maximum since the sequence began."""


class ReadoutState(NamedTuple):
    """Potentials, (B, C), what they are pooled to, (B, C), and the number of steps, (B, 1).

    The last two are None with pool="last".
    """

    o: Tensor
    pooled: Tensor | None
    num_steps: Tensor | None


torch.serialization.add_safe_globals([ReadoutState])  # torch.load reads a checkpoint that holds one


class LeakyReadout(nn.Module):
    """Leaky potentials without spikes, o⁺ = o + β (U s + b − o), and their mean or maximum over the sequence so far.

    What is pooled stands in the state, so that it goes over cuts: outputs do not depend on how a sequence is cut, and
    an update after every step (K = T) sees what a whole sequence would give.

    Args:
        input_size: H, width of the spikes.
        output_size: C, width of the outputs.
        pool: `last`, the potential of the step; `mean`, m⁺ = m + (o⁺ − m)/t; or `max`.
        tau: Time constant in steps to begin with, β = 1 − exp(−1/τ), > 0. β is learned.
        liquid: Whether β follows input and state, β = σ(W [U s + b; o] + b_β), as in sFPTT (Yin, Corradi & Bohté,
            Nature Machine Intelligence 2023).

    Raises:
        ValueError: If an argument is out of range; on a call, if inputs or state do not fit, or do not have the dtype
            of the weights, outside of autocast.
        TypeError: On a call, if the inputs are no tensor.

    Examples:
        >>> readout = fptt.nn.spiking.LeakyReadout(8, 3, pool="mean")
        >>> outputs, state = readout(torch.ones(5, 2, 8))
        >>> tuple(outputs.shape), state.num_steps.tolist()
        ((5, 2, 3), [[5.0], [5.0]])
    """

    def __init__(
        self, input_size: int, output_size: int, *, pool: Pool = "last", tau: float = 2.0, liquid: bool = False
    ) -> None:
        super().__init__()
        check_count("output_size", output_size)
        check_choice("pool", pool, get_args(Pool))
        check_positive("tau", tau)
        self.linear = nn.Linear(input_size, output_size)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        logit = math.log(-math.expm1(-1 / tau)) + 1 / tau  # σ(logit) = 1 − exp(−1/τ)
        self.rate_logit = nn.Parameter(torch.full((output_size,), logit))
        self.rate_weight = nn.Parameter(torch.empty(output_size, 2 * output_size)) if liquid else None
        if self.rate_weight is not None:
            nn.init.xavier_uniform_(self.rate_weight)
        self.pool: Pool = pool

    def initial_state(self, inputs: Tensor) -> ReadoutState:
        """Return the state that None stands for, zeros, for a batch of spikes (T, B, H)."""
        o = inputs.new_zeros(inputs.shape[1], self.linear.out_features, dtype=self.rate_logit.dtype)
        if self.pool == "last":
            return ReadoutState(o, None, None)
        num_steps = inputs.new_zeros(inputs.shape[1], 1, dtype=counter_dtype(inputs))
        return ReadoutState(o, torch.zeros_like(o), num_steps)

    def state_shapes(self, batch_size: int) -> Any:
        """Return the shapes of a state."""
        o = (batch_size, self.linear.out_features)
        return (o, None, None) if self.pool == "last" else (o, o, (batch_size, 1))

    def forward(self, inputs: Tensor, state: ReadoutState | None = None) -> tuple[Tensor, ReadoutState]:
        """Return outputs, (T, B, C), and state for spikes (T, B, H); state None is zeros."""
        check_sequences(inputs, self.linear.in_features, name="H")
        check_dtype("inputs", inputs, self.rate_logit)
        if state is None:
            state = self.initial_state(inputs)
        else:
            check_shapes("a ReadoutState", state, self.state_shapes(inputs.shape[1]))
            state = ReadoutState(*state)
            check_dtype("state", state.o, self.rate_logit)
        potentials = self._potentials(self.linear(inputs).to(state.o.dtype), state.o)
        if state.pooled is None or state.num_steps is None:
            return potentials, ReadoutState(potentials[-1], None, None)
        pooled = self._pooled(potentials, state.pooled, state.num_steps)
        return pooled, ReadoutState(potentials[-1], pooled[-1], state.num_steps + len(inputs))

    def _potentials(self, drives: Tensor, o: Tensor) -> Tensor:
        potentials: list[Tensor] = []
        rate = self.rate_logit.sigmoid()
        weight = None if self.rate_weight is None else self.rate_weight.t()
        for drive in drives.unbind():
            if weight is not None:
                rate = torch.addmm(self.rate_logit, torch.cat([drive, o], dim=-1), weight).sigmoid().to(o.dtype)
            o = torch.lerp(o, drive, rate)
            potentials.append(o)
        return torch.stack(potentials)

    def _pooled(self, potentials: Tensor, pooled: Tensor, num_steps: Tensor) -> Tensor:
        """Return the mean or maximum from the beginning of the sequence up to each step, (T, B, C)."""
        if self.pool == "mean":
            numbers = torch.arange(1, len(potentials) + 1, dtype=num_steps.dtype, device=num_steps.device)
            # the recurrence of the mean, summed up: what was there counts as many steps as it is the mean of
            sums = pooled * num_steps + potentials.cumsum(0, dtype=num_steps.dtype)
            return (sums / (num_steps + numbers[:, None, None])).to(potentials.dtype)
        # zeros begin a sequence, whatever the sign of its potentials
        largest, maxima = torch.where(num_steps > 0, pooled, potentials[0]), []
        for o in potentials:
            largest = torch.maximum(largest, o)
            maxima.append(largest)
        return torch.stack(maxima)


def counter_dtype(inputs: Tensor) -> torch.dtype:
    """Return in which type steps are counted beside these inputs: bfloat16 has no 257."""
    return torch.promote_types(inputs.dtype, torch.float32)


def check_shapes(kind: str, state: Any, expected: Any) -> None:
    """Raise ValueError unless a nest of tuples has tensors of these shapes, and None where None is expected."""
    found = _shapes(state)
    if found != expected:
        raise ValueError(f"state must be {kind} of shapes {expected}, as initial_state(inputs) gives, got {found}.")


def _shapes(state: Any) -> Any:
    if isinstance(state, Tensor):
        return tuple(state.shape)
    return tuple([_shapes(part) for part in state]) if isinstance(state, (tuple, list)) else state
