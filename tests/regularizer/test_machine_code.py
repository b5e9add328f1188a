"""The regularizer's machine code: the bits of torch's kernels, and torch's kernels wherever it does not suit."""

import copy
import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch._inductor.codecache  # noqa: F401  # the machine code waits for it
from torch import Tensor, nn

import fptt
from fptt._regularizer import recurrences
from fptt.nn import native

# not where the machine code itself is missing, as it is if its numbers are wrong
pytestmark = pytest.mark.skipif(
    native._library() is None or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"},
    reason="no C++ compiler, or kernels of torch that round otherwise",
)

SIZES = (1, 7, 10, 33, 512, 1023, 70_001)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the machine code."""
    library, made = recurrences._library(), []

    class Library:
        @staticmethod
        def fptt_penalize(*arguments: Any) -> None:
            made.append("penalize")
            library.fptt_penalize(*arguments)

        @staticmethod
        def fptt_advance(*arguments: Any) -> None:
            made.append("advance")
            library.fptt_advance(*arguments)

    monkeypatch.setattr(recurrences, "_library", Library)
    return made


class Steps:
    """Parameters, and steps of an optimizer that moves them at random, the same for equal seeds."""

    def __init__(self, params: list[nn.Parameter], **settings: Any) -> None:
        self.params, self.regularizer = params, fptt.DynamicRegularizer(params, **settings)
        self.random = torch.Generator().manual_seed(5)

    @classmethod
    def of_sizes(cls, dtype: torch.dtype, sizes: tuple[int, ...] = SIZES, **settings: Any) -> "Steps":
        random = torch.Generator().manual_seed(4)
        # views of one tensor, which begin in the middle of a vector
        flat = torch.randn(sum(sizes), generator=random, dtype=dtype)
        return cls([nn.Parameter(part) for part in flat.split(list(sizes))], **settings)

    def step(self) -> None:
        for param in self.params:
            param.grad = torch.randn(param.shape, generator=self.random, dtype=param.dtype)
        self.regularizer.add_penalty_grad_()
        with torch.no_grad():
            for param in self.params:
                param.sub_(param.grad, alpha=0.1)  # pyright: ignore[reportArgumentType]
        self.regularizer.update()

    def numbers(self) -> list[Tensor]:
        """Return weights, gradients, averages and duals."""
        gradients = [param.grad for param in self.params if param.grad is not None]
        state = [tensor for entry in self.regularizer.state.values() for tensor in entry]
        return [tensor.detach().clone() for tensor in (*self.params, *gradients, *state)]


def by_torch(monkeypatch: pytest.MonkeyPatch, steps: Steps, count: int = 4) -> list[Tensor]:
    """Return the numbers after some steps without machine code."""
    with monkeypatch.context() as patch:
        patch.setattr(recurrences, "_library", lambda: None)
        for _ in range(count):
            steps.step()
    return steps.numbers()


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(itertools.starmap(torch.equal, zip(found, expected, strict=True)))


STRENGTHS = ((0.1, 0.5), (0.37, 0.2), (1.3, 0.77), (0.033, 1.0), (0.7, 0.49999999999))
FORMS = ({"form": "paper"}, {"form": "released", "mu": 1.7})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coupling", ["decoupled", "coupled"])
def test_bits_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, calls: list[str], dtype: torch.dtype, coupling: str
) -> None:
    for form, (alpha, beta) in itertools.product(FORMS, STRENGTHS):
        settings = {"coupling": coupling, "alpha": alpha, "beta": beta, **form}
        calls.clear()
        expected = by_torch(monkeypatch, Steps.of_sizes(dtype, **settings))
        assert not calls
        steps = Steps.of_sizes(dtype, **settings)
        for _ in range(4):
            steps.step()
        assert calls == ["penalize", "advance"] * 4
        assert_same_bits(steps.numbers(), expected)


@pytest.mark.parametrize(
    "settings",
    [{"num_duals": 3}, {"coupling": "coupled", "previous_gradient": "recomputed"}],
    ids=["three duals", "recomputed gradient"],
)
def test_what_it_does_not_advance_has_its_penalty(
    monkeypatch: pytest.MonkeyPatch, calls: list[str], settings: dict[str, Any]
) -> None:
    results = []
    for chosen in ("torch", "machine code"):
        steps = Steps.of_sizes(torch.float32, **settings)
        with monkeypatch.context() as patch:
            if chosen == "torch":
                patch.setattr(recurrences, "_library", lambda: None)
            for number in range(5):
                steps.regularizer.turn = number % steps.regularizer.num_duals
                steps.step()
        results.append(steps.numbers())
    assert calls == ["penalize"] * 5
    assert_same_bits(*results)


@pytest.mark.parametrize("coupling", ["decoupled", "coupled"])
def test_it_may_change_over_in_the_middle(monkeypatch: pytest.MonkeyPatch, coupling: Any) -> None:
    expected = by_torch(monkeypatch, Steps.of_sizes(torch.float32, coupling=coupling))
    steps = Steps.of_sizes(torch.float32, coupling=coupling)
    by_torch(monkeypatch, steps, 1)
    steps.step()
    by_torch(monkeypatch, steps, 1)
    steps.step()
    assert_same_bits(steps.numbers(), expected)


def test_several_threads_give_the_same(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_torch(monkeypatch, Steps.of_sizes(torch.float32))
    torch.set_num_threads(3)
    steps = Steps.of_sizes(torch.float32)
    for _ in range(4):
        steps.step()
    assert calls == ["penalize", "advance"] * 4
    assert_same_bits(steps.numbers(), expected)


def exchange_data(steps: Steps) -> None:
    for param in steps.params:
        param.data = param.data.clone()


def exchange_state(steps: Steps) -> None:
    for entry in steps.regularizer.state.values():
        entry.average.data, entry.dual.data = entry.average.data.clone(), entry.dual.data.clone()


def load(steps: Steps) -> None:
    steps.regularizer.load_state_dict(copy.deepcopy(steps.regularizer.state_dict()))


def copy_all(steps: Steps) -> None:
    steps.params, steps.regularizer = copy.deepcopy((steps.params, steps.regularizer))


def strengthen(steps: Steps) -> None:
    steps.regularizer.param_groups[0]["fptt_alpha"] = 0.3


def begin_again(steps: Steps) -> None:
    steps.regularizer.reset()


@pytest.mark.parametrize("change", [exchange_data, exchange_state, load, copy_all, strengthen, begin_again])
def test_tensors_may_change_between_steps(monkeypatch: pytest.MonkeyPatch, calls: list[str], change: Any) -> None:
    results = []
    for chosen in ("torch", "machine code"):
        with monkeypatch.context() as patch:
            if chosen == "torch":
                patch.setattr(recurrences, "_library", lambda: None)
            steps = Steps.of_sizes(torch.float32)
            for _ in range(2):
                steps.step()
            held = [param.data for param in steps.params]
            change(steps)
            for _ in range(2):
                steps.step()
            results.append([*steps.numbers(), *held])
    assert calls == ["penalize", "advance"] * 4
    assert_same_bits(*results)


def test_parameters_may_change_inside_the_optimizers_step(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """A layout that the machine code does not take comes up between both passes; the next step begins with it."""
    results = []
    for chosen in ("torch", "machine code"):
        with monkeypatch.context() as patch:
            if chosen == "torch":
                patch.setattr(recurrences, "_library", lambda: None)
            torch.manual_seed(1)
            param = nn.Parameter(torch.randn(5, 3))
            regularizer = fptt.DynamicRegularizer([param])
            for _ in range(3):
                param.grad = torch.randn(5, 3)
                regularizer.add_penalty_grad_()
                param.data = (param.data - param.grad).t().contiguous().t()
                regularizer.update()
            results.append([param.detach(), *regularizer.state[param]])
    assert calls == ["penalize"]
    assert_same_bits(*results)


class Subclass(Tensor):
    """A tensor that may be anything."""


@pytest.mark.parametrize(
    "param",
    [
        nn.Parameter(torch.randn(6, 4).t()),
        nn.Parameter(torch.randn(3, 2, dtype=torch.bfloat16)),
        nn.Parameter(torch.randn(3, 2, dtype=torch.complex64)),
        torch.randn(4).as_subclass(Subclass).requires_grad_(),
    ],
    ids=["transposed", "bfloat16", "complex", "subclass"],
)
def test_other_tensors_are_left_to_torch(calls: list[str], param: Any) -> None:
    regularizer = fptt.DynamicRegularizer([param])
    for _ in range(2):
        param.grad = torch.ones_like(param)
        regularizer.add_penalty_grad_()
        with torch.no_grad():
            param.sub_(param.grad)
        regularizer.update()
    assert not calls
    assert regularizer.state[param].dual.abs().min() > 0


def test_a_backward_pass_sees_that_the_dual_has_changed() -> None:
    steps = Steps.of_sizes(torch.float32, form="released")
    steps.step()
    penalty = steps.regularizer.penalty()  # keeps λ for its gradient
    dual = steps.regularizer.state[steps.params[0]].dual
    before = dual._version
    steps.step()
    assert dual._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


# -- where there is none -----------------------------------------------------------------------------------------------


def test_without_a_compiler_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import CppCodeCache

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CppCodeCache, "load", fail)
    assert recurrences._library.__wrapped__() is None


def python(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return run.stdout.strip()


def test_kernels_of_torch_that_round_otherwise_are_kept() -> None:
    """Those for old processors have no instruction for a product and a sum."""
    code = "from fptt._regularizer import recurrences; print(recurrences._library())"
    assert python(code, ATEN_CPU_CAPABILITY="default") == "None"


def test_nobody_waits_for_a_compiler_that_is_not_there_yet() -> None:
    code = (
        "import sys, torch, fptt; model = torch.nn.Linear(2, 1); model(torch.ones(2)).backward(); "
        "regularizer = fptt.DynamicRegularizer(model.parameters()); regularizer.add_penalty_grad_(); "
        "regularizer.update(); print('torch._inductor.codecache' in sys.modules)"
    )
    assert python(code) == "False"
