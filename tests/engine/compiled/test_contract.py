"""The compiled engine beside everything else: saving, copying, eager steps, bad numbers, and what it must refuse."""

import copy
import logging
import pickle
import random
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._engine.compiled import compiler
from tests import forks
from tests.engine.compiled.agreement import (
    FORMS,
    RULES,
    B,
    C,
    D,
    H,
    T,
    assert_equal_memory,
    batch,
    make_method,
    make_model,
    make_pair,
    terminal_loss,
    train_both,
)

in_float64 = pytest.mark.usefixtures("float64", "interpreted")


def train(method: fptt.FPTT, first: int, last: int) -> None:
    for seed in range(first, last):
        torch.manual_seed(seed)
        method.train_batch(*batch())


def reloaded(method: fptt.FPTT, rule: str, engine: Any, form: str) -> fptt.FPTT:
    """Return the method in new objects, through its state dicts, with an engine."""
    model = make_model("lstm")
    model.load_state_dict(method.model.state_dict())
    other = make_method(model, rule, engine=engine, **FORMS[form])
    other.optimizer.load_state_dict(copy.deepcopy(method.optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    return other


@in_float64
@pytest.mark.parametrize("engines", [("eager", "compiled"), ("compiled", "eager"), ("compiled", "compiled")])
@pytest.mark.parametrize("rule", ["adam", "momentum", "centered"])
def test_save_with_one_engine_and_go_on_with_the_other(rule: str, engines: tuple[Any, Any]) -> None:
    model = make_model("lstm")
    straight = make_method(copy.deepcopy(model), rule, **FORMS["released-coupled"])
    train(straight, 0, 6)
    first = make_method(model, rule, engine=engines[0], **FORMS["released-coupled"])
    train(first, 0, 3)
    second = reloaded(first, rule, engines[1], "released-coupled")
    train(second, 3, 6)
    assert_equal_memory([straight, second], 1e-10)


@in_float64
def test_resume_is_bitwise() -> None:
    straight = make_method(make_model("lstm"), "adam", engine="compiled")
    train(straight, 0, 3)
    resumed = reloaded(straight, "adam", "compiled", "paper-decoupled")
    resumed.load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        train(method, 3, 6)
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@in_float64
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda method: pickle.loads(pickle.dumps(method))])
def test_a_copy_trains_on_by_itself(duplicate: Any) -> None:
    method = make_method(make_model("gru"), "rmsprop", engine="compiled")
    train(method, 0, 2)
    before = [param.clone() for param in method.model.parameters()]
    other = duplicate(method)
    train(other, 2, 4)
    assert all(torch.equal(one, two) for one, two in zip(before, method.model.parameters(), strict=True))
    train(method, 2, 4)
    assert_equal_memory([method, other], 1e-12)


@in_float64
def test_eager_steps_in_between_count() -> None:
    """An optimizer step by hand, weights loaded and averages swapped in meet the flat buffers where they lie."""
    methods = make_pair(make_model("lstm"), "adam")
    donor = make_model("lstm").state_dict()
    for method in methods:
        train(method, 0, 2)
        assert method.regularizer is not None
        with method.regularizer.averaged():
            averages = [param.clone() for param in method.model.parameters()]
        assert not any(torch.equal(a, p) for a, p in zip(averages, method.model.parameters(), strict=True))
        method.optimizer.zero_grad()
        functional.cross_entropy(method.model(*(batch()[0] * 0, None))[0][-1], torch.arange(B)).backward()
        method.optimizer.step()
        train(method, 2, 3)
        method.model.load_state_dict(donor)
        train(method, 3, 4)
        method.regularizer.reset()
        train(method, 4, 5)
        for param in method.model.parameters():
            param.data = param.data.clone()
        train(method, 5, 6)
    assert_equal_memory(methods, 1e-10)


@in_float64
def test_no_training_while_averaged() -> None:
    method = make_method(make_model("gru"), "adam", engine="compiled")
    method.train_batch(*batch())
    assert method.regularizer is not None
    before = copy.deepcopy(method.regularizer.state_dict()["state"])
    with method.regularizer.averaged(), pytest.raises(RuntimeError, match=r"inside averaged\(\) would be lost"):
        method.train_batch(*batch())
    torch.testing.assert_close(method.regularizer.state_dict()["state"], before, rtol=0, atol=0)
    assert method.updates == 6


@in_float64
def test_parameters_are_views_of_one_buffer() -> None:
    method = make_method(make_model("lstm"), "adam", engine="compiled")
    method.train_batch(*batch())
    storages = {param.untyped_storage().data_ptr() for param in method.model.parameters()}
    moments = {state["exp_avg"].untyped_storage().data_ptr() for state in method.optimizer.state.values()}
    assert (len(storages), len(moments)) == (1, 1)


@in_float64
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_bad_numbers_stop_before_the_chunk_where_they_arise(bad: str) -> None:
    """Chunk 3 of 6 is bad: three updates are made and stay, in both engines, and the messages are the same."""

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model("lstm")

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            outputs, state = self.inner(inputs, state)
            if bad == "loss":
                return outputs + torch.where(inputs.max() > 50, float("inf"), 0.0), state
            scale = (inputs.max() < 50).to(outputs)
            return outputs + (outputs * 0 + scale).sqrt() - scale.sqrt(), state

    methods = make_pair(Fragile(), "adam", **FORMS["paper-decoupled"])
    inputs, labels = batch()
    inputs[7, 0, 0] = 100.0
    messages = []
    for method in methods:
        method.train_batch(*batch())
        torch.manual_seed(1)
        with pytest.raises(FloatingPointError) as caught:
            method.train_batch(inputs.clone(), labels)
        messages.append(str(caught.value))
        assert method.updates == 9
    assert "chunk 3 of batch 1" in messages[0]
    assert messages[0].split(" in chunk")[1] == messages[1].split(" in chunk")[1]
    torch.manual_seed(5)
    data = batch()
    for method in methods:
        method.train_batch(*data)
    for method in methods:
        assert all(torch.isfinite(param).all() for param in method.model.parameters())
    assert methods[0].updates == methods[1].updates == 15


@in_float64
def test_bad_inputs_are_named() -> None:
    method = make_method(make_model("lstm"), "adam", engine="compiled")
    inputs, labels = batch()
    inputs[3] = float("nan")
    with pytest.raises(FloatingPointError, match="inputs hold NaN or Inf in chunk 1 of batch 0"):
        method.train_batch(inputs, labels)
    with pytest.raises(ValueError, match="state must"):
        method.train_batch(*batch(), torch.zeros(1, B, H))
    with pytest.raises(ValueError, match="inputs must have shape"):
        method.train_batch(torch.zeros(T, B, D + 1), labels)
    assert method.regularizer is not None
    method.regularizer.param_groups[0]["fptt_alpha"] = -1.0
    with pytest.raises(ValueError, match="fptt_alpha must be a positive number"):
        method.train_batch(*batch())
    method.regularizer.param_groups[0]["fptt_alpha"] = 1e-310  # β/α is above the largest float64
    with pytest.raises(ValueError, match=r"fptt_alpha must be at least .* torch\.float64, .* got 1e-310"):
        method.train_batch(*batch())


@in_float64
def test_a_group_that_opts_out_forgets_its_average() -> None:
    """And begins anew with W̄ = W and λ = 0 should it opt in again, as with the eager engine."""
    methods = make_pair(make_model("rnn"), "sgd", num_chunks=3)
    for alpha in (0.3, None, 0.4):
        for method in methods:
            assert method.regularizer is not None
            method.regularizer.param_groups[0]["fptt_alpha"] = alpha
        train_both(methods, *batch())
        assert_equal_memory(methods, 1e-10)
        assert methods[1].regularizer is not None
        assert bool(methods[1].regularizer.state) is (alpha is not None)


class Hostile(nn.Module):
    """A model that does one thing that cannot be compiled."""

    def __init__(self, vice: str) -> None:
        super().__init__()
        self.vice, self.calls, self.kept = vice, 0, torch.zeros(B, H)
        self.rnn = nn.GRUCell(D, H)
        self.inner = nn.Linear(H, C)
        self.log: list[float] = []

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        state = torch.zeros(B, H) if state is None else state
        if self.vice == "branch" and inputs.mean() > 0:
            inputs = inputs * 2
        if self.vice == "counter":
            self.calls += 1
        if self.vice == "tensor":
            self.kept = state.detach() + self.kept
        if self.vice == "list":
            self.log.append(1.0)
        if self.vice == "random" and random.random() < 0.5:
            inputs = inputs * 2
        for step in inputs:
            state = self.rnn(step, state)
        return self.inner(state)[None], state


@pytest.mark.parametrize(
    ("vice", "message"),
    [
        ("branch", r"cannot trace model \(Hostile\): its control flow depends on the values of tensors"),
        ("counter", r"cannot follow model.calls, which the forward pass changes"),
        ("tensor", r"cannot follow model.kept, which the forward pass changes"),
        ("list", r"cannot follow model.log, which"),
        ("random", r"cannot follow random numbers of Python or NumPy"),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_a_model_that_cannot_be_compiled_is_named(vice: str, message: str) -> None:
    method = make_method(Hostile(vice), "sgd", engine="compiled")
    before = [param.clone() for param in method.model.parameters()]
    with pytest.raises(fptt.CompilationError, match=message) as caught:
        method.train_batch(*batch())
    assert "engine='eager'" in str(caught.value)
    assert all(torch.equal(one, two) for one, two in zip(before, method.model.parameters(), strict=True))
    assert make_method(Hostile(vice), "sgd").train_batch(*batch()).updates == 6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "fast"}, ValueError, "engine must be one of 'eager', 'compiled', got 'fast'"),
        (
            {"engine": "compiled", "backward": lambda loss: loss.backward()},
            ValueError,
            "backward must be left as it is",
        ),
        ({"engine": "compiled", "step": lambda optimizer: optimizer.step()}, ValueError, "step must be left as it is"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = make_model("lstm")
    optimizer = RULES["adam"](model.parameters())
    for _ in range(2):  # and the optimizer stays free
        with pytest.raises(error, match=message):
            fptt.TBPTT(model, optimizer, terminal_loss(), num_chunks=2, **options)


def test_an_optimizer_without_a_rule_is_named() -> None:
    class Own(torch.optim.Adam):
        pass

    model = make_model("lstm")
    for kind, name in ((torch.optim.Adagrad, "Adagrad"), (Own, "Own")):
        with pytest.raises(ValueError, match=f"optimizer must be one of SGD, Adam, AdamW, RMSprop .* got .*{name}"):
            fptt.FPTT(model, kind(model.parameters(), lr=0.1), terminal_loss(), num_chunks=2, engine="compiled")


@pytest.mark.usefixtures("interpreted")
def test_hooks_are_not_passed_over() -> None:
    method = make_method(make_model("lstm"), "adam", engine="compiled")
    handle = method.optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(fptt.CompilationError, match="step hooks"):
        method.train_batch(*batch())
    handle.remove()
    handle = next(method.model.parameters()).register_hook(lambda gradient: gradient)
    with pytest.raises(fptt.CompilationError, match="gradient hooks"):
        method.train_batch(*batch())
    handle.remove()
    assert method.train_batch(*batch()).updates == 6


def test_a_recomputed_gradient_is_refused() -> None:
    options: dict[str, Any] = {"coupling": "coupled", "previous_gradient": "recomputed"}
    with pytest.raises(ValueError, match="previous_gradient must be 'dual' with engine='compiled', got 'recomputed'"):
        make_method(make_model("lstm"), "adam", engine="compiled", **options)


@pytest.mark.usefixtures("interpreted")
def test_compilation_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fptt"):
        make_method(make_model("lstm"), "adam", engine="compiled").train_batch(*batch())
    assert [record.message.startswith("compiled a chunk step in ") for record in caplog.records] == [True]


def test_a_missing_compiler_is_named_with_the_way_out() -> None:
    code = (
        "import torch, fptt\n"
        "model = fptt.nn.LSTM(2, 3, 2, last_only=True)\n"
        "method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.1),"
        " fptt.TerminalLoss(torch.nn.functional.cross_entropy), num_chunks=2, engine='compiled')\n"
        "method.train_batch(torch.zeros(4, 1, 2), torch.zeros(1, dtype=torch.long))"
    )
    environment = {"PATH": "/nonexistent", "CXX": "/nonexistent/g++", "HOME": "/nonexistent"}
    result = forks.run([sys.executable, "-c", code], env=environment)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "CompilationError: engine='compiled' needs a C++ compiler and found none: install g++" in last
    assert "engine='eager'" in last


def test_hints_of_inductor_are_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns on GPUs that TensorFloat32 could be used, say; here warnings are errors."""

    def hinting(graph: torch.fx.GraphModule, examples: Any) -> torch.fx.GraphModule:
        warnings.warn_explicit("be faster", UserWarning, "lowering.py", 1, module="torch._inductor.lowering")
        return graph

    monkeypatch.setattr(compiler, "_inductor", hinting)
    make_method(make_model("lstm"), "adam", engine="compiled").train_batch(*batch())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:RNN module weights")  # of PyTorch, about copies of a model
def test_cuda_graph_equals_eager() -> None:
    torch.set_default_dtype(torch.float64)
    methods = make_pair(make_model("lstm").cuda(), "adam", max_norm=0.5)
    for size in (3, 3, 2, 3):
        inputs, labels = batch(size=size)
        results = [method.train_batch(inputs.cuda(), labels.cuda()) for method in methods]
        torch.testing.assert_close(results[0].chunk_losses, results[1].chunk_losses, rtol=1e-9, atol=1e-9)
    torch.set_default_dtype(torch.float32)
    assert_equal_memory(methods, 1e-9)
