"""Codes that turn numbers into spikes."""

import torch
from torch import Tensor

from fptt._checks import check_count, check_positive


def poisson_spikes(rates: Tensor, num_steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return spikes that are drawn at every step by themselves, with the given probabilities: a rate code.

    Args:
        rates: Spikes a step, in [0, 1], (B, …).
        num_steps: T ≥ 1.
        generator: Of the random numbers; torch's own by default.

    Returns:
        Zeros and ones, (T, B, …), in the dtype and on the device of `rates`.

    Raises:
        ValueError: If a rate is outside [0, 1] or no floating-point number.

    Examples:
        >>> fptt.nn.spiking.poisson_spikes(torch.tensor([[0.0, 1.0]]), num_steps=3).tolist()
        [[[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]]
    """
    check_count("num_steps", num_steps)
    _check_unit("rates", rates)
    # half precision has too few numbers to draw from: a rate of 0.001 would become one of 0.003
    dtype = torch.promote_types(rates.dtype, torch.float32)
    drawn = torch.rand(num_steps, *rates.shape, dtype=dtype, device=rates.device, generator=generator)
    return (drawn < rates.to(dtype)).to(rates.dtype)


def latency_spikes(values: Tensor, num_steps: int) -> Tensor:
    """Return one spike for each number, the earlier the larger it is: 1 at the first step, and 0 never.

    Args:
        values: In [0, 1], (B, …); x spikes at step round((1 − x) (T − 1)).
        num_steps: T ≥ 1.

    Returns:
        Zeros and ones, (T, B, …), in the dtype and on the device of `values`.

    Raises:
        ValueError: If a value is outside [0, 1] or no floating-point number.

    Examples:
        >>> fptt.nn.spiking.latency_spikes(torch.tensor([[1.0, 0.5, 0.0]]), num_steps=3).squeeze(1).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    check_count("num_steps", num_steps)
    _check_unit("values", values)
    dtype = torch.promote_types(values.dtype, torch.float32)  # half precision does not tell all steps apart
    times = ((1 - values.to(dtype)) * (num_steps - 1)).round()
    steps = torch.arange(num_steps, dtype=dtype, device=values.device)
    steps = steps.view(-1, *[1] * values.dim())
    return ((steps == times) & (values > 0)).to(values.dtype)


def delta_spikes(signal: Tensor, step: float) -> Tensor:
    """Return spikes where a signal has moved by a step since the last of them, up and down: send on delta.

    A reference begins at the first value and follows by ±`step` with every spike; one spike a time step at most.

    Args:
        signal: (T, B, …, D).
        step: > 0.

    Returns:
        Zeros and ones, (T, B, …, 2 D), in the dtype and on the device of `signal`: spikes up, then spikes down.

    Raises:
        ValueError: If the step is not positive, or the signal is empty or no floating-point number.

    Examples:
        >>> signal = torch.tensor([0.0, 1.0, 2.0, 1.0]).view(4, 1, 1)
        >>> fptt.nn.spiking.delta_spikes(signal, step=1.0).squeeze(1).tolist()
        [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    check_positive("step", step)
    if not signal.is_floating_point() or signal.dim() < 2 or len(signal) == 0:
        raise ValueError(
            f"signal must be floating-point of shape (T, …, D) with T ≥ 1, got {signal.dtype} of {tuple(signal.shape)}."
        )
    dtype = torch.promote_types(signal.dtype, torch.float32)  # half precision takes small steps for none: 256 + 0.5
    reference, spikes = signal[0].to(dtype), []
    for value in signal.to(dtype):
        up = (value - reference >= step).to(dtype)
        down = (reference - value >= step).to(dtype)
        reference = reference + step * (up - down)
        spikes.append(torch.cat([up, down], dim=-1))
    return torch.stack(spikes).to(signal.dtype)


def _check_unit(name: str, values: Tensor) -> None:
    if not values.is_floating_point() or not bool(((values >= 0) & (values <= 1)).all()):
        found = f"{values.min().item():g} … {values.max().item():g}" if values.numel() else "none"
        raise ValueError(f"{name} must be floating-point numbers in [0, 1], got {values.dtype} in {found}.")
