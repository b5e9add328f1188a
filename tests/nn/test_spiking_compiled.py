"""Spiking networks in the compiled engine: equal to the eager one where no potential is at its threshold."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt._engine.compiled.engine import CompiledEngine
from fptt._sequence import flatten_state
from fptt.nn import spiking
from fptt.nn.spiking import neurons
from tests.engine.compiled.agreement import assert_equal_memory

pytestmark = pytest.mark.usefixtures("float64", "both_ways")
T, B, D, H, C = 12, 3, 2, 5, 4


@contextmanager
def margins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Collect the smallest distance of a potential from its threshold, of every spike that is taken eagerly."""
    found: list[float] = []

    def spike(u: Tensor, surrogate: spiking.Surrogate) -> Tensor:
        found.append(u.detach().abs().min().item())
        return spiking.spike(u, surrogate)

    with monkeypatch.context() as patch:
        patch.setattr(neurons, "spike", spike)
        yield found


def make(model: nn.Module, loss: fptt.ChunkLoss, engine: Any, **options: Any) -> fptt.FPTT:
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return fptt.FPTT(model, optimizer, copy.deepcopy(loss), engine=engine, alpha=0.4, **options)


def assert_equal_runs(one: list[fptt.BatchResult], other: list[fptt.BatchResult]) -> None:
    assert one
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first.chunk_losses, second.chunk_losses, rtol=1e-10, atol=1e-10)
        states = (flatten_state(result.state) for result in (first, second))
        for tensor, same in zip(*states, strict=True):
            torch.testing.assert_close(tensor, same, rtol=1e-10, atol=1e-10)
        assert isinstance(second.state, spiking.SpikingState)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (spiking.LIF, {"pool": "max"}),
        (spiking.LIF, {"recurrent": False, "reset": "zero", "surrogate": spiking.FastSigmoid(), "num_layers": 2}),
        (spiking.ALIF, {"pool": "mean", "detach_reset": True, "surrogate": spiking.ArcTan()}),
        (spiking.LiquidLIF, {"pool": "mean", "num_layers": 2, "dropout": 0.3}),
        (spiking.LiquidLIF, {"batch_first": True, "surrogate": spiking.Sigmoid()}),
    ],
)
def test_the_compiled_step_equals_the_eager_one(
    kind: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind(D, H, C, last_only=True, **options)
    batch_first = options.get("batch_first", False)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    methods = [make(model, loss, engine, num_chunks=4, batch_first=batch_first) for engine in ("eager", "compiled")]
    batches = [(torch.randn(*(B, T, D) if batch_first else (T, B, D)), torch.randint(C, (B,))) for _ in range(3)]
    random = torch.get_rng_state()
    with margins(monkeypatch) as found:
        expected = [methods[0].train_batch(*batch) for batch in batches]
    assert min(found) > 1e-6  # no rounding can make a spike
    torch.set_rng_state(random)
    results = [methods[1].train_batch(*batch) for batch in batches]
    assert_equal_runs(expected, results)
    assert_equal_memory(methods, 1e-10)
    assert spiking.firing_rate(results[-1].state).mean().item() > 0.02
    # one step for all chunks: zeros stand for the None of the first one
    assert isinstance(methods[1]._engine, CompiledEngine)
    assert len(methods[1]._engine._entries) == 1


def test_spikes_without_a_readout_in_the_compiled_step() -> None:
    model = fptt.nn.Recurrent(spiking.LIF(D, H), nn.Linear(H, C))
    loss = fptt.SequenceLoss(functional.cross_entropy)
    methods = [make(model, loss, engine, num_chunks=4) for engine in ("eager", "compiled")]
    inputs, targets = torch.randn(T, B, D), torch.randint(C, (T, B))
    assert_equal_runs(*([method.train_batch(inputs, targets)] for method in methods))


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
def test_staggered_lanes_begin_again_in_both_engines(pool: Any) -> None:
    model = spiking.ALIF(D, H, C, pool=pool)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    methods = [make(model, loss, engine, num_chunks=3) for engine in ("eager", "compiled")]
    batches = [fptt.Batch(torch.randn(6, 4, D), torch.randint(C, (4,))) for _ in range(4)]
    runs = [list(method.train_stream(fptt.stagger(batches, num_chunks=3))) for method in methods]
    assert_equal_runs(*runs)
    # lanes are at different places of their sequences, and each counts its own steps
    assert runs[1][-2].state.neurons.num_steps.unique().numel() > 1


def test_a_gradient_through_two_chunks_in_both_engines() -> None:
    model = spiking.LiquidLIF(D, H, C, pool="mean", last_only=True)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    methods = [make(model, loss, engine, num_chunks=4, horizon=2) for engine in ("eager", "compiled")]
    batch = torch.randn(T, B, D), torch.randint(C, (B,))
    runs = [[method.train_batch(*batch) for _ in range(2)] for method in methods]
    assert_equal_runs(*runs)
    cut = make(model, loss, "eager", num_chunks=4)
    cut.train_batch(*batch)
    assert not torch.allclose(cut.train_batch(*batch).loss, runs[0][1].loss, rtol=1e-6)
