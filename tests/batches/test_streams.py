import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

import fptt
from fptt._sequence import flatten_state
from tests.problems import assert_same_weights

T, B, D, H = 24, 3, 2, 4
METHODS: dict[str, Callable[..., fptt.Method]] = {"tbptt": fptt.TBPTT, "fptt": fptt.FPTT}
every_method = pytest.mark.parametrize("name", METHODS)
pytestmark = pytest.mark.usefixtures("float64")


CARRIED: dict[str, Callable[..., nn.Module]] = {
    "LSTM": fptt.nn.LSTM,
    "GRU": fptt.nn.GRU,
    "LIF": fptt.nn.spiking.LIF,
    "ALIF": partial(fptt.nn.spiking.ALIF, pool="mean"),
}
"""Models by what their states are made of."""


def recording(steps: int = T, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    return torch.randn(steps, *shape, D, generator=generator), torch.randn(steps, *shape, H, generator=generator)


def build(name: str = "fptt", **options: Any) -> tuple[nn.Module, fptt.Method]:
    torch.manual_seed(1)
    model = nn.LSTM(D, H)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = options or {"num_chunks": 1}
    return model, METHODS[name](model, optimizer, fptt.SequenceLoss(functional.mse_loss), **options)


@every_method
def test_a_stream_of_chunks_is_the_whole_sequence_in_chunks(name: str) -> None:
    """Chunks of one length weigh alike: the losses and updates are those of `train_batch` on the whole."""
    (model, stream), (other, whole) = build(name), build(name, chunk_length=6)
    inputs, targets = recording(T, B)
    results = list(stream.train_stream(zip(inputs.split(6), targets.split(6), strict=True)))
    expected = whole.train_batch(inputs, targets)
    torch.testing.assert_close(torch.stack([result.loss for result in results]), expected.chunk_losses)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-12, atol=1e-12)
    assert torch.equal(results[-1].state[0], expected.state[0])
    assert (stream.batches, stream.updates, stream.timesteps) == (4, 4, T * B)


@every_method
def test_the_method_cuts_each_chunk_further(name: str) -> None:
    (model, stream), (other, whole) = build(name, chunk_length=3), build(name, chunk_length=3)
    inputs, targets = recording(T, B)
    results = list(stream.train_stream(zip(inputs.split(6), targets.split(6), strict=True)))
    whole.train_batch(inputs, targets)
    assert [result.updates for result in results] == [2] * 4
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-12, atol=1e-12)


def test_a_stream_is_the_loop_by_hand_with_masks_flags_and_any_lengths() -> None:
    (model, stream), (other, by_hand) = build(num_chunks=2), build(num_chunks=2)
    pieces = [fptt.Batch(*recording(steps, B)) for steps in (5, 2, 9)]
    pieces[1] = pieces[1]._replace(mask=torch.tensor([[True, False, True], [True, True, False]]))
    pieces[2] = pieces[2]._replace(is_first=torch.rand(9, B) < 0.2)
    begin = (torch.randn(1, B, H), torch.randn(1, B, H))
    list(stream.train_stream(iter(pieces), begin))
    state: Any = begin
    for x, y, mask, is_first, _ in pieces:
        state = by_hand.train_batch(x, y, state, mask=mask, is_first=is_first).state
    assert_same_weights(model, other)


def test_batch_first_chunks_are_cut_in_time() -> None:
    model = nn.GRU(D, H, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.TBPTT(model, optimizer, loss, chunk_length=2, batch_first=True)
    chunks = fptt.ArrayChunks(*recording(21), chunk_length=4, batch_size=B, batch_first=True)
    assert [result.updates for result in method.train_stream(chunks)] == [2, 2]
    with pytest.raises(ValueError, match=r"batch size of the stream, 3 in dim 0, got \(2, 4, 2\) in chunk 1"):
        list(method.train_stream([(torch.zeros(n, 4, D), torch.zeros(n, 4, H)) for n in (3, 2)]))


def test_a_chunk_without_a_real_step_makes_no_update_but_moves_the_state() -> None:
    model, method = build()
    silent = fptt.Batch(*recording(4, B), mask=torch.zeros(4, B, dtype=torch.bool))
    first, second = method.train_stream([recording(5, B), silent])
    assert (first.updates, second.updates, second.loss.item()) == (1, 0, 0)
    torch.testing.assert_close(second.state[0], model(silent.inputs, first.state)[1][0])
    with pytest.raises(ValueError, match="mask must have at least one real step"):
        method.train_batch(*silent[:2], mask=silent.mask)


def test_one_chunk_is_held_at_a_time() -> None:
    """When the source is asked for the next chunk, the one before and its outputs are gone."""
    model, method = build()
    held: list[weakref.ref[Tensor]] = []
    model.register_forward_hook(lambda *arguments: held.append(weakref.ref(arguments[2][0])))

    def source() -> Iterator[Any]:
        for _ in range(5):
            assert not any(reference() is not None for reference in held)
            inputs, targets = recording(6, B)
            inputs = inputs.clone()
            held.append(weakref.ref(inputs))
            yield inputs, targets
            del inputs, targets

    for result in method.train_stream(source()):
        assert not any(tensor.requires_grad for tensor in (*result.state, result.loss))
    assert len(held) == 10


def test_nothing_is_pulled_before_it_is_asked() -> None:
    pulled: list[int] = []
    _, method = build()
    stream = method.train_stream((pulled.append(n) or recording(2, B)) for n in range(9))
    assert pulled == []
    next(stream)
    next(stream)
    assert pulled == [0, 1]
    assert method.updates == 2


def test_what_a_source_raises_comes_after_the_results_so_far_and_training_goes_on() -> None:
    (model, broken), (other, whole) = build(), build()
    chunks = [recording(steps, B) for steps in (4, 5, 6)]

    def source() -> Iterator[Any]:
        yield from chunks[:2]
        raise OSError("the wire is cut")

    stream = broken.train_stream(source())
    results = [next(stream) for _ in range(2)]
    with pytest.raises(OSError, match="the wire is cut"):
        next(stream)
    assert broken.updates == broken.batches == 2
    list(broken.train_stream(chunks[2:], results[-1].state))
    list(whole.train_stream(chunks))
    assert_same_weights(model, other)


def test_slips_are_named() -> None:
    model, method = build()
    x, y = recording(4, B)
    with pytest.raises(TypeError, match="source must be iterable, got a int"):
        method.train_stream(7)  # pyright: ignore[reportArgumentType]
    slips: list[tuple[list[Any], type[Exception], str]] = [
        ([(x, y), (x[:, :2], y[:, :2])], ValueError, r"inputs must keep the batch size .* 3 in dim 1.* in chunk 1"),
        ([(x, y), (x, y, None)], TypeError, "source must give pairs .*, got a tuple of 3 as chunk 1"),
        ([x], TypeError, "source must give pairs .*, got a Tensor as chunk 0"),
        ([(x, y.tolist())], TypeError, "targets must be a tensor, got a list"),
        ([(x, y[1:])], ValueError, "targets must have shape"),
        ([(x[0, 0], y)], ValueError, "inputs must be a non-empty tensor"),
    ]
    for source, error, message in slips:
        with pytest.raises(error, match=message):
            list(method.train_stream(source))
    method.close()
    bptt = fptt.BPTT(model, method.optimizer, method.loss)
    with pytest.raises(TypeError, match="train_stream needs an update after every chunk, thus TBPTT or FPTT"):
        bptt.train_stream([(x, y)])


def test_the_chunk_of_a_stream_that_does_not_fit_is_named() -> None:
    _, method = build(num_chunks=4)
    stream = method.train_stream([recording(8, B), recording(3, B)])
    next(stream)
    with pytest.raises(ValueError, match="num_chunks must be at most the sequence length 3, got 4") as caught:
        next(stream)
    assert caught.value.__notes__ == ["This was chunk 1 of the stream."]


def test_lanes_are_consecutive_parts_and_chunks_those_of_chunk_lengths(tmp_path: Path) -> None:
    inputs = torch.arange(47)
    flags = inputs % 5 == 0
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    mapped = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    for array in (inputs, mapped, inputs.tolist()):
        chunks = fptt.ArrayChunks(array, inputs, chunk_length=4, batch_size=3, mask=flags, is_first=flags.numpy())
        found = list(chunks)
        assert [len(chunk.inputs) for chunk in found] == fptt.chunk_lengths(15, chunk_length=4)
        assert len(found) == len(chunks) == 4
        for part in zip(*(chunk[:4] for chunk in found), strict=True):
            whole = torch.cat(part)
            expected = inputs[:45].view(3, 15).T
            assert torch.equal(whole, expected if whole.dtype == torch.int64 else expected % 5 == 0)


def test_a_list_of_tensors_is_a_recording() -> None:
    inputs, targets = recording(10)
    found = fptt.ArrayChunks(list(inputs), tuple(targets[:, :1]), chunk_length=3, batch_size=2)
    for one, other in zip(found, fptt.ArrayChunks(inputs, targets[:, :1], chunk_length=3, batch_size=2), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    (packed,) = fptt.pack_lanes([(list(inputs), list(targets))], batch_size=1, chunk_length=10)
    assert torch.equal(packed.inputs[:, 0], inputs)
    uneven = [*inputs[:9], torch.zeros(D + 1)]
    with pytest.raises(ValueError, match=r"list of tensors must have time steps of one shape, got \[\(2,\), \(3,\)\]"):
        list(fptt.ArrayChunks(uneven, targets, chunk_length=5))


def test_arrays_of_any_layout_and_frames_are_recordings(tmp_path: Path) -> None:
    """Reversed in time, transposed, of the other byte order, in a read-only memory map, or of pandas."""
    plain = np.arange(40, dtype=np.float32).reshape(20, 2)
    expected = torch.tensor(plain)
    swapped = plain.astype(plain.dtype.newbyteorder())
    np.save(tmp_path / "swapped.npy", swapped)
    mapped = np.load(tmp_path / "swapped.npy", mmap_mode="r")
    arrays: list[Any] = [plain[::-1].copy()[::-1], plain.T.copy().T, swapped, mapped, plain[:, ::-1].copy()[:, ::-1]]
    assert any(stride < 0 for stride in arrays[0].strides)
    pandas = pytest.importorskip("pandas")
    # of labels that are numbers, pandas takes a slice for one of labels, both ends included
    frame = pandas.DataFrame(plain, columns=["a", "b"], index=np.linspace(3.0, 1.0, 20))
    for array in [*arrays, frame]:
        chunks = list(fptt.ArrayChunks(array, frame["a"], chunk_length=4, batch_size=2))
        lanes = torch.cat([chunk.inputs for chunk in chunks])
        assert torch.equal(lanes, expected.view(2, 10, 2).transpose(0, 1))
        assert torch.equal(torch.cat([chunk.targets for chunk in chunks]), lanes[..., 0])
        (packed,) = fptt.pack_lanes([(array, frame["b"])], batch_size=1, chunk_length=20)
        assert torch.equal(packed.inputs[:, 0], expected)
        assert torch.equal(packed.targets[:, 0], expected[:, 1])
    chunk = next(iter(fptt.ArrayChunks(swapped, swapped, chunk_length=20)))
    chunk.inputs.zero_()  # a copy
    assert swapped[1, 1] == 3


@every_method
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_stopped_stream_goes_on_bitwise(name: str, ahead: int) -> None:
    """Two chunks into the second epoch everything is saved, loaded elsewhere, and the rest is the same."""

    def start() -> tuple[Any, ...]:
        model, method = build(name)
        return model, method.optimizer, method, fptt.ArrayChunks(*recording(50), chunk_length=5, batch_size=2)

    def source(chunks: fptt.ArrayChunks) -> Any:
        return fptt.prefetch(chunks, ahead) if ahead else chunks

    parts = start()
    list(parts[2].train_stream(source(parts[3])))
    assert parts[3].state_dict()["chunk"] == 0
    position = source(parts[3])
    stream = parts[2].train_stream(position)
    state = [next(stream) for _ in range(2)][-1].state
    saved = copy.deepcopy([*(part.state_dict() for part in parts[:3]), position.state_dict()])
    assert saved[-1]["chunk"] == 2
    expected = list(stream)
    others = start()
    for part, own in zip(others, saved, strict=True):
        part.load_state_dict(own)
    found = list(others[2].train_stream(source(others[3]), state))
    assert [result.loss.item() for result in found] == [result.loss.item() for result in expected]
    assert len(found) == 3
    assert_same_weights(parts[0], others[0])


@pytest.mark.parametrize("kind", CARRIED)
def test_torch_reads_the_file_of_a_checkpoint_as_it_is(kind: str, tmp_path: Path) -> None:
    model = CARRIED[kind](D, 5, H)
    loss = fptt.SequenceLoss(functional.mse_loss)
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters()), loss, num_chunks=1)
    chunks = fptt.ArrayChunks(*recording(20), chunk_length=5, batch_size=2)
    result = next(method.train_stream(chunks))
    parts = {"model": model, "optimizer": method.optimizer, "method": method, "position": chunks}
    saved = {"result": result, **{name: part.state_dict() for name, part in parts.items()}}
    torch.save(saved, tmp_path / "checkpoint.pt")
    found = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["result"]
    assert str(found) == str(result)
    assert type(found.state) is type(result.state)
    assert all(map(torch.equal, flatten_state(found.state), flatten_state(result.state)))


def test_slips_of_arrays_are_named() -> None:
    x, y = recording(10)
    slips: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((x, y[1:]), {"chunk_length": 3}, ValueError, "targets must have the 10 time steps of inputs, got 9"),
        (
            (x, y),
            {"chunk_length": 3, "is_first": [True]},
            ValueError,
            "is_first must have the 10 time steps of inputs, got 1",
        ),
        ((x, y), {"chunk_length": 0}, ValueError, "chunk_length must be a positive integer, got 0"),
        (
            (x, y),
            {"chunk_length": 3, "batch_size": 11},
            ValueError,
            "batch_size must be at most the 10 time steps, got 11",
        ),
        ((iter(x), y), {"chunk_length": 3}, TypeError, "inputs must be an array that can be sliced"),
    ]
    for arguments, options, error, message in slips:
        with pytest.raises(error, match=message):
            fptt.ArrayChunks(*arguments, **options)
    text = np.array(["a"] * 10, dtype=object)
    with pytest.raises(TypeError, match=r"targets must hold numbers in steps of one shape, got a ndarray: .*object"):
        list(fptt.ArrayChunks(x, text, chunk_length=3))
    with pytest.raises(ValueError, match="inputs must hold numbers in steps of one shape, got a list: expected seq"):
        list(fptt.ArrayChunks([[1.0], [1.0, 2.0]] * 5, y, chunk_length=10))
    with pytest.raises(TypeError, match="inputs of sequence 1 must hold numbers in steps of one shape, got a dict: "):
        list(fptt.pack_lanes([(x, y), ({}, y)], batch_size=1, chunk_length=3))
    saved = fptt.ArrayChunks(x, y, chunk_length=3).state_dict()
    with pytest.raises(ValueError, match="state_dict must have batch_size=2 as here, got 1"):
        fptt.ArrayChunks(x, y, chunk_length=3, batch_size=2).load_state_dict(saved)
    with pytest.raises(ValueError, match="must have the keys"):
        fptt.ArrayChunks(x, y, chunk_length=3).load_state_dict({})
    with pytest.raises(ValueError, match=r"chunk in 0 … 4, got 5"):
        fptt.ArrayChunks(x, y, chunk_length=3).load_state_dict({**saved, "chunk": 5})


class Chunks(IterableDataset):
    def __iter__(self) -> Iterator[fptt.Batch]:
        yield from fptt.ArrayChunks(*recording(40), chunk_length=4, batch_size=B)


class Dying(IterableDataset):
    """Chunks of which the worker does not live to make the third; it dies when the second has been learned."""

    def __init__(self, death: str) -> None:
        self.death, self.learned = death, multiprocessing.Event()

    def __iter__(self) -> Iterator[fptt.Batch]:
        for number, chunk in enumerate(fptt.ArrayChunks(*recording(40), chunk_length=4, batch_size=B)):
            if number == 2:
                self.learned.wait(60)
                os.kill(os.getpid(), signal.SIGKILL) if self.death == "killed" else os._exit(3)
            yield chunk


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("death", ["killed", "exit"])
def test_a_worker_that_dies_is_told_and_training_goes_on_from_the_last_checkpoint(death: str, ahead: int) -> None:
    (model, stopped), (other, whole) = build(), build()
    dying = Dying(death)
    loader = DataLoader(dying, batch_size=None, num_workers=1)
    saved: list[Any] = []
    state: Any = None

    def learn() -> None:
        nonlocal saved, state
        for result in stopped.train_stream(fptt.prefetch(loader, ahead) if ahead else loader):
            parts = (model, stopped.optimizer, stopped)
            saved, state = copy.deepcopy([part.state_dict() for part in parts]), result.state
            if stopped.updates == 2:
                dying.learned.set()

    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"):
        learn()
    assert len(saved) == 3
    assert saved[2]["updates"] == 2
    for part, own in zip((model, stopped.optimizer, stopped), saved, strict=True):
        part.load_state_dict(own)
    list(stopped.train_stream(islice(Chunks(), 2, None), state))
    list(whole.train_stream(Chunks()))
    assert_same_weights(model, other)


SCRIPT = """
import multiprocessing, os, signal, sys, torch, fptt
from torch.utils.data import DataLoader, IterableDataset

learned = multiprocessing.Event()

class Dying(IterableDataset):
    def __iter__(self):
        yield torch.zeros(4, 1, 2), torch.zeros(4, 1, 3)
        learned.wait(60)
        os.kill(os.getpid(), signal.SIGKILL)

model = torch.nn.GRU(2, 3)
method = fptt.FPTT(
    model, torch.optim.SGD(model.parameters(), lr=0.1), fptt.SequenceLoss(torch.nn.functional.mse_loss), num_chunks=1
)
source = DataLoader(Dying(), batch_size=None, num_workers=1)
for result in method.train_stream(fptt.prefetch(source) if sys.argv[1:] else source):
    print(result.updates, flush=True)
    learned.set()
"""


@pytest.mark.parametrize("ahead", [[], ["ahead"]], ids=["", "ahead"])
def test_a_script_whose_worker_dies_ends_with_an_error_and_does_not_hang(ahead: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT, *ahead]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (1, "1\n"), result.stderr
    assert "DataLoader worker" in result.stderr.splitlines()[-1]


def test_a_data_loader_with_a_worker_is_a_source() -> None:
    (model, one), (other, same) = build(), build()
    list(one.train_stream(DataLoader(Chunks(), batch_size=None, num_workers=1)))
    list(same.train_stream(Chunks()))
    assert one.updates == 4
    assert_same_weights(model, other)
