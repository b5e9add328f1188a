"""The recurrences of FPTT: each equation as a pure function, the reference, and beside it the twin that training runs.

Kag & Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through Time", ICML 2021, Algorithm 1.
`W` is a parameter, `W̄` its running average, `λ` its dual variable (an estimate of the previous gradient), `α` the
strength of the penalty:

    R(W)  = (α/2) ‖W − W̄ − λ/(2α)‖²              penalty
    λ⁺    = λ − α (W⁺ − W̄)                       dual
    W̄⁺    = (1 − β) W̄ + β W⁺ − (β/α) λ⁺          average, β = ½ in the paper

A *decoupled* penalty uses the same functions with γ = ηα for α and l = ηλ for λ: every term is then in the unit of a
weight update instead of a gradient.

The pure functions also are what the compiled engine traces. The twins have plural names and take lists: one kernel
over all parameters at once instead of one each, since a step of FPTT is made for every chunk. On a processor machine
code (recurrences.cpp) goes over all of them once before the optimizer's step and once after it, where `torch._foreach`
goes eight times. Its numbers are the same to the last bit, so that it never matters which of them ran.
"""

import ctypes
import logging
import operator
import sys
from array import array
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fptt.nn.machine_code import load_machine_code

LOGGER = logging.getLogger("fptt")

Strength = float | Tensor
"""α, a number or a scalar tensor."""

DUAL_WEIGHTS = {"paper": 0.5, "released": 1.0}
"""`c`, the weight of the dual in the penalty gradient: ½ in the printed formula, 1 in the authors' code."""

DTYPES = (torch.float32, torch.float64)
"""What the machine code computes in."""

PLAIN = (Tensor, nn.Parameter)
"""Tensors that are what their address holds: a subclass may be anything."""


class Parameters(NamedTuple):
    """Parameters of one strength, each with its average and its dual."""

    params: list[Tensor]
    averages: list[Tensor]
    duals: list[Tensor]
    alpha: float


def penalty(param: Tensor, average: Tensor, dual: Tensor, *, alpha: Strength, form: str, mu: float = 1.0) -> Tensor:
    """Return the penalty `R` of one parameter, differentiable in `param`.

    `paper`: (α/2) ‖W − W̄ − λ/(2α)‖².  `released`: (μα/2) ‖W − W̄‖² − ⟨λ, W⟩. A complex number is two real ones.
    """
    if param.is_complex():  # ‖z‖² is the sum of |z|², not of z², and ⟨λ, W⟩ the real part of the sum of λ* W
        param, average, dual = map(torch.view_as_real, (param, average, dual))
    offset = param - average
    if form == "paper":
        return alpha / 2 * (offset - dual / (2 * alpha)).square().sum()
    # the square of the printed form would halve the dual: the released code adds its full product with W instead
    return mu * alpha / 2 * offset.square().sum() - (dual * param).sum()


def penalty_gradient(
    param: Tensor, average: Tensor, dual: Tensor, *, alpha: Strength, form: str, mu: float = 1.0
) -> Tensor:
    """Return ∇R = μα (W − W̄) − c λ, with `c` from `DUAL_WEIGHTS` and μ = 1 in the paper."""
    return mu * alpha * (param - average) - DUAL_WEIGHTS[form] * dual


def penalty_gradients(group: Parameters, *, form: str, mu: float) -> list[Tensor]:
    """Return ∇R of every parameter, as new tensors; the twin of `penalty_gradient`."""
    gradients = list(torch._foreach_sub(group.params, group.averages))
    torch._foreach_mul_(gradients, mu * group.alpha)
    torch._foreach_add_(gradients, group.duals, alpha=-DUAL_WEIGHTS[form])
    return gradients


def advance_dual(dual: Tensor, param: Tensor, average: Tensor, *, alpha: Strength) -> Tensor:
    """Return λ⁺ = λ − α (W⁺ − W̄), from the weights after the step and the average before it."""
    return dual - alpha * (param - average)


def advance_duals_(group: Parameters) -> None:
    """Set every λ to λ⁺ in place, before the averages are advanced; the twin of `advance_dual`."""
    torch._foreach_add_(group.duals, torch._foreach_sub(group.params, group.averages), alpha=-group.alpha)


def advance_average(average: Tensor, param: Tensor, dual: Tensor, *, alpha: Strength, beta: float) -> Tensor:
    """Return W̄⁺ = (1 − β) W̄ + β W⁺ − (β/α) λ⁺, from the dual (or the recomputed gradient) after the step."""
    return (1 - beta) * average + beta * param - (beta / alpha) * dual


def advance_averages_(group: Parameters, *, beta: float) -> None:
    """Set every W̄ to W̄⁺ in place, when the duals have been advanced; the twin of `advance_average`."""
    torch._foreach_lerp_(group.averages, group.params, beta)  # (1 − β) W̄ + β W⁺
    torch._foreach_add_(group.averages, group.duals, alpha=-beta / group.alpha)


# -- the machine code --------------------------------------------------------------------------------------------------


class MachineCode:
    """Both passes over a group by machine code, which knows where its tensors lie.

    Args:
        library: The machine code.
        group: Parameters, averages and duals.
    """

    def __init__(self, library: Any, group: Parameters) -> None:
        self._library, self._group = library, group
        self._dtype = group.params[0].dtype
        self._sizes = [param.numel() for param in group.params]
        self._state = group.averages + group.duals
        self._state_addresses = self._addresses(group.averages) + self._addresses(group.duals)

    @classmethod
    def of(cls, group: Parameters, previous: "MachineCode | None") -> "MachineCode | None":
        """Return it for a group, or None if that does not suit, or where there is no machine code.

        It takes parameters, averages and duals on a processor that lie without gaps. And it waits until Inductor is
        loaded, as by the layers of `fptt.nn`, the compiled engine or `torch.compile`: to import it takes two seconds,
        for which the training of a small model should not wait. What is left is a second of compiling, once on a
        machine.

        Args:
            group: As above.
            previous: What was returned for the step before, so that not everything is looked at again.
        """
        first = group.params[0]
        if "torch._inductor.codecache" not in sys.modules or not first.is_cpu or first.dtype not in DTYPES:
            return None
        if torch.compiler.is_compiling() or (library := _library()) is None:
            return None
        if previous is not None and previous._is_for(group):
            return previous
        self = cls(library, group)
        return self if len(self._state_addresses) == 2 * len(group.params) else None

    def _is_for(self, group: Parameters) -> bool:
        """Return whether a group has the same tensors as this one, averages and duals at the same place."""
        state = group.averages + group.duals
        return (
            len(state) == len(self._state)
            and all(map(operator.is_, state, self._state))
            and all(map(operator.is_, group.params, self._group.params))
            and [tensor.data_ptr() for tensor in state] == self._state_addresses
            and self._group.alpha == group.alpha
        )

    def penalize(self, *, form: str, mu: float) -> Tensor | None:
        """Return ∇R of all parameters as one new tensor, or None if a parameter does not suit."""
        penalties = torch.empty(sum(self._sizes), dtype=self._dtype, device="cpu")
        arguments = self._arguments(penalties)
        if arguments is None:
            return None
        self._library.fptt_penalize(*arguments, mu * self._group.alpha, -DUAL_WEIGHTS[form])
        return penalties

    def split(self, penalties: Tensor) -> list[Tensor]:
        """Return ∇R of every parameter, as `penalty_gradients` does."""
        parts = penalties.split(self._sizes)
        return [part.view(param.shape) for part, param in zip(parts, self._group.params, strict=True)]

    def advance_(self, penalties: Tensor, *, is_decoupled: bool, beta: float) -> bool:
        """Take ∇R off every W if decoupled, advance λ and W̄; return False, and do nothing, if one does not suit."""
        alpha = self._group.alpha
        arguments = self._arguments(penalties)
        if arguments is None:
            return False
        self._library.fptt_advance(*arguments, is_decoupled, -alpha, beta, -beta / alpha)
        # as torch does: a backward pass that has kept one must not take it for what it was; W the optimizer has told
        torch.autograd.graph.increment_version(self._state)
        return True

    def _arguments(self, penalties: Tensor) -> tuple[bytes, int, int, int, bool] | None:
        """Return the first arguments of both functions, None if a parameter does not suit."""
        params = self._addresses(self._group.params)
        if not params:
            return None
        table = array("Q", self._sizes + params + self._state_addresses).tobytes()
        return table, penalties.data_ptr(), len(params), torch.get_num_threads(), self._dtype is torch.float64

    def _addresses(self, tensors: list[Tensor]) -> list[int]:
        """Return where tensors lie; nothing if one of them is not plain, or has another size than at first."""
        dtype = self._dtype
        for tensor, size in zip(tensors, self._sizes, strict=True):
            is_plain = type(tensor) in PLAIN and tensor.dtype is dtype and tensor.is_cpu
            if not is_plain or not tensor.is_contiguous() or tensor.numel() != size:
                return []
        return [tensor.data_ptr() for tensor in tensors]


@cache
def _library() -> Any:
    """Return the machine code; None where there is none, or where torch rounds otherwise."""
    library = load_machine_code("fptt._regularizer", "recurrences.cpp", "-ffp-contract=off")
    if library is None:
        return None
    integer, number = ctypes.c_int64, ctypes.c_double
    library.fptt_penalize.argtypes = [ctypes.c_char_p, ctypes.c_void_p, *[integer] * 3, *[number] * 2]
    library.fptt_advance.argtypes = [ctypes.c_char_p, ctypes.c_void_p, *[integer] * 4, *[number] * 3]
    library.fptt_penalize.restype = library.fptt_advance.restype = None
    if not all(_has_same_bits(library, dtype, beta) for dtype in DTYPES for beta in (0.3, 0.5)):
        LOGGER.info("the regularizer runs by torch, which rounds otherwise than recurrences.cpp on this processor")
        return None
    return library


@torch.no_grad()
def _has_same_bits(library: Any, dtype: torch.dtype, beta: float) -> bool:
    """Return whether the machine code has the bits of torch, whose kernels are not the same on all processors.

    On numbers enough that each has another chance to be rounded otherwise, in whole vectors and in what is left of one.
    """
    results = []
    for by_torch in (True, False):
        # no random numbers, which would be missing in the training
        params, averages, duals = (
            [torch.arange(offset, offset + 333.0, dtype=dtype).sin()] for offset in (1, 500, 900)
        )
        group = Parameters(params, averages, duals, 0.3)
        if by_torch:
            gradients = penalty_gradients(group, form="paper", mu=1.0)
            torch._foreach_sub_(params, gradients)
            advance_duals_(group)
            advance_averages_(group, beta=beta)
        else:
            code = MachineCode(library, group)
            penalties = code.penalize(form="paper", mu=1.0)
            assert penalties is not None
            code.advance_(penalties, is_decoupled=True, beta=beta)
            gradients = [penalties]
        results.append(torch.cat([*gradients, *params, *averages, *duals]))
    return torch.equal(*results)
