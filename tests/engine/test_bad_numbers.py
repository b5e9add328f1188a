"""NaN and Inf are noticed at the chunk where they come up; a skipped chunk is as one that never was."""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from tests.problems import weights

K, T, B = 4, 12, 3

HUGE = 1e120
"""Times the rate of `scale` an overflow, though not its own square."""


class Model(nn.Module):
    """An LSTM on two inputs, plus a third one times a weight of its own that learns at an absurd rate."""

    dropout = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout, self.scale = fptt.nn.LSTM(2, 5), nn.Linear(5, 1), nn.Parameter(torch.zeros(1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.get_buffer("calls").add_(1)
        outputs, state = self.layer(inputs[..., :2], state)
        if self.dropout:
            outputs = functional.dropout(outputs, self.dropout)
        return self.readout(outputs) + self.scale * inputs[..., 2:], state

    def initial_state(self, inputs: Tensor) -> Any:
        return self.layer.initial_state(inputs)


def make(kind: Any, **options: Any) -> fptt.Method:
    torch.manual_seed(0)
    model = Model().double()
    others = [*model.layer.parameters(), *model.readout.parameters()]
    optimizer = torch.optim.SGD([{"params": [model.scale], "lr": 1e200}, {"params": others}], lr=0.1, momentum=0.5)
    return kind(model, optimizer, fptt.SequenceLoss(functional.mse_loss), num_chunks=K, **options)


def batch(number: int, bad: Iterable[int] = (), what: str = "inputs") -> tuple[Tensor, Tensor]:
    """Return inputs and targets; in the bad chunks something of them, or of what comes of them, is not finite."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(T, B, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(T, B, 1, generator=generator, dtype=torch.float64)
    inputs[..., 2] = 0
    for chunk in bad:
        steps = slice(chunk * T // K, (chunk + 1) * T // K)
        if what == "inputs":
            inputs[steps][1, 0, 2] = float("nan")
        elif what == "loss":
            targets[steps] = 1e200
        else:
            inputs[steps][..., 2] = HUGE
    return inputs, targets


def left_out(method: fptt.Method, number: int, bad: Iterable[int]) -> Any:
    """Learn a batch without its bad chunks, by hand; return the last state."""
    inputs, targets = batch(number)
    lengths = [T // K] * K
    parts = method.loss.split(targets, None, lengths, B)
    state = method.model.initial_state(inputs)  # pyright: ignore[reportCallIssue]
    for k, (chunk, part) in enumerate(zip(inputs.split(lengths), parts, strict=True)):
        if k not in bad:
            outputs, state = method.model(chunk, fptt.detach_state(state))
            method.optimizer.zero_grad()
            method.loss(outputs, part).backward()
            method.optimizer.step()
    return fptt.detach_state(state)


def everything(method: fptt.Method) -> list[Tensor]:
    memory = {} if method.regularizer is None else method.regularizer.named_tensors()
    moments = [t for state in method.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    own = [*method.model.parameters(), *method.model.buffers(), *memory.values(), *moments]
    return [tensor.detach().clone() for tensor in own]


def assert_near(ones: list[Tensor], others: list[Tensor]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("what", ["inputs", "loss", "weights"])
@pytest.mark.parametrize(("kind", "engine"), [(fptt.TBPTT, "eager"), (fptt.FPTT, "eager"), (fptt.FPTT, "compiled")])
def test_a_skipped_chunk_is_as_one_that_never_was(
    kind: Any, what: str, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, reference = make(kind, on_bad_number="skip", engine=engine), make(kind)
    for number, bad in enumerate(((), (1,), (0, 3), ())):
        with caplog.at_level(logging.WARNING, "fptt"):
            result = method.train_batch(*batch(number, bad, what))
        state = left_out(reference, number, bad)
        assert_near(everything(method), everything(reference))
        assert_near(list(result.state), list(state))
        assert (result.skipped, result.updates) == (len(bad), K - len(bad))
        assert result.chunk_losses.isnan().nonzero().flatten().tolist() == list(bad)
        torch.testing.assert_close(result.loss, result.chunk_losses[~result.chunk_losses.isnan()].mean())
    assert (method.skipped, method.updates) == (3, 13)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert "chunk 3 of batch 2" in warnings[-1]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("what", ["inputs", "loss", "weights"])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_skipped_chunk_draws_no_random_numbers(engine: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks after it are learned with the same dropout as without it."""
    monkeypatch.setattr(Model, "dropout", 0.5)
    method, reference = make(fptt.FPTT, on_bad_number="skip", engine=engine), make(fptt.FPTT)
    torch.manual_seed(1)
    method.train_batch(*batch(0, (0, 2), what))
    drawn = torch.rand(())
    torch.manual_seed(1)
    left_out(reference, 0, (0, 2))
    assert_near(everything(method), everything(reference))
    assert torch.equal(drawn, torch.rand(()))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("lanes", [[1], [0, 1, 2]], ids=["one lane", "all lanes"])
@pytest.mark.parametrize(("engine", "horizon"), [("eager", 1), ("eager", 2), ("compiled", 1), ("compiled", 2)])
def test_a_sequence_that_begins_in_a_skipped_chunk_begins_after_it(engine: Any, horizon: int, lanes: list[int]) -> None:
    """What comes after the chunk does not depend on the sequence before, nor does the state after the last chunk."""
    results = []
    for before in (0.0, 5.0):
        torch.manual_seed(0)
        model = fptt.nn.GRU(3, 4, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
        options: dict[str, Any] = {"engine": engine, "horizon": horizon, "on_bad_number": "skip"}
        method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(functional.mse_loss), num_chunks=K, **options)
        inputs, targets = batch(0, (1, 3))
        inputs[:3, lanes] += before
        is_first = torch.zeros(T, B, dtype=torch.bool)
        is_first[3, lanes] = is_first[9, lanes] = True
        results.append(method.train_batch(inputs, targets, is_first=is_first))
    one, other = results
    assert [result.skipped for result in results] == [2, 2]
    assert not torch.allclose(one.chunk_losses[0], other.chunk_losses[0])
    torch.testing.assert_close(one.chunk_losses[2], other.chunk_losses[2], rtol=1e-9, atol=0)
    for result in results:
        state = torch.zeros(1, B, 4, dtype=torch.float64) if result.state is None else result.state
        assert not state[:, lanes].any()
        assert len(lanes) == B or state[:, 0].all()


class Hoarder(torch.optim.SGD):
    """Keeps nests of tensors and numbers of every parameter and of every group, as SOAP and ScheduleFree do."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()
        for group in self.param_groups:
            group["lr"] *= 0.9  # in place
            group["steps"] = group.get("steps", 0) + 1
            for param in group["params"]:
                own = self.state[param]
                if "sums" not in own:
                    own.update(sums=[torch.zeros_like(param)], past=deque(), last=None, nested={"count": 0})
                own["sums"][0] += param
                own["past"].append(param.detach().clone())
                own["last"] = param.detach().sum()
                own["nested"]["count"] += 1


def hoarding(**options: Any) -> fptt.Method:
    torch.manual_seed(0)
    model = Model().double()
    others = [*model.layer.parameters(), *model.readout.parameters()]
    rates = torch.tensor([1e200, 0.1], dtype=torch.float64)
    groups = [{"params": [model.scale], "lr": rates[0]}, {"params": others, "lr": rates[1]}]
    return fptt.TBPTT(model, Hoarder(groups), fptt.SequenceLoss(functional.mse_loss), num_chunks=K, **options)


def test_all_that_an_optimizer_keeps_is_put_back_in_place() -> None:
    method, reference = hoarding(on_bad_number="skip"), hoarding()
    held: list[list[Tensor]] = []
    for number, bad in enumerate(((0,), (2, 3))):
        assert method.train_batch(*batch(number, bad, "weights")).skipped == len(bad)
        left_out(reference, number, bad)
        found, expected = (one.optimizer.state_dict() for one in (method, reference))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        sums = [state["sums"][0] for state in method.optimizer.state.values()]
        held.append([*sums, *(group["lr"] for group in method.optimizer.param_groups)])
    assert all(one is other for one, other in zip(*held, strict=True))


def test_a_buffer_that_the_model_assigns_anew_is_put_back() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            self.mean = 0.5 * self.mean + 0.5 * inputs.mean((0, 1))
            return (inputs * self.weight).sum(-1, keepdim=True), state

    model = Running().double()
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), 0.1), loss, num_chunks=K, on_bad_number="skip")
    inputs, targets = batch(0, (3,), "loss")
    inputs[9:] = 1e30
    assert method.train_batch(inputs, targets).skipped == 1
    mean = torch.zeros(3, dtype=torch.float64)
    for chunk in inputs.split(3)[:3]:
        mean = 0.5 * mean + 0.5 * chunk.mean((0, 1))
    torch.testing.assert_close(model.mean, mean)


def test_a_buffer_that_repeats_one_number_is_put_back() -> None:
    """Nothing can be copied into all of an expanded tensor: its numbers have one place."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("calls", torch.zeros(3, 1).expand(3, 5))

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            self.get_buffer("calls")[:, 0] += torch.tensor([1.0, 2.0, 3.0])
            return (inputs * self.weight).sum(-1, keepdim=True), state

    model = Counting().double()
    model.calls = model.calls[:, :1].expand(3, 5)  # pyright: ignore  # `double` has written it out
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), 0.1), loss, num_chunks=K, on_bad_number="skip")
    assert method.train_batch(*batch(0, (1,), "loss")).skipped == 1
    assert model.get_buffer("calls").tolist() == [[3.0] * 5, [6.0] * 5, [9.0] * 5]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex128])
def test_the_loss_of_a_skipped_chunk_is_real(dtype: torch.dtype) -> None:
    model = Model().double()
    model.register_parameter("first", nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False))
    model._parameters = {"first": model._parameters.pop("first"), **model._parameters}
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), 0.1), loss, num_chunks=K, on_bad_number="skip")
    result = method.train_batch(*batch(0, (0,), "loss"))
    assert result.chunk_losses.dtype == torch.float64
    assert result.chunk_losses.isnan().tolist() == [True, False, False, False]
    assert result.loss.isfinite()


@pytest.mark.parametrize("what", ["inputs", "loss", "weights"])
def test_bptt_skips_the_batch(what: str) -> None:
    method = make(fptt.BPTT, on_bad_number="skip")
    method.train_batch(*batch(0))
    before = everything(method)
    result = method.train_batch(*batch(1, (2,), what))
    assert_near(everything(method), before)
    assert (result.skipped, result.updates, method.updates) == (1, 0, 1)
    assert result.loss.isnan()


def test_a_bad_recomputed_gradient_undoes_the_update() -> None:
    """The update itself is good, and the loss after it is not."""
    method = make(fptt.FPTT, on_bad_number="skip", coupling="coupled", previous_gradient="recomputed")
    method.train_batch(*batch(0))
    before, calls = everything(method), [0]

    def blow_up(module: nn.Module, arguments: Any, outputs: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        calls[0] += 1
        return (outputs[0] * float("inf"), outputs[1]) if calls[0] % 2 == 0 else outputs

    method.model.register_forward_hook(blow_up)
    assert method.train_batch(*batch(1)).skipped == K
    assert_near(everything(method), before)


class BadGradient(nn.Module):
    """Has a finite loss and an infinite gradient where the third input is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs = (inputs * self.weight).sum(-1, keepdim=True)
        if inputs[..., 2].any():
            outputs = outputs + (outputs - outputs.detach()).abs().sqrt()
        return outputs, torch.zeros(())


def test_a_bad_gradient_is_skipped() -> None:
    model = BadGradient().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.FPTT(model, optimizer, loss, num_chunks=K, on_bad_number="skip")
    inputs, targets = batch(0)
    inputs[3:6, :, 2] = 1.0
    result = method.train_batch(inputs, targets)
    assert (result.skipped, result.updates) == (1, 3)
    assert all(weight.isfinite().all() for weight in weights(model))


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("bad", "engine"), [(0, "eager"), (3, "eager"), (2, "compiled")])
def test_weights_that_overflow_name_the_chunk_that_made_them_so(bad: int, engine: str) -> None:
    method = make(fptt.FPTT, engine=engine)
    method.train_batch(*batch(0))
    with pytest.raises(FloatingPointError, match=f"weights are NaN or Inf after the update of chunk {bad} of batch 1"):
        method.train_batch(*batch(1, (bad,), "weights"))


def test_bptt_notices_weights_that_overflow() -> None:
    method = make(fptt.BPTT)
    with pytest.raises(FloatingPointError, match="weights are NaN or Inf after the update of chunk 3 of batch 0"):
        method.train_batch(*batch(0, (1,), "weights"))


def test_skips_are_kept_with_the_state() -> None:
    method = make(fptt.FPTT, on_bad_number="skip")
    method.train_batch(*batch(0, (1, 2), "loss"))
    other = make(fptt.FPTT, on_bad_number="skip")
    other.load_state_dict(method.state_dict())
    assert other.skipped == 2


def test_skipping_under_autocast() -> None:
    torch.manual_seed(0)
    model = fptt.nn.GRU(3, 5, 1, kernel="plain")
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.FPTT(model, optimizer, loss, num_chunks=K, on_bad_number="skip")
    inputs, targets = (tensor.float() for tensor in batch(0, (1,)))
    with torch.autocast("cpu", torch.bfloat16):
        result = method.train_batch(inputs, targets)
    assert (result.skipped, result.updates) == (1, 3)
    assert all(weight.isfinite().all() for weight in weights(model))


def test_a_scaler_that_skips_a_step_is_left_to_it() -> None:
    """A loss scale that overflows the gradient is no bad number: the scaler halves it and goes on."""
    torch.manual_seed(0)
    model = fptt.nn.LSTM(3, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def step(optimizer: torch.optim.Optimizer) -> None:
        try:
            scaler.step(optimizer)
        finally:
            scaler.update()

    loss = fptt.SequenceLoss(functional.mse_loss)
    backward = lambda loss: scaler.scale(loss).backward()  # noqa: E731
    options: dict[str, Any] = {"backward": backward, "step": step, "on_bad_number": "skip"}
    method = fptt.FPTT(model, optimizer, loss, num_chunks=K, **options)
    inputs, targets = (tensor.float() * 100 for tensor in batch(0))
    before = weights(model)
    result = method.train_batch(inputs, targets)
    assert (result.skipped, method.skipped) == (0, 0)
    assert result.updates < K
    assert scaler.get_scale() < 2.0**127
    if not result.updates:
        assert all(torch.equal(one, other) for one, other in zip(weights(model), before, strict=True))


def test_a_scaler_goes_on_behind_a_bad_gradient() -> None:
    """By the recipe of docs/other-loops.md: the exception comes inside `scaler.step`, between unscaling and update."""
    inputs, targets = (tensor.float() for tensor in batch(0))
    targets[T // K] = 100
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(optimizer: torch.optim.Optimizer) -> None:
        try:
            scaler.step(optimizer)
        finally:
            scaler.update()

    def loss_of_steps(outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss is finite, and the norm of its gradient is not, where a target is out of range."""
        factor = torch.where(targets.abs() > 10, 1e21, 1.0)
        return functional.l1_loss(outputs, targets, reduction="none") * factor

    scaled: dict[str, Any] = {"backward": lambda loss: scaler.scale(loss).backward(), "step": step}
    found = []
    for options in ({}, scaled):
        torch.manual_seed(0)
        model = fptt.nn.GRU(3, 5, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        loss = fptt.SequenceLoss(loss_of_steps)
        method = fptt.FPTT(model, optimizer, loss, num_chunks=K, on_bad_number="skip", **options)
        assert method.train_batch(inputs, targets).skipped == 1
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="on_bad_number must be one of 'raise', 'skip', got 'stop'"):
        make(fptt.FPTT, on_bad_number="stop")
    with pytest.raises(ValueError, match="on_bad_number must be one of 'raise', got 'skip'"):
        make(fptt.FPTT, on_bad_number="skip", check_finite=False)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_skips_in_a_row_are_those_since_the_last_update(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fptt._methods.method.MOST_SKIPPED_IN_A_ROW", 3)
    method = make(fptt.TBPTT, on_bad_number="skip", engine=engine)
    method.train_batch(*batch(0, (0, 1, 3)))
    with pytest.raises(FloatingPointError, match="skipped 3 chunks in a row without an update"):
        method.train_batch(*batch(1, (0, 1)))
    method.train_batch(*batch(2, (1, 2)))
    with pytest.raises(FloatingPointError, match=r"skipped 3 chunks in a row .* in chunk 3 of batch 2"):
        method.train_batch(*batch(3, (1, 2, 3)))


def test_skipping_ends_where_nothing_else_comes() -> None:
    method = make(fptt.TBPTT, on_bad_number="skip")
    inputs, targets = batch(0, range(K))
    good = batch(1)
    for _ in range(2):
        for _ in range(24):  # 96 chunks
            assert method.train_batch(inputs, targets).skipped == K
        method.train_batch(*good)  # one update, and the count begins anew
    for _ in range(24):
        method.train_batch(inputs, targets)
    with pytest.raises(
        FloatingPointError, match=r"skipped 100 chunks in a row without an update; the last one: inputs"
    ):
        method.train_batch(inputs, targets)
