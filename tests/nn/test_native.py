"""Machine code of our own in the place of `torch.nn`'s layers: the same numbers, whoever calls it how often."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import fptt
from fptt._sequence import flatten_state
from fptt.nn import models, native
from fptt.nn.cells import CELLS
from fptt.nn.models import plain_cells
from tests.engine.compiled.agreement import assert_equal_memory, make_pair, train_both

LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
every_layer = pytest.mark.parametrize("cell", LAYERS)
by_call = pytest.mark.parametrize("as_operator", [False, True], ids=["function", "operator"])

pytestmark = pytest.mark.skipif(native._library() is None, reason="there is no C++ compiler")
in_bfloat16 = pytest.mark.skipif(
    native._library() is None or not native._library().has_bfloat16(), reason="no products in bfloat16 here"
)

# (T, B, D, H): one step, one row, more rows than registers hold, widths that no vector divides, wide and narrow inputs
SHAPES = [(7, 13, 1, 20), (1, 1, 3, 16), (5, 4, 7, 34), (3, 2, 2, 128), (3, 9, 40, 48), (4, 17, 4, 3), (2, 70, 1, 130)]


class Case:
    """A layer of `torch.nn` and a chunk for it, the state in rows (B, H) as `run_native` takes it."""

    def __init__(self, cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> None:
        steps, batch, width, size = shape
        self.layer = LAYERS[cell](width, size, dtype=dtype)
        self.inputs = torch.randn(steps, batch, width, dtype=dtype, requires_grad=True)
        count = 2 if cell == "lstm" else 1
        self.state = [torch.randn(batch, size, dtype=dtype, requires_grad=True) for _ in range(count)]
        self.weights = list(self.layer.parameters())
        self.leaves = [self.inputs, *self.state, *self.weights]

    def by_torch(self) -> list[Tensor]:
        states = [tensor.unsqueeze(0) for tensor in self.state]
        outputs, final = self.layer(self.inputs, tuple(states) if len(states) > 1 else states[0])
        return [outputs, *(tensor[0] for tensor in (final if len(states) > 1 else [final]))]

    def by_native(self, inputs: Tensor | None = None, *, as_operator: bool = False) -> list[Tensor]:
        gates = CELLS[self.layer.mode][1]
        inputs = self.inputs if inputs is None else inputs
        outputs, final = native.run_native(inputs, self.weights, self.state, gates, as_operator=as_operator)
        return [outputs, *final]

    def gradients(self, results: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
        """Return the gradients of a weighted sum of all results with respect to all leaves."""
        generator = torch.Generator().manual_seed(1)
        towards = [torch.randn(result.shape, generator=generator).to(result) for result in results]
        return torch.autograd.grad(results, self.leaves, towards, **options)


def assert_close(ones: Any, others: Any, tolerance: float) -> None:
    for one, other in zip(ones, others, strict=True):
        scale = max(other.abs().max().item(), 1e-30)
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=tolerance)


@every_layer
@by_call
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_torch(cell: str, as_operator: bool, shape: Any) -> None:
    case = Case(cell, shape)
    results = case.by_native(as_operator=as_operator)
    assert_close(results, case.by_torch(), 1e-12)
    assert_close(case.gradients(results), case.gradients(case.by_torch()), 1e-11)


@every_layer
@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (3, 4, 1, 5), (3, 2, 6, 4)], ids=str)
def test_gradients_are_the_limits_of_differences(cell: str, shape: Any) -> None:
    case = Case(cell, shape)
    count = len(case.state)

    def run(inputs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        outputs, final = native.run_native(inputs, rest[count:], rest[:count], CELLS[case.layer.mode][1])
        return outputs, *final

    assert gradcheck(run, tuple(case.leaves))


@every_layer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_rounds_as_little_as_torch(cell: str, shape: Any) -> None:
    case = Case(cell, shape, torch.float32)
    results = case.by_native()
    assert_close(results, case.by_torch(), 2e-6)
    assert_close(case.gradients(results), case.gradients(case.by_torch()), 1e-5)


@in_bfloat16
@every_layer
@by_call
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_autocast_rounds_the_factors_of_products_and_nothing_else(cell: str, as_operator: bool, shape: Any) -> None:
    case = Case(cell, shape, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = case.by_native(as_operator=as_operator)
    assert {result.dtype for result in results} == {torch.float32}
    assert_close(results, case.by_torch(), 2e-2)  # bfloat16 has 8 bits
    gradients = case.gradients(results)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert_close(gradients, case.gradients(case.by_torch()), 3e-2)


@in_bfloat16
@every_layer
def test_gradients_of_weights_under_autocast_are_not_rounded(cell: str) -> None:
    # many rows and steps, odd in number, so that the sum over them comes in parts that are filled up with zeros
    case = Case(cell, (9, 37, 5, 34), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = case.gradients(case.by_native())
    gradients = dict(zip(("x", *"hc"[: len(case.state)], "weight_ih", "weight_hh"), gradients, strict=False))
    for name in ("weight_ih", "weight_hh"):
        assert not torch.equal(gradients[name], gradients[name].bfloat16().float())
    # a mean of 333 products whose factors are rounded to 8 bits errs by less than one of them
    assert_close(gradients.values(), case.gradients(case.by_torch())[: len(gradients)], 1.5e-2)


@in_bfloat16
def test_a_memory_under_autocast_is_not_rounded_step_by_step() -> None:
    case = Case("lstm", (300, 2, 1, 32), torch.float32)
    with torch.no_grad():
        case.layer.bias_ih_l0[32:64] = 20.0  # forgets nothing
        case.layer.bias_ih_l0[:32] = -6.0  # and takes in less than a bfloat16 number near 1 can grow by
        exact = case.by_torch()[2]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            memory = case.by_native()[2]
        assert (exact - case.state[1]).abs().max() > 0.1
        assert_close([memory], [exact], 5e-3)


@pytest.mark.parametrize("which", ["outputs", "state"])
def test_gradients_of_some_results_only(which: str) -> None:
    case = Case("lstm", (4, 3, 2, 20))
    chosen = slice(0, 1) if which == "outputs" else slice(1, 3)
    assert_close(case.gradients(case.by_native()[chosen]), case.gradients(case.by_torch()[chosen]), 1e-11)


@by_call
def test_inputs_and_state_without_a_gradient(as_operator: bool) -> None:
    case = Case("gru", (4, 3, 6, 20))
    for tensor in (case.inputs, *case.state):
        tensor.requires_grad_(False)
    case.leaves = case.weights
    assert_close(case.gradients(case.by_native(as_operator=as_operator)), case.gradients(case.by_torch()), 1e-11)


def test_expanded_gradients_and_inputs_of_any_layout() -> None:
    case = Case("lstm", (4, 3, 6, 20))
    inputs = case.inputs.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    (own,) = torch.autograd.grad(case.by_native(inputs)[0].sum(), inputs)  # the gradient of a sum is one number
    (expected,) = torch.autograd.grad(case.by_torch()[0].sum(), case.inputs)
    assert_close([own], [expected], 1e-12)


@every_layer
@by_call
def test_calls_do_not_disturb_each_other(cell: str, as_operator: bool) -> None:
    cases = [Case(cell, shape) for shape in [(5, 4, 3, 20), (2, 7, 1, 36), (5, 4, 3, 20)]]
    results = [case.by_native(as_operator=as_operator) for case in (*cases, cases[0])]
    for case, own in [*zip(cases, results[:3], strict=True), (cases[0], results[3])][::-1]:
        expected = case.gradients(case.by_torch())
        for _ in range(2):  # the graph is kept, and walked again
            assert_close(case.gradients(own, retain_graph=True), expected, 1e-11)


def test_one_chunk_after_another_is_the_whole() -> None:
    case = Case("lstm", (9, 3, 2, 20))
    first, *state = case.by_native(case.inputs[:4])
    gates = CELLS["LSTM"][1]
    second, final = native.run_native(case.inputs[4:], case.weights, state, gates)
    results = [torch.cat([first, second]), *final]
    assert_close(case.gradients(results), case.gradients(case.by_torch()), 1e-11)


def test_threads_at_once() -> None:
    cases = [Case("lstm", (6, 5, 2, 20 + 4 * number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        gradients = list(pool.map(lambda case: case.gradients(case.by_native()), cases * 5))
    for case, own in zip(cases * 5, gradients, strict=True):
        assert_close(own, case.gradients(case.by_torch()), 1e-11)


@every_layer
@pytest.mark.parametrize("batch", [1, 2, 31])
def test_as_many_threads_as_there_are(cell: str, batch: int) -> None:
    case = Case(cell, (5, batch, 7, 36))
    alone = case.by_native()
    expected = case.gradients(alone)
    torch.set_num_threads(3)
    results = case.by_native()
    assert all(map(torch.equal, results, alone))  # a row is one thread's
    assert_close(case.gradients(results), expected, 1e-12)


@every_layer
def test_without_a_gradient_the_same_numbers(cell: str) -> None:
    case = Case(cell, (5, 3, 2, 20), torch.float32)
    expected = case.by_native()
    with torch.no_grad():
        results = case.by_native()
    assert all(map(torch.equal, results, expected))
    assert not any(result.requires_grad for result in results)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bad_number_stays_one_in_its_row(cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, (3, 5, 2, 20), dtype)
    with torch.no_grad():
        case.inputs[1, 2, 0] = torch.nan
    outputs, *final = case.by_native()
    assert outputs[1:, 2].isnan().all()
    assert all(tensor[2].isnan().all() for tensor in final)
    assert torch.cat([outputs[1:, :2], outputs[1:, 3:]], 1).isfinite().all()


@every_layer
def test_large_numbers_saturate(cell: str) -> None:
    case = Case(cell, (3, 5, 2, 20), torch.float32)
    with torch.no_grad():
        case.inputs.copy_(torch.where(case.inputs > 0, 1e30, -1e30))
    assert_close(case.by_native(), case.by_torch(), 1e-6)
    assert all(gradient.isfinite().all() for gradient in case.gradients(case.by_native())[1:])


def test_small_numbers_keep_their_digits() -> None:
    case = Case("rnn", (1, 1, 1, 16), torch.float32)
    with torch.no_grad():
        for tensor in case.leaves:
            tensor.mul_(1e-6)
    one, other = case.by_native()[0], case.by_torch()[0]
    torch.testing.assert_close(one, other, rtol=2e-6, atol=0)


def test_the_operator_is_as_it_says() -> None:
    case = Case("lstm", (3, 4, 3, 20), torch.float32)
    torch.library.opcheck(native._layer, (case.inputs, *case.weights, *case.state, 4, False, True))


@by_call
def test_a_second_derivative_is_refused(as_operator: bool) -> None:
    case = Case("lstm", (3, 4, 3, 20))
    with pytest.raises(RuntimeError, match="kernel='plain'"):
        case.gradients(case.by_native(as_operator=as_operator), create_graph=True)


# -- in the models -----------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_model_runs_it_and_has_the_numbers_of_torch(cell: str, batch_first: bool) -> None:
    model = models.CELLS[cell](3, 32, 5, num_layers=2, readout_sizes=[8], batch_first=batch_first)
    inputs = torch.randn(4, 4, 3)
    results = []
    for expected in ("native", "torch"):
        assert model.kernel_for(inputs) == expected
        state = fptt.detach_state(model(torch.ones(4, 4, 3))[1])
        outputs, state = model(inputs, state)
        loss = outputs.square().sum() + sum(tensor.sum() for tensor in flatten_state(state))
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
        model.rnn.register_forward_hook(lambda *_: None)  # who wants to see the layer's calls gets them
    assert_close(results[0], results[1], 1e-5)


@every_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_read_out_of_the_last_step_only(cell: str, batch_first: bool) -> None:
    model = models.CELLS[cell](3, 32, 5, num_layers=2, last_only=True, batch_first=batch_first)
    inputs = torch.randn(4, 6, 3)
    results = []
    for expected in ("native", "torch"):
        assert model.kernel_for(inputs) == expected
        outputs, _ = model(inputs)
        assert outputs.shape == ((4, 1, 5) if batch_first else (1, 6, 5))
        results.append([outputs, *torch.autograd.grad(outputs.square().sum(), list(model.parameters()))])
        model.rnn.register_forward_hook(lambda *_: None)
    assert_close(results[0], results[1], 1e-5)


@every_layer
def test_dropout_between_layers(cell: str) -> None:
    model = models.CELLS[cell](3, 32, num_layers=2, dropout=0.999999)
    assert model.kernel_for(torch.zeros(2, 1, 3)) == "native"
    outputs = model(torch.randn(4, 4, 3))[0]
    nothing = model(torch.randn(4, 4, 3))[0]
    torch.testing.assert_close(outputs, nothing)  # the second layer hears nothing
    model.eval()
    assert not torch.allclose(model(torch.randn(4, 4, 3))[0], outputs)


def kernel(inputs: Tensor | None = None, **options: Any) -> str:
    options = {"input_size": 3, "hidden_size": 32, **options}
    return fptt.nn.LSTM(**options).kernel_for(torch.zeros(4, 2, 3) if inputs is None else inputs)


@every_layer
def test_the_mean_of_the_gradients_of_single_sequences_is_that_of_the_batch(cell: str) -> None:
    """By the transforms of `torch.func`, which do not see into machine code."""
    model, inputs = models.CELLS[cell](3, 32, 2), torch.randn(7, 4, 3)
    assert model.kernel_for(inputs) == "native"

    def loss(weights: dict[str, Tensor], sequence: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (sequence[:, None],))[0].square().mean()

    weights: dict[str, Tensor] = dict(model.named_parameters())
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, inputs)
    model(inputs)[0].square().mean().backward()
    for name, weight in weights.items():
        torch.testing.assert_close(gradients[name].mean(0), weight.grad)


def test_which_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel() == "native"
    assert kernel(hidden_size=31) == "torch"
    assert kernel(hidden_size=513) == "torch"
    assert kernel(torch.zeros(4, 2, 513), input_size=513) == "torch"
    assert kernel(kernel="plain") == "plain"
    assert kernel(kernel="torch") == "torch"
    assert fptt.nn.LSTM(3, 32).double().kernel_for(torch.zeros(4, 2, 3).double()) == "torch"
    assert fptt.nn.LSTM(3, 32).to("meta").kernel_for(torch.zeros(4, 2, 3, device="meta")) == "torch"
    with torch.autocast("cpu", dtype=torch.float16):
        assert kernel() == "torch"
    with plain_cells():
        assert kernel(torch.zeros(12, 2, 3)) == "native"
        # few steps are cheaper written out, of a small batch above all
        for batch, shortest in ((31, 12), (32, 7), (127, 7), (128, 4)):
            assert kernel(torch.zeros(shortest, batch, 3)) == "native"
            assert kernel(torch.zeros(shortest - 1, batch, 3)) == "plain"
        assert kernel(torch.zeros(12, 2, 3), hidden_size=31) == "plain"
        assert kernel(torch.zeros(12, 2, 3), kernel="torch") == "plain"
    for options in ({"bidirectional": True}, {"proj_size": 4}, {"bias": False}):
        assert not native.suits_native(nn.LSTM(3, 32, **options), torch.zeros(4, 2, 3))
    assert not native.suits_native(nn.RNN(3, 32, nonlinearity="relu"), torch.zeros(4, 2, 3))
    monkeypatch.setattr(native, "_library", lambda: None)  # as without a compiler
    assert kernel() == "torch"


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_autocast_asks_the_processor(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    class Library:
        @staticmethod
        def has_bfloat16() -> int:
            return has_bfloat16

    monkeypatch.setattr(native, "_library", Library)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel() == ("native" if has_bfloat16 else "torch")


def test_without_a_compiler_the_layers_of_torch_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import CppCodeCache

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CppCodeCache, "load", fail)
    assert native._library.__wrapped__() is None


def test_importing_compiles_nothing() -> None:
    code = "import sys, fptt; sys.exit('torch._inductor.codecache' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- in both engines ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_ways", "float64")
@every_layer
def test_a_compiled_step_with_it_is_the_eager_one(monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    monkeypatch.setattr(native, "DTYPES", (torch.float64,))
    calls: list[int] = []
    run = native._run
    monkeypatch.setattr(native, "_run", lambda *gates, x, **rest: (calls.append(len(x)), run(*gates, x=x, **rest)))
    model = models.CELLS[cell](2, 32, 4, num_layers=2, last_only=True)
    methods = make_pair(model, "adam", max_norm=0.5, alpha=0.3, num_chunks=2)
    for size in (3, 2, 3):
        train_both(list(methods), torch.randn(24, size, 2), torch.randint(4, (size,)))
    assert_equal_memory(list(methods), 1e-9)
    assert set(calls) == {12}


@in_bfloat16
@pytest.mark.usefixtures("both_ways")
def test_both_engines_in_bfloat16() -> None:
    methods = make_pair(fptt.nn.LSTM(2, 32, 4, last_only=True), "adam", max_norm=0.5, alpha=0.3, num_chunks=2)
    inputs, targets = torch.randn(24, 3, 2), torch.randint(4, (3,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [method.train_batch(inputs, targets) for method in methods]
    assert {tensor.dtype for result in results for tensor in result.state} == {torch.float32}
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-mno-amx-bf16", "-mno-avx512f"])
def test_the_code_for_processors_with_fewer_instructions(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """Bfloat16 by vectors instead of tiles; and all of it by vectors of eight numbers, without bfloat16."""
    library = native._library(flag)
    if library is None:
        pytest.skip(f"the compiler does not know {flag}")
    monkeypatch.setattr(native, "_library", lambda: library)
    for cell in LAYERS:
        for shape in SHAPES:
            case = Case(cell, shape)
            results = case.by_native()
            assert_close(results, case.by_torch(), 1e-12)
            assert_close(case.gradients(results), case.gradients(case.by_torch()), 1e-11)
            case = Case(cell, shape, torch.float32)
            results = case.by_native()
            assert_close(results, case.by_torch(), 2e-6)
            assert_close(case.gradients(results), case.gradients(case.by_torch()), 1e-5)
            if library.has_bfloat16():
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    results = case.by_native()
                assert_close(results, case.by_torch(), 2e-2)
                assert_close(case.gradients(results), case.gradients(case.by_torch()), 3e-2)
