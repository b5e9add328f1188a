"""The eager engine: what it says of models that keep a state, and what a recomputed gradient sees."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._engine.eager import clear_gradients
from tests.problems import DecayingCell, assert_same_weights

T, B, D, H, C, K = 12, 3, 2, 5, 4, 3


class KeepsState(nn.Module):
    """A layer whose state is an attribute, so that its graph goes on from chunk to chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.hidden = nn.Linear(D + H, H), torch.zeros(B, H)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs = []
        for step in inputs:
            self.hidden = self.layer(torch.cat([step, self.hidden], -1)).tanh()
            outputs.append(self.hidden)
        return torch.stack(outputs), state


def test_a_model_that_keeps_its_state_is_named() -> None:
    model = fptt.nn.Recurrent(KeepsState(), nn.Linear(H, C))
    loss = fptt.TerminalLoss(functional.cross_entropy)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, num_chunks=K)
    with pytest.raises(
        RuntimeError, match=r"keeps a state of its own.* in rnn \(KeepsState\.hidden\): pass the state in"
    ):
        method.train_batch(torch.randn(T, B, D), torch.arange(B))


@pytest.mark.parametrize("kind", [fptt.BPTT, fptt.TBPTT, fptt.FPTT])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_model_without_a_gradient_is_named(kind: Any, is_frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fptt.nn.LSTM(D, H, C)
    loss = fptt.TerminalLoss(functional.cross_entropy)
    method = kind(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, num_chunks=K)
    if is_frozen:
        model.requires_grad_(requires_grad=False)
    else:
        monkeypatch.setattr(model, "forward", torch.no_grad()(model.forward))
    with pytest.raises(RuntimeError, match=r"the loss of chunk \d depends on no weight that requires a gradient: all"):
        method.train_batch(torch.randn(T, B, D), torch.arange(B))


def test_weights_that_were_replaced_after_the_optimizer_was_made_are_not_counted_as_trained() -> None:
    model, loss = fptt.nn.LSTM(D, H, C), fptt.TerminalLoss(functional.cross_entropy)
    method = fptt.FPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, num_chunks=K)
    batch = torch.randn(T, B, D), torch.arange(B)
    method.train_batch(*batch)
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=r"the loss of chunk 0 reaches no weight of the optimizer: .*assign=True"):
        method.train_batch(*batch)
    assert method.updates == K


class ReturnsOtherOutputs(nn.Module):
    """A layer whose outputs are made into something else."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(D, H), kind

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Any, Any]:
        return self.kind(self.layer(inputs)), state


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (lambda outputs: {"outputs": outputs}, "dict"),
        (lambda _: None, "NoneType"),
        (lambda outputs: (outputs,), "tuple"),
        (lambda outputs: outputs.detach().numpy(), "ndarray"),
    ],
    ids=["dict", "None", "tuple", "array"],
)
def test_outputs_that_are_no_tensor_are_named(kind: Any, name: str, engine: Any) -> None:
    model, loss = ReturnsOtherOutputs(kind), fptt.SequenceLoss(functional.mse_loss)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, chunk_length=4, engine=engine)
    inputs, targets = torch.randn(T, B, D), torch.zeros(T, B, H)
    runs: list[Callable[[], Any]] = [
        lambda: method.train_batch(inputs, targets),
        lambda: fptt.check_gradient(model, inputs, targets, loss, num_chunks=K),
        lambda: fptt.OnlineLearner(method).predict_one(inputs[0, 0]),
    ]
    for run in runs:
        with pytest.raises(
            TypeError, match=rf"^model must return \(outputs, state\), outputs a tensor, got a {name}\."
        ):
            run()


def test_a_recomputed_gradient_sees_the_prior_before_it_observes() -> None:
    model = fptt.nn.LSTM(D, H, C).double()
    loss = fptt.TerminalLoss(functional.cross_entropy, fptt.RunningPrior(C, decay=0.5)).double()
    others, own_loss = copy.deepcopy(model), copy.deepcopy(loss)
    settings: dict[str, Any] = {"alpha": 0.7, "coupling": "coupled", "previous_gradient": "recomputed"}
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, others)]
    method = fptt.FPTT(model, optimizers[0], loss, num_chunks=K, **settings)
    regularizer = fptt.DynamicRegularizer(others.parameters(), **settings).attach(optimizers[1])
    for number in range(2):
        inputs = torch.randn(T, B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        method.train_batch(inputs, torch.arange(B))
        state, first_outputs = None, torch.empty(0)
        parts = own_loss.split(torch.arange(B), None, [T // K] * K, B)
        for chunk, part in zip(inputs.split(T // K), parts, strict=True):
            before = fptt.detach_state(state)
            for is_second in (False, True):
                outputs, after = others(chunk, before)
                optimizers[1].zero_grad()
                own_loss(outputs, part).backward()
                if not is_second:
                    first_outputs, state = outputs, after
                    optimizers[1].step()
            regularizer.update()
            own_loss.observe(first_outputs.detach(), part)
    assert_same_weights(model, others)
    assert torch.equal(loss.prior.probabilities, own_loss.prior.probabilities)  # pyright: ignore


@pytest.mark.parametrize("failing_call", [1, 2], ids=["loss", "recomputed gradient"])
def test_training_goes_on_after_an_interrupt(failing_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fptt.nn.GRU(D, H, C)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = fptt.TerminalLoss(functional.cross_entropy)
    method = fptt.FPTT(
        model, optimizer, loss, num_chunks=K, coupling="coupled", previous_gradient="recomputed", check_finite=False
    )
    method.train_batch(torch.randn(T, B, D), torch.arange(B))
    calls, forward = [], model.forward

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == failing_call:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        method.train_batch(torch.randn(T, B, D), torch.arange(B))
    assert method.train_batch(torch.randn(T, B, D), torch.arange(B)).updates == K
    assert method.regularizer is not None
    assert len(method.regularizer.state) == len(list(model.parameters()))


class KeepsGradients(torch.optim.SGD):
    """An optimizer that leaves zeros where others leave None."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)


def test_gradients_are_cleared_as_the_optimizer_does() -> None:
    for make, expected in ((torch.optim.SGD, None), (KeepsGradients, [0.0, 0.0])):
        params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        optimizer = make([{"params": [params[0]]}, {"params": [params[1]]}], lr=0.1)
        for param in params:
            param.grad = torch.ones(2)
        clear_gradients(optimizer)
        for param in params:
            assert (None if param.grad is None else param.grad.tolist()) == expected


@pytest.mark.parametrize("horizon", [1, 2])
def test_the_gradient_of_a_model_that_writes_into_its_inputs_and_state_is_checked(horizon: int) -> None:
    reports = []
    for in_place in (True, False):
        torch.manual_seed(0)
        model, loss = DecayingCell(D, H, in_place=in_place), fptt.SequenceLoss(functional.mse_loss)
        inputs, targets = torch.randn(T, B, D), torch.zeros(T, B, H)
        state = torch.ones(B, H)
        options: dict[str, Any] = {"num_chunks": K, "horizon": horizon, "state": state}
        reports.append(fptt.check_gradient(model, inputs, targets, loss, **options))
        assert torch.equal(state, torch.ones(B, H))
    assert reports[0].passed
    assert reports[0].chunks == reports[1].chunks


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"horizon": 2},
        {"horizon": 3},
        {"on_bad_number": "skip"},
        {"on_bad_number": "skip", "horizon": 2},
        {"coupling": "coupled", "previous_gradient": "recomputed"},
        {"coupling": "coupled", "previous_gradient": "recomputed", "horizon": 2},
    ],
    ids=str,
)
def test_a_model_may_write_into_its_inputs_and_the_tensors_of_a_state(options: dict[str, Any]) -> None:
    ends = []
    for in_place in (True, False):
        torch.manual_seed(0)
        model, given = DecayingCell(D, H, in_place=in_place), torch.ones(B, H)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        loss = fptt.SequenceLoss(functional.mse_loss)
        method = fptt.FPTT(model, optimizer, loss, num_chunks=6, alpha=0.4, **options)
        state, found = given, []
        for _ in range(2):
            inputs, targets = torch.randn(T, B, D), torch.zeros(T, B, H)
            targets[4] = torch.nan if "on_bad_number" in options else 0.0
            result = method.train_batch(inputs, targets, state=state)
            state = result.state
            found += [result.chunk_losses.nan_to_num(), state]
        assert torch.equal(given, torch.ones(B, H))
        ends.append([*model.parameters(), *found])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)
