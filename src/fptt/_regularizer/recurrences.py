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
goes nine times. Its numbers are the same to the last bit, so that it never matters which of them ran.
"""

import ctypes
import logging
import sys
from array import array
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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

    `paper`: (α/2) ‖W − W̄ − λ/(2α)‖².  `released`: (μα/2) ‖W − W̄‖² − ⟨λ, W⟩.
    """
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


def penalty_gradients(
    group: Parameters, *, form: str, mu: float, machine_code: "MachineCode | None" = None
) -> list[Tensor]:
    """Return ∇R of every parameter, as new tensors; the twin of `penalty_gradient`."""
    if machine_code is not None:
        gradients = [torch.empty_like(param) for param in group.params]
        machine_code.penalize(gradients, mu * group.alpha, -DUAL_WEIGHTS[form])
        return gradients
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


def advance_(
    group: Parameters,
    penalty_gradients: list[Tensor] | None,
    *,
    beta: float,
    machine_code: "MachineCode | None" = None,
) -> None:
    """Take ∇R off every W where it is given, then set λ to λ⁺ and W̄ to W̄⁺, in place."""
    if machine_code is not None and machine_code.advance_(penalty_gradients, -group.alpha, beta, -beta / group.alpha):
        return
    if penalty_gradients is not None:
        torch._foreach_sub_(group.params, penalty_gradients)
    advance_duals_(group)
    advance_averages_(group, beta=beta)


# -- the machine code --------------------------------------------------------------------------------------------------


class MachineCode:
    """One step of a group by machine code: the library, and where the tensors lie.

    For parameters, averages and duals on a processor that lie without gaps. Not before Inductor is loaded, as by the
    layers of `fptt.nn`, the compiled engine or `torch.compile`: to import it takes two seconds, for which the training
    of a small model should not wait. What is left is a second of compiling, once on a machine.
    """

    def __init__(self, library: Any, group: Parameters) -> None:
        self._library, self._group = library, group
        self._dtype = group.params[0].dtype
        self._sizes = [param.numel() for param in group.params]
        self._params = self._addresses(group.params)
        self._state = [self._addresses(tensors) for tensors in (group.averages, group.duals)]

    @classmethod
    def of(cls, group: Parameters) -> "MachineCode | None":
        """Return it for a group, or None if that does not suit or there is no machine code."""
        first = group.params[0]
        if "torch._inductor.codecache" not in sys.modules or not first.is_cpu or first.dtype not in DTYPES:
            return None
        if torch.compiler.is_compiling() or (library := _library()) is None:
            return None
        self = cls(library, group)
        return self if self._params and all(self._state) else None

    def penalize(self, gradients: list[Tensor], pull: float, of_dual: float) -> None:
        """Write ∇R = pull (W − W̄) + of_dual λ into new tensors."""
        self._library.fptt_penalize(*self._arguments(self._params, gradients), pull, of_dual)

    def advance_(self, penalty_gradients: list[Tensor] | None, to_dual: float, beta: float, of_dual: float) -> bool:
        """Make the second pass, if the parameters suit as they did before the optimizer's step; return whether."""
        group = self._group
        params = self._addresses(group.params)
        if not params:
            return False
        arguments = self._arguments(params, penalty_gradients)
        self._library.fptt_advance(*arguments, penalty_gradients is not None, to_dual, beta, of_dual)
        # as torch's operations do: a backward pass that has kept one of them must not take it for what it was
        torch.autograd.graph.increment_version(group.params + group.averages + group.duals)
        return True

    def _addresses(self, tensors: list[Tensor]) -> list[int]:
        """Return where tensors lie; nothing if one of them is not plain, or has another size than at first."""
        dtype = self._dtype
        for tensor, size in zip(tensors, self._sizes, strict=True):
            is_plain = type(tensor) in PLAIN and tensor.dtype is dtype and tensor.is_cpu
            if not is_plain or not tensor.is_contiguous() or tensor.numel() != size:
                return []
        return [tensor.data_ptr() for tensor in tensors]

    def _arguments(self, params: list[int], gradients: list[Tensor] | None) -> tuple[bytes, int, int, bool]:
        count = len(params)
        penalties = [0] * count if gradients is None else [gradient.data_ptr() for gradient in gradients]
        table = array("Q", [*self._sizes, *params, *self._state[0], *self._state[1], *penalties])
        return table.tobytes(), count, torch.get_num_threads(), self._dtype is torch.float64


@cache
def _library() -> Any:
    """Return the machine code, compiled if it is not on the disk; None where that fails, or torch rounds otherwise."""
    if sys.platform == "win32":
        return None  # its compiler has other words for attributes
    source = files("fptt._regularizer").joinpath("recurrences.cpp").read_text(encoding="utf-8")
    try:
        from torch._inductor.codecache import CppCodeCache  # knows the compiler, and where to keep what it made

        library: Any = CppCodeCache.load(source, extra_flags=("-ffp-contract=off",), needs_vec_isa=False)
    except Exception as error:  # no compiler, one that is too old, a disk that must not run code: all is well without
        LOGGER.info("the regularizer runs by torch, since recurrences.cpp could not be compiled: %s", error)
        return None
    integer, number = ctypes.c_int64, ctypes.c_double
    library.fptt_penalize.argtypes = [ctypes.c_char_p, *[integer] * 3, *[number] * 2]
    library.fptt_advance.argtypes = [ctypes.c_char_p, *[integer] * 4, *[number] * 3]
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
    for chosen in (library, None):
        # no random numbers, which would be missing in the training
        params, averages, duals = (
            [torch.arange(offset, offset + 333.0, dtype=dtype).sin()] for offset in (1, 500, 900)
        )
        group = Parameters(params, averages, duals, 0.3)
        machine_code = None if chosen is None else MachineCode(chosen, group)
        gradients = penalty_gradients(group, form="paper", mu=1.0, machine_code=machine_code)
        advance_(group, gradients, beta=beta, machine_code=machine_code)
        results.append(torch.cat([*gradients, *params, *averages, *duals]))
    return torch.equal(*results)
