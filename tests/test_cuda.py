"""On a CUDA device the methods give what they give on the processor, and its faults are those of the processor."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt.nn import cudnn
from tests.engine.compiled.agreement import (
    CELLS,
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
    terminal_loss,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:RNN module weights"),  # of PyTorch, about copies of a model
]

DEVICE = "cuda"
ENGINES = pytest.mark.parametrize("engine", ["eager", "compiled"])
WAYS = pytest.mark.parametrize(
    "way",
    [{"engine": "eager"}, {"engine": "compiled"}, {"engine": "compiled", "num_chunks": 3}],
    ids=["eager", "written-out", "cudnn"],
)
"""Chunks of three steps, which a compiled step writes out, and of six, for which it calls cuDNN."""
TOLERANCE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair(model: nn.Module, rule: str, **options: Any) -> list[fptt.FPTT]:
    """Return the method on the processor, eager, and that on the device with the engine asked for."""
    engine = options.pop("engine")
    there = copy.deepcopy(model).to(DEVICE)
    return [
        make_method(model, rule, terminal_loss(), **options),
        make_method(there, rule, terminal_loss(), engine=engine, **options),
    ]


def assert_agreement(methods: list[fptt.FPTT], sizes: tuple[int, ...] = (3, 3, 2, 3)) -> None:
    for size in sizes:
        inputs, labels = batch(size=size)
        here = methods[0].train_batch(inputs, labels)
        there = methods[1].train_batch(inputs.to(DEVICE), labels.to(DEVICE))
        torch.testing.assert_close(here.chunk_losses, there.chunk_losses.cpu(), **TOLERANCE)
        torch.testing.assert_close(here.gradient_norm, there.gradient_norm.cpu(), **TOLERANCE)
        assert here.updates == there.updates
    weights = [dict(method.model.state_dict()) for method in methods]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name].cpu(), **TOLERANCE)


@WAYS
@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_the_processor(form: str, way: dict[str, Any]) -> None:
    assert_agreement(pair(make_model("lstm"), "adam", **way, max_norm=0.5, **FORMS[form]))


@WAYS
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_agrees_with_the_processor(rule: str, way: dict[str, Any]) -> None:
    assert_agreement(pair(make_model("lstm"), rule, **way, **FORMS["released-coupled"]))


@WAYS
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_agrees_with_the_processor(cell: str, way: dict[str, Any]) -> None:
    assert_agreement(pair(make_model(cell, num_layers=2), "sgd", **way))


def test_bptt_agrees_with_the_processor() -> None:
    model = make_model("lstm")
    there = copy.deepcopy(model).to(DEVICE)
    methods = [fptt.BPTT(own, RULES["adam"](own.parameters()), terminal_loss()) for own in (model, there)]
    for _ in range(3):
        inputs, labels = batch()
        here, far = methods[0].train_batch(inputs, labels), methods[1].train_batch(inputs.to(DEVICE), labels.to(DEVICE))
        torch.testing.assert_close(here.loss, far.loss.cpu(), **TOLERANCE)


def test_a_dual_for_each_chunk_agrees_with_the_processor() -> None:
    assert_agreement(pair(make_model("gru"), "adam", engine="eager", num_duals=6, alpha=0.3))


@WAYS
def test_sequences_of_other_lengths_agree_with_the_processor(way: dict[str, Any]) -> None:
    methods = pair(fptt.nn.LSTM(D, H, C), "adam", **way)
    mask = fptt.length_mask(torch.tensor([T, 7, 11]), T)
    for _ in range(2):
        inputs, labels = batch()
        here = methods[0].train_batch(inputs, labels, mask=mask)
        there = methods[1].train_batch(inputs.to(DEVICE), labels.to(DEVICE), mask=mask.to(DEVICE))
        torch.testing.assert_close(here.chunk_losses, there.chunk_losses.cpu(), **TOLERANCE)


def test_a_step_is_recorded_again_when_its_tensors_have_moved() -> None:
    """Loading a state puts weights and moments into other memory than that which the graph was recorded for."""
    one, other = (make_method(make_model("lstm").to(DEVICE), "adam", engine="compiled") for _ in range(2))
    other.model.load_state_dict(one.model.state_dict())
    inputs, labels = (tensor.to(DEVICE) for tensor in batch())
    one.train_batch(inputs, labels)
    saved = io.BytesIO()
    torch.save([one.state_dict(), one.optimizer.state_dict(), one.model.state_dict()], saved)
    one.train_batch(inputs, labels)
    other.train_batch(inputs, labels)
    method, optimizer, model = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    other.load_state_dict(method)
    other.optimizer.load_state_dict(optimizer)
    other.model.load_state_dict(model)
    other.train_batch(inputs, labels)
    assert_equal_memory([one, other], 0)


@ENGINES
def test_dropout_repeats_from_the_random_state_and_differs_from_batch_to_batch(engine: Any) -> None:
    def losses(lr: float) -> list[Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(D, 30), nn.Dropout(0.5)).to(DEVICE)
        torch.manual_seed(4)
        recurrent = Dropping(model, make_model("lstm").to(DEVICE))
        method = fptt.TBPTT(
            recurrent, torch.optim.SGD(recurrent.parameters(), lr=lr), terminal_loss(), num_chunks=6, engine=engine
        )
        torch.manual_seed(5)
        inputs, labels = torch.ones(18, B, D, device=DEVICE), torch.zeros(B, dtype=torch.long, device=DEVICE)
        return [method.train_batch(inputs, labels).chunk_losses for _ in range(3)]

    first, second = losses(0.1), losses(0.1)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    still = losses(0.0)
    assert not torch.equal(still[0], still[1])
    assert not torch.equal(still[1], still[2])


class Dropping(nn.Module):
    """A recurrent layer behind a dropout that is drawn at every step."""

    def __init__(self, before: nn.Module, recurrent: nn.Module) -> None:
        super().__init__()
        self.before, self.narrow, self.recurrent = before, nn.Linear(30, D).to(DEVICE), recurrent

    def forward(self, inputs: Tensor, state: Any) -> Any:
        return self.recurrent(self.narrow(self.before(inputs)), state)


@WAYS
def test_a_bad_chunk_is_skipped(way: dict[str, Any]) -> None:
    method = make_method(make_model("lstm").to(DEVICE), "adam", **way, on_bad_number="skip")
    inputs, labels = (tensor.to(DEVICE) for tensor in batch())
    method.train_batch(inputs, labels)
    spoiled = inputs.clone()
    spoiled[7] = torch.nan
    assert method.train_batch(spoiled, labels).updates < way.get("num_chunks", 6)
    assert all(bool(torch.isfinite(weight).all()) for weight in method.model.state_dict().values())


@WAYS
def test_a_bad_number_stops_before_the_weights_change(way: dict[str, Any]) -> None:
    method = make_method(make_model("lstm").to(DEVICE), "adam", **way)
    inputs, labels = (tensor.to(DEVICE) for tensor in batch())
    method.train_batch(inputs, labels)
    before = [weight.clone() for weight in method.model.parameters()]
    inputs[0] = torch.inf
    with pytest.raises(FloatingPointError, match="chunk 0"):
        method.train_batch(inputs, labels)
    assert all(torch.equal(one, other) for one, other in zip(before, method.model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near(dtype: torch.dtype) -> None:
    torch.set_default_dtype(torch.float32)
    model = make_model("lstm").to(DEVICE)
    exact, mixed = (make_method(copy.deepcopy(model), "sgd") for _ in range(2))
    inputs, labels = (tensor.to(DEVICE) for tensor in batch())
    inputs = inputs.float()
    with torch.autocast("cuda", dtype):
        near = mixed.train_batch(inputs, labels).loss
    loss = exact.train_batch(inputs, labels).loss
    assert 0 < (near - loss).abs() < 0.02


@pytest.mark.parametrize("length", [1, 4])
def test_a_stream_is_learned_as_on_the_processor(length: int) -> None:
    def learned(device: str) -> list[Tensor]:
        torch.manual_seed(6)
        model = fptt.nn.GRU(D, 5, C).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        loss = fptt.SequenceLoss(functional.cross_entropy)
        method = fptt.FPTT(model, optimizer, loss, chunk_length=length)
        online = fptt.OnlineLearner(method, classes=list("abcd"))
        stream = torch.randn(16, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        for step, inputs in enumerate(stream):
            online.learn_one(inputs, "abcd"[step % 4])
        return [weight.detach().cpu() for weight in model.parameters()]

    torch.testing.assert_close(learned(DEVICE), learned("cpu"), **TOLERANCE)


def test_gradients_are_checked_as_on_the_processor() -> None:
    model = make_model("lstm").to(DEVICE)
    inputs, labels = (tensor.to(DEVICE) for tensor in batch())
    report = fptt.check_gradient(model, inputs, labels, terminal_loss(), num_chunks=3)
    assert report.passed, str(report)


# -- cuDNN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("size", [5, 128])
@pytest.mark.parametrize("cell", CELLS)
def test_the_operator_for_a_layer_is_that_of_torch(cell: str, size: int, length: int) -> None:
    """PyTorch's own layer gives outputs, last states and gradients to compare with, in its memory layout."""
    model = CELLS[cell](D, size).to(DEVICE)
    weights = list(model.rnn.parameters())
    inputs = torch.randn(length, B, D, device=DEVICE, requires_grad=True)
    states = [torch.randn(1, B, size, device=DEVICE, requires_grad=True) for _ in range(1 + (cell == "lstm"))]
    outputs, final = model.rnn(inputs, tuple(states) if len(states) > 1 else states[0])
    final = list(final) if len(states) > 1 else [final]
    num_gates = len(weights[0]) // size
    here, end = cudnn.run_cudnn(inputs, weights, tuple(state[0] for state in states), num_gates)
    leaves = [inputs, *weights, *states]
    towards = [torch.randn_like(tensor) for tensor in (outputs, *final)]
    expected = torch.autograd.grad([outputs, *final], leaves, towards)
    found = torch.autograd.grad([here, *end], leaves, [towards[0], *(toward[0] for toward in towards[1:])])
    for one, other in zip(
        [outputs, *final, *expected], [here, *(own.unsqueeze(0) for own in end), *found], strict=True
    ):
        torch.testing.assert_close(one, other, **TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_with_cudnn_in_single_precision_is_near_the_eager_one(cell: str) -> None:
    """Both may round to TensorFloat32, as PyTorch lets cuDNN by default."""
    torch.set_default_dtype(torch.float32)
    model = make_model(cell).to(DEVICE)
    methods = [
        make_method(copy.deepcopy(model), "sgd", engine=engine, num_chunks=3) for engine in ("eager", "compiled")
    ]
    for _ in range(3):
        inputs, labels = (tensor.to(DEVICE) for tensor in batch())
        one, other = (method.train_batch(inputs, labels).chunk_losses for method in methods)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_compiled_step_under_autocast_is_near_the_eager_one() -> None:
    torch.set_default_dtype(torch.float32)
    model = make_model("lstm").to(DEVICE)
    methods = [
        make_method(copy.deepcopy(model), "sgd", engine=engine, num_chunks=3) for engine in ("eager", "compiled")
    ]
    inputs, labels = (tensor.to(DEVICE) for tensor in batch())
    with torch.autocast("cuda", torch.bfloat16):
        one, other = (method.train_batch(inputs, labels).chunk_losses for method in methods)
    torch.testing.assert_close(one, other, rtol=0, atol=0.02)
