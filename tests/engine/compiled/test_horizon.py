"""A horizon in the compiled engine: equal to the eager one, by one compiled step for chunks of one length."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fptt
from fptt._engine.compiled import compiler
from tests.engine.compiled.agreement import assert_equal_memory, assert_equal_results, make_pair
from tests.engine.compiled.test_staggered import C, D, H, Learned, batches, number_of_steps

B, K = 3, 4


@pytest.mark.parametrize("horizon", [2, 4])
@pytest.mark.parametrize("model", ["lstm", "gru", "learned"])
@pytest.mark.usefixtures("float64", "interpreted")
def test_traced_step_equals_eager(model: str, horizon: int) -> None:
    kinds = {
        "lstm": lambda: fptt.nn.LSTM(D, H, C),
        "gru": lambda: fptt.nn.GRU(D, H, C, num_layers=2),
        "learned": Learned,
    }
    methods = make_pair(kinds[model](), "adam", num_chunks=K, horizon=horizon, alpha=0.3)
    for _ in range(4):
        batch = torch.randn(8, B, D), torch.randint(C, (B,))
        assert_equal_results([method.train_batch(*batch) for method in methods], 1e-10)
    assert_equal_memory(methods, 1e-10)
    # a learned first state is in the windows of the first chunk only, unless that is all of them
    assert number_of_steps(methods[1]) == 1 + (model == "learned" and horizon < K)


@pytest.mark.usefixtures("float64", "interpreted")
def test_chunks_of_two_lengths_a_mask_and_a_given_state() -> None:
    methods = make_pair(fptt.nn.LSTM(D, H, C), "sgd", num_chunks=K, horizon=3, alpha=0.3)
    for _ in range(3):
        batch = torch.randn(10, B, D), torch.randint(C, (B,)), (torch.randn(1, B, H), torch.randn(1, B, H))
        mask = fptt.length_mask([10, 4, 7], 10)
        assert_equal_results([method.train_batch(*batch, mask) for method in methods], 1e-10)
    assert_equal_memory(methods, 1e-10)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.usefixtures("float64", "interpreted")
def test_staggered_lanes(*, learned: bool) -> None:
    methods = make_pair(Learned() if learned else fptt.nn.LSTM(D, H, C), "adam", num_chunks=3, horizon=2, alpha=0.3)
    given = batches([9, 4, 6, 1], 4, per_step=False)
    runs = [method.train_stream(fptt.stagger(given, num_chunks=3)) for method in methods]
    for results in zip(*runs, strict=True):
        assert_equal_results(list(results), 1e-10)
    assert_equal_memory(methods, 1e-10)
    assert number_of_steps(methods[1]) == 1


def without_dead_code(graph: torch.fx.GraphModule, _: Any) -> Any:
    """Leave out what nothing depends on, random numbers too, as a compiler does."""

    def is_needed(node: torch.fx.Node) -> bool:
        schema = getattr(node.target, "_schema", None)
        return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)

    graph.graph.eliminate_dead_code(is_needed)
    graph.recompile()
    return graph


class Normalized(nn.Module):
    """A model with running statistics, which every pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = fptt.nn.LSTM(D, C), nn.BatchNorm1d(C)

    def initial_state(self, inputs: torch.Tensor) -> Any:
        return self.rnn.initial_state(inputs)

    def forward(self, inputs: torch.Tensor, state: Any = None) -> Any:
        outputs, state = self.rnn(inputs, state)
        return self.norm(outputs.flatten(0, 1)).view(outputs.shape), state


@pytest.mark.parametrize("horizon", [2, 3])
@pytest.mark.parametrize("model", ["statistics", "dropout", "learned dropout"])
@pytest.mark.usefixtures("float64")
def test_what_stands_for_no_chunk_has_no_effect(model: str, horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics move, and random numbers are drawn, as often as in the eager engine."""
    monkeypatch.setattr(compiler, "_compile", without_dead_code)
    kinds = {
        "statistics": Normalized,
        "dropout": lambda: fptt.nn.GRU(D, H, C, num_layers=2, dropout=0.5, kernel="plain"),
        "learned dropout": lambda: fptt.nn.Recurrent(Learned(), nn.Dropout(0.5)),
    }
    methods = make_pair(kinds[model](), "adam", num_chunks=K, horizon=horizon, alpha=0.3)
    for number in range(3):
        given = torch.randn(8, B, D), torch.randint(C, (B,)), fptt.length_mask([8, 4, 7], 8)
        results = []
        for method in methods:
            torch.manual_seed(number)
            results.append(method.train_batch(*given[:2], mask=given[2]))
        assert_equal_results(results, 1e-10)
    assert_equal_memory(methods, 1e-10)
    # one for each length of window; a learned first state is in those of the first chunk, the last of them the longest
    assert number_of_steps(methods[1]) == horizon + (model == "learned dropout")


@pytest.mark.machine_code
@pytest.mark.usefixtures("float64")
def test_compiled_step_equals_eager() -> None:
    methods = make_pair(fptt.nn.LSTM(D, H, C, last_only=True), "adam", num_chunks=6, horizon=3, alpha=0.3)
    for _ in range(2):
        batch = torch.randn(6, B, D), torch.randint(C, (B,))
        assert_equal_results([method.train_batch(*batch) for method in methods], 1e-10)
    assert_equal_memory(methods, 1e-10)
    assert number_of_steps(methods[1]) == 1


def test_a_model_without_a_first_state_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(D, C)

        def forward(self, inputs: torch.Tensor, state: Any = None) -> Any:
            return self.layer(inputs, state)

    model = Bare()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = fptt.TerminalLoss(functional.cross_entropy)
    method = fptt.TBPTT(model, optimizer, loss, num_chunks=2, horizon=2, engine="compiled")
    with pytest.raises(fptt.CompilationError, match=r"horizon above 1 .* needs a state to begin with"):
        method.train_batch(torch.randn(4, B, D), torch.randint(C, (B,)))
