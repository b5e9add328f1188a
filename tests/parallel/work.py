"""What each process does in the tests; with each engine all of it in one start."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn

import fptt
from fptt._engine.compiled import compiler
from tests.parallel.problem import (
    NUM_UPDATES,
    SETTINGS,
    K,
    Model,
    T,
    batch,
    everything,
    make_loss,
    make_method,
    message,
    train,
)


def work(number: int) -> dict[str, Any]:
    """Return what the eager engine comes to."""
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        method = make_method(setting, fptt.DataParallel(check=True), seed=number)
        batches = range(NUM_UPDATES if setting["kind"] is fptt.BPTT else NUM_UPDATES // K)
        found[name] = learned(method, batches, number, staggered="staggered" in setting)
    found["local"] = local_updates(number)
    found["local results"] = local_results(number)
    found["skips"] = skips(number)
    found["bad losses"] = bad_losses(number)
    found["skips for ever"] = skips_for_ever(number)
    found["resumed"] = resumed(number)
    found["gradients"] = missing_gradient(number)
    found["buffers"] = buffers(number)
    found["shares"] = steps_of_several_targets(slice(number, None, 2), fptt.DataParallel(check=True))
    found["sparse"] = sparse_gradient(slice(number, None, 2), fptt.DataParallel(check=True))
    found["errors"] = errors(number)
    return found


def work_traced(number: int) -> dict[str, Any]:
    """Return what the traced steps of the compiled engine come to."""
    with interpreted():
        found: dict[str, Any] = {name: with_engine(name, number, range(10)) for name in CHUNKED}
        found["local"] = local_updates(number, "compiled")
        found["bad losses"] = bad_losses(number, "compiled")
        found["errors"] = {policy: bad_targets(number, policy) for policy in ("raise", "skip")}
        found["gradients"] = message(lambda: missing_gradient(number, "compiled"))
    return found


CHUNKED = [name for name in SETTINGS if name not in ("BPTT", "FPTT recomputed")]


@contextmanager
def interpreted() -> Iterator[None]:
    """Run the traced graphs of the compiled engine as they are."""
    with mock.patch.object(compiler, "_compile", lambda graph, examples: graph):  # noqa: ARG005
        yield


def with_engine(name: str, number: int, batches: range) -> dict[str, Any]:
    """Return what a setting comes to with the compiled engine."""
    setting = {**SETTINGS[name], "engine": "compiled"}
    method = make_method(setting, fptt.DataParallel(check=True), seed=number)
    return learned(method, batches, number, staggered="staggered" in setting)


def learned(method: fptt.Method, batches: range, number: int, *, staggered: bool) -> dict[str, Any]:
    """Train on this process's part of batches, and return what comes of it."""
    results = train(method, batches, number, 2, staggered=staggered)
    return {"tensors": everything(method), "results": results, "updates": method.updates, "batches": batches}


def bad_targets(number: int, policy: str) -> list[Any]:
    """Return what comes of infinite targets in chunk 2 of the second batch of process 1, with the compiled engine."""
    setting = {**SETTINGS["FPTT masked steps"], "engine": "compiled", "on_bad_number": policy}
    method = make_method(setting, fptt.DataParallel(check=True))
    said, skipped = [], []
    for index in (1, 2):
        inputs, targets, _ = batch(index, per_step=True)
        targets[5, 1] = float("inf") if index == 2 else 0.0
        own = slice(number, None, 2)
        said.append(
            message(lambda i=inputs[:, own], t=targets[:, own]: skipped.append(method.train_batch(i, t).skipped))
        )
    return [said, skipped, method.updates, everything(method)]


def local_updates(number: int, engine: str = "eager") -> list[list[Tensor]]:
    """Return everything after each of 6 batches of 4 chunks, averaged after every 3 updates."""
    setting = {**SETTINGS["FPTT"], "engine": engine}
    method = make_method(setting, fptt.DataParallel(sync_every=3, check=True), seed=number)
    seen = []
    for index in range(6):
        train(method, range(index, index + 1), number, 2)
        seen.append(everything(method))
    return seen


def local_results(number: int) -> list[fptt.BatchResult]:
    """Return the results of three batches of 4 chunks: without gaps, with 1 real step in process 1, and with a NaN.

    The learning rate is 0, so that the gradients are those of the first weights.
    """
    torch.manual_seed(0)
    model = Model().double()
    optimizer, loss = torch.optim.SGD(model.parameters(), 0.0), make_loss("steps")
    parallel = fptt.DataParallel(sync_every=2)
    options: dict[str, Any] = {"num_chunks": K, "on_bad_number": "skip", "parallel": parallel}
    method, results = fptt.TBPTT(model, optimizer, loss, **options), []
    for index in range(3):
        inputs, targets, _ = batch(1, per_step=True)
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
        if index == 1:
            mask[1:, 1::2] = False
        if index == 2:
            inputs[5, 1] = float("nan")
        own = slice(number, None, 2)
        result = method.train_batch(inputs[:, own], targets[:, own], mask=mask[:, own])
        results.append(result._replace(state=None))
    return results


def compiled(number: int) -> dict[str, Any]:
    """Return what one setting comes to with machine code, on batches of one size."""
    return with_engine("FPTT running prior", number, range(0, 9, 3))


def compiled_all(number: int) -> dict[str, Any]:
    """Return what all settings come to with machine code."""
    found = {name: with_engine(name, number, range(NUM_UPDATES // K)) for name in CHUNKED}
    return {"local": local_updates(number, "compiled"), **found}


def skips(number: int) -> dict[str, Any]:
    """Return what is skipped if chunk 2 of the second batch has bad inputs in process 1."""
    found: dict[str, Any] = {}
    for sync_every in (1, 3):
        setting = {**SETTINGS["FPTT"], "on_bad_number": "skip"}
        method = make_method(setting, fptt.DataParallel(sync_every=sync_every, check=True))
        skipped = []
        for index in range(3):
            inputs, targets, _ = batch(index, per_step=False)
            inputs[6, 1] = float("nan") if index == 1 else 0.0
            skipped.append(method.train_batch(inputs[:, number::2], targets[number::2]).skipped)
        method.sync()
        found[f"skipped {sync_every}"], found[f"tensors {sync_every}"] = skipped, everything(method)
    return found


def bad_losses(number: int, engine: str = "eager") -> dict[str, list[Any]]:
    """Return what comes of a loss in process 1 that is infinite, in a batch among five of 4 local updates each.

    What is said of each batch, how many chunks were skipped, and everything after the last averaging.
    """
    found: dict[str, list[Any]] = {}
    for policy, bad_chunk, bad_batch in (("raise", 1, 1), ("raise", 2, 1), ("skip", 2, 1), ("skip", 0, 0)):
        setting = {**SETTINGS["FPTT masked steps"], "engine": engine, "on_bad_number": policy}
        method = make_method(setting, fptt.DataParallel(sync_every=3, check=True))
        said = []
        for index in range(5):
            inputs, targets, _ = batch(index, per_step=True)
            if index == bad_batch:
                targets[2 * bad_chunk + 1, 1] = float("inf")  # a sequence of process 1
            own = slice(number, None, 2)
            said.append(message(partial(method.train_batch, inputs[:, own], targets[:, own])))
        method.sync()
        found[f"{policy} {bad_chunk}"] = [said, method.skipped, everything(method)]
    return found


def skips_for_ever(number: int) -> list[Any]:
    """Return what is said if process 1 skips all of the first batch of three, and may not skip so many, and the end."""
    setting = {**SETTINGS["FPTT masked steps"], "on_bad_number": "skip"}
    method = make_method(setting, fptt.DataParallel(sync_every=3, check=True))
    said = []
    with mock.patch("fptt._methods.method.MOST_SKIPPED_IN_A_ROW", K):
        for index in range(3):
            inputs, targets, _ = batch(index, per_step=True)
            if index == 0:
                targets[:, 1] = float("inf")
            own = slice(number, None, 2)
            said.append(message(partial(method.train_batch, inputs[:, own], targets[:, own])))
    method.sync()
    return [said, everything(method)]


def resumed(number: int) -> list[Tensor]:
    """Return everything after the same 6 batches, with a stop 8 updates after the beginning."""
    parallel = fptt.DataParallel(sync_every=3)
    method = make_method(SETTINGS["FPTT"], parallel, seed=number)
    train(method, range(2), number, 2)
    states = method.model.state_dict(), method.optimizer.state_dict(), method.state_dict()
    method = make_method(SETTINGS["FPTT"], parallel, seed=7)
    for part, state in zip((method.model, method.optimizer, method), states, strict=True):
        part.load_state_dict(state)
    train(method, range(2, 6), number, 2)
    return everything(method)


class TwoReadouts(Model):
    """Uses its second read-out for positive inputs only, or as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 4)
        self.uses_other: bool | None = None

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        uses_other = inputs.mean() > 0 if self.uses_other is None else self.uses_other
        return (self.other if uses_other else self.readout)(outputs), state


def missing_gradient(number: int, engine: Literal["eager", "compiled"] = "eager") -> list[Tensor]:
    """Return the weights after an update in which each process uses a read-out of its own."""
    torch.manual_seed(0)
    model = TwoReadouts().double()
    model.uses_other = bool(number) if engine == "compiled" else None
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    parallel = fptt.DataParallel(check=True)
    method = fptt.FPTT(model, optimizer, make_loss("uniform"), num_chunks=1, parallel=parallel, engine=engine)
    inputs = torch.full((3, 2, 3), 1.0 if number else -1.0, dtype=torch.float64)
    method.train_batch(inputs, torch.tensor([0, 1]))
    return everything(method)


class SeveralOutputs(nn.Module):
    """Has four outputs of two classes at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.RNN(3, 8)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.layer(inputs, state)
        return outputs.unflatten(-1, (2, 4)), state


def steps_of_several_targets(own: slice, parallel: fptt.DataParallel | None = None) -> list[Tensor]:
    """Return loss and weights after an update on some of two sequences, with one label at one step of each."""
    torch.manual_seed(0)
    model = SeveralOutputs().double()
    loss, optimizer = fptt.SequenceLoss(nn.functional.cross_entropy), torch.optim.SGD(model.parameters(), 0.5)
    method = fptt.TBPTT(model, optimizer, loss, num_chunks=1, parallel=parallel)
    inputs, targets = torch.randn(3, 2, 3, dtype=torch.float64), torch.full((3, 2, 4), -100)
    targets[1, 0, 0], targets[2, 1, 1] = 0, 1
    return [method.train_batch(inputs[:, own], targets[:, own]).loss, *everything(method)]


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(10, 3, sparse=True), nn.RNN(3, 4)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.layer(self.embedding(inputs), state)


def sparse_gradient(own: slice, parallel: fptt.DataParallel | None = None) -> list[Tensor]:
    """Return loss and weights after an update on some of four sequences, with a sparse gradient."""
    torch.manual_seed(0)
    model = Embedded().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    method = fptt.TBPTT(model, optimizer, make_loss("uniform"), num_chunks=1, parallel=parallel)
    inputs, targets = torch.randint(10, (5, 4)), torch.arange(4)
    return [method.train_batch(inputs[:, own], targets[own]).loss, *everything(method)]


class Counting(Model):
    """Has a buffer of floating point, as BatchNorm, and one of whole numbers, of a dtype that gloo does not send."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.short))

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.mean += inputs[0, 0, 0]
        self.calls += 1
        return super().forward(inputs, state)


def buffers(number: int) -> list[float]:
    model = Counting().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = fptt.TBPTT(model, optimizer, make_loss("uniform"), num_chunks=1, parallel=fptt.DataParallel())
    method.train_batch(torch.full((3, 2, 3), 2.0 * number, dtype=torch.float64), torch.tensor([0, 1]))
    return [model.mean.item(), model.calls.item()]


def errors(number: int) -> dict[str, Any]:
    """Return what is said in this process when the first batch is wrong in process 1."""
    good = torch.zeros(T, 2, 3, dtype=torch.float64), torch.tensor([0, 1])
    nan = good[0].clone()
    nan[5] = float("nan")
    found: dict[str, Any] = {}
    for sync_every in (1, 3):
        parallel = fptt.DataParallel(sync_every=sync_every, check=True)

        def told(bad: Any, parallel: fptt.DataParallel = parallel, **options: Any) -> list[Any]:
            method = make_method({**SETTINGS["FPTT"], **options}, parallel)
            before = everything(method)
            text = message(lambda: method.train_batch(*(bad if number else good)))
            same = all(torch.equal(one, other) for one, other in zip(before, everything(method), strict=False))
            return [text, method.updates, same]

        found[f"inputs {sync_every}"] = told((nan, good[1]))
        found[f"targets {sync_every}"] = told((good[0], torch.tensor([0, 1, 2])))
        found[f"empty {sync_every}"] = told((good[0][:0], good[1]))
        found[f"state {sync_every}"] = told((*good, "zeros"))
        found[f"loss {sync_every}"] = bad_loss(number, parallel)
    drifted = make_method(SETTINGS["TBPTT"], fptt.DataParallel(check=True))
    if number:
        with torch.no_grad():
            next(drifted.model.parameters())[0, 0] += 1e-12
    found["drift"] = message(lambda: drifted.train_batch(*good))
    found["lengths"] = message(
        lambda: make_method({"kind": fptt.TBPTT, "chunk_length": 2 + number}, fptt.DataParallel()).train_batch(*good)
    )
    found["sizes"] = message(lambda: other_size(number))
    return found


def other_size(number: int) -> None:
    model = nn.LSTM(3, 4 + number)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fptt.TBPTT(model, optimizer, make_loss("uniform"), num_chunks=1, parallel=fptt.DataParallel())


class Overflowing(Model):
    """Gives outputs that are not finite at its third call in process 1."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.calls = number, 0

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.calls += 1
        outputs, state = super().forward(inputs, state)
        return outputs * (float("inf") if self.calls == 3 and self.number else 1.0), state


def bad_loss(number: int, parallel: fptt.DataParallel) -> list[Any]:
    torch.manual_seed(0)
    model = Overflowing(number).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = fptt.FPTT(model, optimizer, make_loss("uniform"), num_chunks=K, parallel=parallel)
    inputs, targets, _ = batch(0, per_step=False)
    text = message(lambda: method.train_batch(inputs[:, number::2], targets[number::2]))
    return [text, method.updates, bool(all(param.isfinite().all() for param in model.parameters()))]
