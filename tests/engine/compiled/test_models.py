"""What the compiled engine must serve: any model, any cut, any mask; each against the eager engine in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._engine.compiled.engine import CompiledEngine
from tests.engine.compiled.agreement import (
    B,
    C,
    D,
    H,
    T,
    assert_equal_memory,
    assert_equal_results,
    batch,
    make_model,
    make_pair,
    train_both,
)

pytestmark = pytest.mark.usefixtures("float64", "both_ways")


def assert_agreement(methods: list[fptt.FPTT], batches: list[tuple[Any, ...]]) -> list[list[fptt.BatchResult]]:
    results = [train_both(methods, *arguments) for arguments in batches]
    assert_equal_memory(methods, 1e-10)
    return results


def num_compiled(method: fptt.FPTT) -> int:
    assert isinstance(method._engine, CompiledEngine)
    return len(method._engine._entries)


def test_chunks_of_two_lengths_and_batches_of_two_sizes() -> None:
    methods = make_pair(make_model("lstm"), num_chunks=4)
    assert_agreement(methods, [batch(10), batch(10, size=2), batch(10), batch(11, size=2)])
    assert num_compiled(methods[1]) == 4  # lengths 3 and 2, with 3 and 2 samples; 11 steps are 3 · 3 + 2


def test_a_longer_sequence_with_chunks_of_the_same_length_compiles_nothing_new() -> None:
    methods = make_pair(make_model("gru"), num_chunks=None, chunk_length=3)
    assert_agreement(methods, [batch(6), batch(12), batch(30)])
    assert num_compiled(methods[1]) == 1


def test_carried_state() -> None:
    methods = make_pair(make_model("lstm"), num_chunks=3)
    first = assert_agreement(methods, [batch(6)])[0]
    inputs, labels = batch(6)
    results = [method.train_batch(inputs, labels, result.state) for method, result in zip(methods, first, strict=True)]
    assert_equal_results(results, 1e-10)
    assert type(results[1].state).__name__ == "LSTMState"


def masked_lengths(*ends: int) -> Tensor:
    return torch.arange(T)[:, None] < torch.tensor(ends)


@pytest.mark.parametrize("ends", [(T, T, 5), (3, 2, 6)])  # the second: no step counts in the last three chunks
def test_masked_terminal_loss(ends: tuple[int, ...]) -> None:
    methods = make_pair(fptt.nn.LSTM(D, H, C), num_chunks=6)
    inputs, labels = batch()
    (pair,) = assert_agreement(methods, [(inputs, labels, None, masked_lengths(*ends))])
    assert pair[1].updates == (6 if ends[0] == T else 3)


@pytest.mark.parametrize("ends", [(T, T, 5), (3, 2, 6)])
def test_masked_sequence_loss(ends: tuple[int, ...]) -> None:
    methods = make_pair(fptt.nn.GRU(D, H, C), loss=fptt.SequenceLoss(functional.cross_entropy), num_chunks=6)
    targets = torch.randint(C, (T, B))
    targets[1] = -100
    assert_agreement(methods, [(batch()[0], targets, None, masked_lengths(*ends)), (batch()[0], targets)])


def test_sequence_regression_batch_first() -> None:
    model = fptt.nn.RNN(D, H, 2, batch_first=True)
    methods = make_pair(model, loss=fptt.SequenceLoss(nn.MSELoss()), num_chunks=5, batch_first=True)
    assert_agreement(methods, [(torch.randn(B, T, D), torch.randn(B, T, 2)) for _ in range(2)])


def test_running_prior() -> None:
    loss = fptt.TerminalLoss(functional.cross_entropy, fptt.RunningPrior(C, decay=0.9))
    methods = make_pair(make_model("lstm"), loss=loss)
    assert_agreement(methods, [batch() for _ in range(3)])
    assert (methods[1].loss.state_dict()["prior.probabilities"] != 1 / C).any()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_layers_and_dropout_draw_the_same_numbers(num_layers: int) -> None:
    model = make_model("lstm", num_layers=num_layers, dropout=0.4 if num_layers > 1 else 0.0, kernel="plain")
    methods = make_pair(model)
    assert_agreement(methods, [batch() for _ in range(3)])


class Words(nn.Module):
    """A language model with tied weights, dropout and a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, H)
        self.dropout = nn.Dropout(0.3)
        self.rnn = fptt.nn.LSTM(H, H, kernel="plain")
        self.decoder = nn.Linear(H, 7)
        self.decoder.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, words: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.dropout(self.embedding(words)), state)
        return self.scale * self.decoder(hidden), state


def test_tied_embedding_dropout_and_a_frozen_parameter() -> None:
    model = Words()
    methods = make_pair(model, loss=fptt.SequenceLoss(functional.cross_entropy))
    assert_agreement(methods, [(torch.randint(7, (T, B)), torch.randint(7, (T, B))) for _ in range(3)])
    tied: Any = methods[1].model
    assert tied.decoder.weight is tied.embedding.weight
    assert not torch.equal(tied.embedding.weight, model.embedding.weight)
    assert tied.scale == 1.5


class LearnedStart(nn.Module):
    """A GRU whose first state is learned: a parameter that only the first chunk uses; and one that none uses."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRUCell(D, H)
        self.start = nn.Parameter(torch.randn(H))
        self.idle = nn.Parameter(torch.randn(2))
        self.readout = nn.Linear(H, C)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        state = self.start.expand(inputs.shape[1], -1) if state is None else state
        for step in inputs:
            state = self.rnn(step, state)
        return self.readout(state)[None], state


@pytest.mark.parametrize("rule", ["adamw", "momentum"])
def test_a_learned_first_state_moves_in_the_first_chunk_only(rule: str) -> None:
    model = LearnedStart()
    methods = make_pair(model, rule)
    assert_agreement(methods, [batch() for _ in range(3)])
    compiled: Any = methods[1].model
    assert torch.equal(compiled.idle, model.idle)
    if rule == "adamw":
        states = methods[1].optimizer.state
        assert (states[compiled.start]["step"], states[compiled.readout.bias]["step"]) == (3, 18)


@pytest.mark.parametrize("wrap", ["layer", "cell", "norm"])
def test_models_of_torch(wrap: str) -> None:
    models = {
        "layer": lambda: fptt.nn.Recurrent(nn.LSTM(D, H), nn.Linear(H, C)),
        "cell": lambda: fptt.nn.Recurrent(fptt.nn.Unroll(nn.LSTMCell(D, H)), nn.Linear(H, C)),
        "norm": Normalized,
    }
    assert_agreement(make_pair(models[wrap]()), [batch() for _ in range(2)])


class Normalized(nn.Module):
    """A model with running statistics, which change as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)
        self.rnn = make_model("gru")

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.rnn(self.norm(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]), state)


def grouped(model: Any, engine: Any, **options: Any) -> fptt.FPTT:
    groups = [
        {"params": [model.rnn.weight_ih_l0, model.rnn.bias_ih_l0], "lr": 0.03, "fptt_alpha": 0.7},
        {"params": [model.rnn.weight_hh_l0, model.rnn.bias_hh_l0], "weight_decay": 0.2},
        {"params": list(model.readout.parameters()), "fptt_alpha": None, "betas": (0.5, 0.7)},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    loss = fptt.TerminalLoss(functional.cross_entropy)
    return fptt.FPTT(model, optimizer, loss, num_chunks=6, alpha=0.3, engine=engine, **options)


@pytest.mark.parametrize("coupling", ["coupled", "decoupled"])
def test_parameter_groups_of_their_own(coupling: str) -> None:
    model = make_model("lstm")
    options = {"coupling": coupling, "max_norm": 0.1}
    methods = [grouped(copy.deepcopy(model), engine, **options) for engine in ("eager", "compiled")]
    assert_agreement(methods, [batch() for _ in range(2)])
    for method in methods:  # what a user may change while training
        method.optimizer.param_groups[0]["lr"] = 0.002
        method.optimizer.param_groups[1]["betas"] = (0.6, 0.9)
        assert method.regularizer is not None
        method.regularizer.param_groups[0]["fptt_alpha"] = 0.05
    assert_agreement(methods, [batch() for _ in range(2)])
    assert num_compiled(methods[1]) == 1


def test_a_scheduler_does_not_compile_anew() -> None:
    methods = make_pair(make_model("lstm"))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(method.optimizer, 0.7) for method in methods]
    for _ in range(3):
        assert_agreement(methods, [batch()])
        for scheduler in schedulers:
            scheduler.step()
    assert num_compiled(methods[1]) == 1


def test_a_new_dropout_rate_is_not_ignored() -> None:
    model = nn.ModuleDict({"inner": Words()})["inner"]
    methods = make_pair(model, loss=fptt.SequenceLoss(functional.cross_entropy))
    data = torch.randint(7, (T, B)), torch.randint(7, (T, B))
    assert_agreement(methods, [data])
    for method in methods:
        words: Any = method.model
        words.dropout.p = 0.9
    assert_agreement(methods, [data])
    for method in methods:
        method.model.eval()
    assert_agreement(methods, [data])


def test_unfreezing_and_new_groups() -> None:
    model = make_model("lstm")
    for param in model.get_submodule("readout").parameters():
        param.requires_grad_(False)
    methods = make_pair(model)
    assert_agreement(methods, [batch()])
    for method in methods:
        for param in method.model.get_submodule("readout").parameters():
            param.requires_grad_(True)
    assert_agreement(methods, [batch(), batch()])
