"""Sequences of unequal lengths: packed end to end, or padded with the mask of their lengths."""

import copy
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

import fptt
from tests.problems import assert_same_weights

D, H, C = 2, 4, 5
LENGTHS = [7, 1, 4, 9, 2, 2, 5, 11, 1, 3]
METHODS: dict[str, Callable[..., fptt.Method]] = {"tbptt": fptt.TBPTT, "fptt": fptt.FPTT}
pytestmark = pytest.mark.usefixtures("float64")


def ragged() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, D, generator=generator), torch.randint(C, (n,), generator=generator)) for n in LENGTHS]


def sequence() -> fptt.SequenceLoss:
    return fptt.SequenceLoss(functional.cross_entropy)


def build(name: str, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, fptt.Method]:
    torch.manual_seed(2)
    model = fptt.nn.LSTM(D, H, C)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return model, optimizer, METHODS[name](model, optimizer, sequence(), **(options or {"num_chunks": 1}))


def played(batch_size: int) -> Iterator[list[int | None]]:
    """Step by step: which sequence each lane plays, None after the last."""
    waiting, left = iter(range(len(LENGTHS))), [0] * batch_size
    lanes: list[int | None] = [None] * batch_size
    while True:
        for lane in range(batch_size):
            if left[lane] == 0:
                lanes[lane] = number = next(waiting, None)
                left[lane] = 0 if number is None else LENGTHS[number]
        if not any(left):
            return
        yield list(lanes)
        left = [max(n - 1, 0) for n in left]


@pytest.mark.parametrize("chunk_length", [1, 3, 4, 50])
@pytest.mark.parametrize("batch_size", [1, 3, 12])
@pytest.mark.parametrize("name", METHODS)
def test_packing_is_training_on_the_sequences_alone(name: str, batch_size: int, chunk_length: int) -> None:
    """Each sequence runs by itself from its own state; a chunk's loss is the mean over its real steps."""
    model, _, method = build(name)
    list(method.train_stream(fptt.pack_lanes(iter(ragged()), batch_size=batch_size, chunk_length=chunk_length)))
    method.close()
    other, optimizer, own = build(name)
    own.close()
    if name == "fptt":
        fptt.DynamicRegularizer(other.parameters()).attach(optimizer)
    states: dict[int, Any] = {}
    done = [0] * len(LENGTHS)
    steps = list(played(batch_size))
    for begin in range(0, len(steps), chunk_length):
        counts = [number for step in steps[begin : begin + chunk_length] for number in step if number is not None]
        total = torch.zeros(())
        for number in set(counts):
            part = slice(done[number], done[number] + counts.count(number))
            inputs, targets = (tensor[part] for tensor in ragged()[number])
            output, state = other(inputs[:, None], states.get(number))
            total = total + functional.cross_entropy(output[:, 0], targets, reduction="sum")
            states[number], done[number] = fptt.detach_state(state), part.stop
        optimizer.zero_grad()
        (total / len(counts)).backward()
        optimizer.step()
    assert done == LENGTHS
    for one, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_length", [1, 4, 50])
def test_padding_stands_at_the_very_end_alone(chunk_length: int) -> None:
    chunks = list(fptt.pack_lanes(ragged(), batch_size=3, chunk_length=chunk_length))
    assert {tuple(chunk.inputs.shape) for chunk in chunks} == {(chunk_length, 3, D)}
    mask, is_first = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("mask", "is_first"))
    assert mask.sum() == sum(LENGTHS)
    assert is_first.sum() == len(LENGTHS)
    assert not (mask.int().diff(dim=0) > 0).any()
    ends = mask.sum(0)
    assert ends.max() - ends.min() <= max(LENGTHS)
    assert len(chunks) == -(-int(ends.max()) // chunk_length)


def test_a_sequence_is_pulled_when_a_lane_is_free() -> None:
    pulled: list[int] = []
    chunks = fptt.pack_lanes(
        (pulled.append(n) or pair for n, pair in enumerate(ragged())), batch_size=2, chunk_length=4
    )
    for expected in (3, 5, 7):  # lanes of 7, 2, 2, 5 and of 1, 4, 9 steps
        next(chunks)
        assert len(pulled) == expected
    assert list(fptt.pack_lanes([], batch_size=2, chunk_length=4)) == []


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("chunk_length", [1, 3, 50])
@pytest.mark.parametrize("stop", [0, 1, 2, 5, 8])
def test_stopped_packing_goes_on_bitwise(stop: int, chunk_length: int, ahead: int) -> None:
    """Everything is saved after some chunks; elsewhere what is over is skipped, and the rest is alike."""

    def start(skip: int = 0, position: dict[str, Any] | None = None) -> tuple[Any, ...]:
        model, optimizer, method = build("fptt")
        chunks = fptt.pack_lanes(islice(ragged(), skip, None), batch_size=3, chunk_length=chunk_length)
        if position is not None:
            chunks.load_state_dict(position)
            assert chunks.state_dict() == position
        return model, optimizer, method, fptt.prefetch(chunks, ahead) if ahead else chunks

    parts = start()
    stream, state = parts[2].train_stream(parts[3]), None
    for result in islice(stream, stop):
        state = result.state
    saved = copy.deepcopy([part.state_dict() for part in parts])
    expected = [result.loss.item() for result in stream]
    position = json.loads(json.dumps(saved[3]))  # it is plain numbers
    assert position["skip"] <= position["taken"] <= len(LENGTHS)
    others = start(position["skip"], position)
    for part, own in zip(others[:3], saved[:3], strict=True):
        part.load_state_dict(own)
    assert [result.loss.item() for result in others[2].train_stream(others[3], state)] == expected
    assert_same_weights(parts[0], others[0])


def test_packing_goes_on_after_its_source_failed() -> None:
    """The sequences that were taken for the chunk that was not finished are in the position."""

    def broken() -> Iterator[Any]:
        yield from ragged()[:7]
        raise OSError("unreadable")

    chunks = fptt.pack_lanes(broken(), batch_size=3, chunk_length=6)
    first = next(chunks)
    with pytest.raises(OSError, match="unreadable"):
        next(chunks)
    position = chunks.state_dict()
    assert (position["taken"], position["step"]) == (7, 6)
    others = fptt.pack_lanes(ragged()[position["skip"] :], batch_size=3, chunk_length=6)
    others.load_state_dict(position)
    found, expected = [first, *others], list(fptt.pack_lanes(ragged(), batch_size=3, chunk_length=6))
    for own, its in zip(found, expected, strict=True):
        torch.testing.assert_close(tuple(own), tuple(its), rtol=0, atol=0)


def test_slips_of_resuming_are_named() -> None:
    chunks = fptt.pack_lanes(ragged(), batch_size=3, chunk_length=4)
    next(chunks)
    position = chunks.state_dict()
    assert (position["skip"], position["taken"]) == (0, 4)
    slips: list[tuple[list[Any], int, int, dict[str, Any], str]] = [
        (ragged(), 2, 4, position, "state_dict must have batch_size=2 as here, got 3"),
        (ragged(), 3, 5, position, "state_dict must have chunk_length=5 as here, got 4"),
        (ragged(), 3, 4, {}, "must have the keys"),
        (ragged()[1:], 3, 4, position, "without the first 0: number 0 must have 7 steps, got one of 1 steps"),
        (ragged()[:3], 3, 4, position, "number 3 must have 9 steps, got the end"),
    ]
    for sequences, batch_size, chunk_length, state, message in slips:
        with pytest.raises(ValueError, match=message):
            fptt.pack_lanes(sequences, batch_size=batch_size, chunk_length=chunk_length).load_state_dict(state)
    with pytest.raises(ValueError, match="must be loaded before the first chunk, got 4 sequences taken"):
        chunks.load_state_dict(position)


def test_batch_first_chunks_are_the_same_transposed() -> None:
    plain = list(fptt.pack_lanes(ragged(), batch_size=3, chunk_length=4))
    turned = list(fptt.pack_lanes(ragged(), batch_size=3, chunk_length=4, batch_first=True))
    for name in ("inputs", "targets", "mask", "is_first"):
        one, other = (torch.stack([getattr(chunk, name) for chunk in chunks]) for chunks in (plain, turned))
        assert torch.equal(one, other.transpose(1, 2))


def test_slips_of_sequences_are_named() -> None:
    x, y = ragged()[0]
    slips: list[tuple[Any, type[Exception], str]] = [
        ([(x, y), (x, y[1:])], ValueError, r"inputs \(T_i, …\) and targets .*\(7, 2\) and \(6,\) at 1"),
        ([(x[:0], y[:0])], ValueError, "at least one step"),
        ([(x, y), (x[:, :1], y)], ValueError, "steps like the first"),
        ([(x, y), (x.float(), y)], ValueError, "steps like the first"),
        ([x], TypeError, r"sequences must give pairs \(inputs, targets\), got a Tensor at 0"),
    ]
    for sequences, error, message in slips:
        with pytest.raises(error, match=message):
            list(fptt.pack_lanes(sequences, batch_size=2, chunk_length=3))
    with pytest.raises(TypeError, match="sequences must be iterable"):
        fptt.pack_lanes(3, batch_size=2, chunk_length=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        fptt.pack_lanes([], batch_size=0, chunk_length=3)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("packed_targets", [False, True])
def test_a_packed_sequence_is_padded_with_the_mask_of_its_lengths(batch_first: bool, packed_targets: bool) -> None:
    inputs, targets = zip(*ragged(), strict=True)
    mask = fptt.length_mask(LENGTHS, max(LENGTHS))
    models = []
    for packed in (False, True):
        torch.manual_seed(2)
        model = fptt.nn.LSTM(D, H, C, batch_first=batch_first)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        method = fptt.FPTT(model, optimizer, sequence(), chunk_length=4, batch_first=batch_first)
        x, y = (pad_sequence(list(part), batch_first) for part in (inputs, targets))
        state = (torch.arange(10.0)[:, None].expand(1, 10, H).contiguous(), torch.zeros(1, 10, H))  # lane b begins at b
        if packed:
            own = pack_sequence(list(targets), enforce_sorted=False) if packed_targets else y
            result = method.train_batch(pack_sequence(list(inputs), enforce_sorted=False), own, state)
        else:
            result = method.train_batch(x, y, state, mask=mask.T if batch_first else mask)
        assert result.updates == 3
        models.append(model)
    assert_same_weights(*models)


def test_a_label_for_each_packed_sequence_belongs_to_its_last_step() -> None:
    inputs = [pair[0] for pair in ragged()]
    labels = torch.arange(len(LENGTHS)) % C
    model = fptt.nn.LSTM(D, H, C)
    method = fptt.BPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), fptt.TerminalLoss(functional.cross_entropy))
    finals = torch.stack([model(x[:, None])[0][-1, 0] for x in inputs])
    found = method.train_batch(pack_sequence(inputs, enforce_sorted=False), labels).loss
    torch.testing.assert_close(found, functional.cross_entropy(finals, labels))
    with pytest.raises(ValueError, match="targets must be one per sequence"):
        method.train_batch(pack_sequence(inputs, False), pack_sequence([pair[1] for pair in ragged()], False))


def test_slips_of_packed_sequences_are_named() -> None:
    _, _, method = build("tbptt")
    inputs, targets = (pack_sequence([pair[n] for pair in ragged()], enforce_sorted=False) for n in (0, 1))
    other = pack_sequence([pair[1] for pair in reversed(ragged())], enforce_sorted=False)
    with pytest.raises(ValueError, match="mask must be None with a PackedSequence"):
        method.train_batch(inputs, targets, mask=fptt.length_mask(LENGTHS, 11))
    with pytest.raises(ValueError, match="targets must have the lengths of inputs"):
        method.train_batch(inputs, other)
    with pytest.raises(TypeError, match="targets must be a tensor, got a PackedSequence"):
        method.train_batch(torch.zeros(11, 10, D), targets)
    with pytest.raises(TypeError, match="inputs must be a tensor, got a PackedSequence"):
        list(method.train_stream([(inputs, targets)]))
    assert isinstance(inputs, PackedSequence)


def test_length_mask() -> None:
    expected = [[True, False, True], [True, False, False]]
    assert fptt.length_mask([2, 0, 1], 2).T.tolist() == [[True, True], [False, False], [True, False]]
    assert fptt.length_mask(torch.tensor([2, 0, 1]), 2).tolist() == expected
    slips: list[tuple[Any, Any, str]] = [
        ([3, 1], 2, r"lengths must be in 0 … num_steps = 2, got \[3, 1\]"),
        ([-1], 2, "lengths must be in 0"),
        ([1.5], 2, r"lengths must be integers of shape \(B,\), got torch.float"),
        ([[1]], 2, "lengths must be integers"),
        ([], 2, "lengths must be integers"),
        ([1], 0, "num_steps must be a positive integer, got 0"),
    ]
    for lengths, num_steps, message in slips:
        with pytest.raises(ValueError, match=message):
            fptt.length_mask(lengths, num_steps)
