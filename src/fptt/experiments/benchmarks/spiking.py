"""`fptt bench spiking`: the time of a batch of a spiking network, an update a step, beside SpikingJelly's own FPTT."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from fptt.experiments.benchmarks.timing import Stopwatch, take_turns
from fptt.experiments.process.machine import environment
from fptt.nn import spiking
from fptt.nn.spiking.neurons import LIFLayer

INPUT_SIZE, NUM_CLASSES = 1, 10
LR, ALPHA = 1e-3, 0.1
TAU = 2.0
"""SpikingJelly's: v⁻ = v + (d − v)/τ, so that α = ½ here."""

TrainBatch = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class SpikingBench:
    """Measures Linear(1, H), LIF neurons, Linear(H, 10) on random sequences with a label at every step.

    Attributes:
        sequence_length: T; TBPTT and FPTT make as many updates.
        batch_size: B.
        hidden_size: H.
        engines: Of TBPTT and FPTT.
        repeats: Rounds, after a warm-up.
        seed: Of weights and data.
    """

    sequence_length: int
    batch_size: int
    hidden_size: int
    engines: Sequence[str]
    repeats: int
    seed: int = 0

    def run(self) -> dict[str, Any]:
        """Measure all rows in turns, and return the report: environment, settings, rows, notes."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.sequence_length, self.batch_size)
        inputs = torch.randn(*shape, INPUT_SIZE, generator=generator)
        targets = torch.randint(NUM_CLASSES, shape, generator=generator)
        contestants, notes = self._contestants()
        for train_batch in contestants.values():
            train_batch(inputs, targets)
        stopwatch = Stopwatch(torch.device("cpu"))

        def timed(train_batch: TrainBatch) -> Callable[[], float]:
            return lambda: stopwatch.seconds(lambda: train_batch(inputs, targets))

        seconds = take_turns([timed(own) for own in contestants.values()], self.repeats)
        return {
            "environment": environment(torch.device("cpu")),
            "settings": {**vars(self), "engines": list(self.engines), "lr": LR, "alpha": ALPHA, "optimizer": "adam"},
            "rows": make_rows(dict(zip(contestants, seconds, strict=True))),
            "notes": notes,
        }

    def _contestants(self) -> tuple[dict[str, TrainBatch], list[str]]:
        """Return what trains a batch, by the names of the rows, and which row is left out and why."""
        found: dict[str, TrainBatch] = {}
        notes: list[str] = []
        try:
            found["spikingjelly"] = self._spikingjelly()
        except ImportError as error:
            notes.append(f"no row spikingjelly: it cannot be imported ({error}); see docs/spiking.md")
        found["bptt"] = self._method(fptt.BPTT)
        for engine in self.engines:
            found[f"tbptt {engine}"] = self._method(fptt.TBPTT, num_chunks=self.sequence_length, engine=engine)
            options = {"num_chunks": self.sequence_length, "alpha": ALPHA, "engine": engine}
            found[f"fptt {engine}"] = self._method(fptt.FPTT, **options)
            if engine == "eager":  # two passes an update, as SpikingJelly's
                options |= {"previous_gradient": "recomputed", "coupling": "coupled"}
                found[f"fptt {engine} recomputed"] = self._method(fptt.FPTT, **options)
        return found, notes

    def _method(self, kind: type[fptt.Method], **options: Any) -> TrainBatch:
        torch.manual_seed(self.seed)
        model = make_network(self.hidden_size)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        return kind(model, optimizer, fptt.SequenceLoss(functional.cross_entropy), **options).train_batch

    def _spikingjelly(self) -> TrainBatch:
        from spikingjelly.activation_based import functional as states  # pyright: ignore[reportMissingImports]
        from spikingjelly.activation_based import neuron  # pyright: ignore[reportMissingImports]
        from spikingjelly.activation_based.learning import (  # pyright: ignore[reportMissingImports]
            online_learning,
        )

        torch.manual_seed(self.seed)
        own = make_network(self.hidden_size)
        assert isinstance(own.rnn, spiking.LIF)
        layer = own.rnn.layers[0]
        assert isinstance(layer, LIFLayer)
        assert isinstance(own.readout, nn.Linear)
        network = nn.Sequential(layer.input, neuron.LIFNode(tau=TAU), own.readout)
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        averages = online_learning.fptt_online_training_init_w_ra(optimizer)

        def train_batch(inputs: Tensor, targets: Tensor) -> None:
            states.reset_net(network)
            online_learning.fptt_online_training(
                network, optimizer, inputs, targets, functional.cross_entropy, ALPHA, averages
            )

        return train_batch


def make_network(hidden_size: int) -> fptt.nn.Recurrent:
    """Return the network of all rows, with the neurons that SpikingJelly's `LIFNode()` has."""
    neurons = spiking.LIF(
        INPUT_SIZE,
        hidden_size,
        recurrent=False,
        threshold=1.0,
        reset="zero",
        tau=-1 / math.log1p(-1 / TAU),  # 1 − exp(−1/tau) = 1/τ
        learn_tau=False,
        surrogate=spiking.Sigmoid(slope=4.0),
    )
    return fptt.nn.Recurrent(neurons, nn.Linear(hidden_size, NUM_CLASSES))


def make_rows(measured: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return medians, and how many times faster each row is than SpikingJelly's, or without it than eager FPTT."""
    medians = {name: median(seconds) for name, seconds in measured.items()}
    base = next((name for name in ("spikingjelly", "fptt eager") if name in medians), next(iter(medians)))
    return [
        {
            "name": name,
            "seconds": medians[name],
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
            "base": base,
            "times_faster": medians[base] / medians[name],
        }
        for name, seconds in measured.items()
    ]
