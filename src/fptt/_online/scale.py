"""Running standardization: every step is scaled by what is known of the steps before it."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

ROUNDING = 1e-12
"""A variance below this part of the mean square is rounding."""


class Moments(NamedTuple):
    """Number of steps, the first of them, and sums of x − first and of its square, (…) each, in float64."""

    num_steps: int
    first: Tensor
    total: Tensor
    squares: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        return type(self)(self.num_steps, *(tensor.to(device) for tensor in self[1:]))


def standardize(rows: Tensor, moments: Moments | None) -> tuple[Tensor, Moments]:
    """Return rows (n, …) with zero mean and unit deviation over the steps before each, and the moments after them.

    A feature that has not varied so far is 0; the first step of a stream is 0 altogether.

    Raises:
        ValueError: If the rows are whole numbers.
    """
    if not rows.is_floating_point():
        raise ValueError(f"x must be floating-point numbers with standardize=True, got {rows.dtype}.")
    exact = rows.double()
    if moments is None:
        moments = Moments(0, exact[0], torch.zeros_like(exact[0]), torch.zeros_like(exact[0]))
    offsets = exact - moments.first
    totals = torch.cat([moments.total.unsqueeze(0), offsets]).cumsum(0)  # (n + 1, …): before each row, and after all
    squares = torch.cat([moments.squares.unsqueeze(0), offsets.square()]).cumsum(0)
    counts = torch.arange(moments.num_steps, moments.num_steps + len(rows), device=rows.device).clamp(min=1)
    counts = counts.view(-1, *[1] * (rows.dim() - 1))
    mean, mean_square = totals[:-1] / counts, squares[:-1] / counts
    variance = mean_square - mean.square()
    varies = variance > ROUNDING * mean_square
    scaled = torch.where(varies, (offsets - mean) / torch.where(varies, variance, 1.0).sqrt(), 0.0)
    after = Moments(moments.num_steps + len(rows), moments.first, totals[-1].clone(), squares[-1].clone())
    return scaled.to(rows.dtype), after
