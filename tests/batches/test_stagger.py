"""Staggered lanes: every lane is a training of its own, its chunk losses meet in one mean, and nothing is lost."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt

D, H, C = 2, 3, 4
pytestmark = pytest.mark.usefixtures("float64")


def sequences(lengths: list[int], *, per_step: bool, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (len(lengths), max(lengths)), generator=generator)
    labels[:, 1::4] = -100 if per_step else labels[:, 1::4]
    inputs = [torch.randn(length, D, generator=generator) for length in lengths]
    return [(own, row[: len(own)] if per_step else row[0]) for own, row in zip(inputs, labels, strict=True)]


def padded(own: list[tuple[Tensor, Tensor]], *, per_step: bool) -> fptt.Batch:
    inputs = nn.utils.rnn.pad_sequence([x for x, _ in own], padding_value=9.0)
    targets = nn.utils.rnn.pad_sequence([y for _, y in own]) if per_step else torch.stack([y for _, y in own])
    mask = fptt.length_mask([len(x) for x, _ in own], len(inputs))
    return fptt.Batch(inputs, targets, None if mask.all() else mask)


def batches(lengths: list[list[int]], *, per_step: bool = False) -> tuple[list[fptt.Batch], list[Any]]:
    """Return batches, and the sequences in them."""
    groups = [sequences(own, per_step=per_step, seed=seed) for seed, own in enumerate(lengths)]
    return [padded(group, per_step=per_step) for group in groups], [pair for group in groups for pair in group]


EQUAL = [[6] * 4, [6] * 4, [6] * 4, [6] * 3]
UNEVEN = [[7] * 3] * 3  # 3 does not divide 7
RAGGED = [[9, 2, 5], [4, 4, 1, 8], [3, 9]]
LENGTHS = {"equal": EQUAL, "uneven": UNEVEN, "ragged": RAGGED}


def make_loss(kind: str) -> fptt.ChunkLoss:
    if kind == "steps":
        return fptt.SequenceLoss(functional.cross_entropy)
    return fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")


def make_method(loss: fptt.ChunkLoss, engine: Any = "eager", **options: Any) -> fptt.FPTT:
    torch.manual_seed(3)
    model = fptt.nn.LSTM(D, H, C)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    settings: dict[str, Any] = {"num_chunks": 3, **options}
    return fptt.FPTT(model, optimizer, loss, engine=engine, **settings)


# -- the mathematics ---------------------------------------------------------------------------------------------------


class Lane:
    """A lane worked out alone: its sequences one after the other, each cut into chunks of L steps."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.state: Any = None
        self.pending: list[Any] = []

    def take(self, pair: tuple[Tensor, Tensor], loss: fptt.ChunkLoss, length: int) -> None:
        inputs, targets = (tensor.unsqueeze(1 if tensor.dim() else 0) for tensor in pair)
        count = -(-len(inputs) // length)
        lengths = [length] * (count - 1) + [len(inputs) - (count - 1) * length]
        parts = loss.split(targets, None, lengths, 1)
        self.state, self.pending = None, list(zip(inputs.split(lengths), parts, strict=True))

    def loss(self, model: nn.Module, loss: fptt.ChunkLoss) -> Tensor:
        inputs, part = self.pending.pop(0)
        outputs, state = model(inputs, self.state)
        self.state = fptt.detach_state(state)
        return loss(outputs, part)


def by_hand(method: fptt.FPTT, pairs: Iterable[Any], num_lanes: int, num_ticks: int, length: int) -> list[Tensor]:
    """Train on lanes worked out one by one, on the mean of their own losses; return that of every tick."""
    longest = -(-max(len(x) for x, _ in list(pairs)[:num_lanes]) // length)
    lanes = [Lane(lane * longest // num_lanes) for lane in range(num_lanes)]
    losses, queue, model = [], list(pairs), method.model
    for _ in range(num_ticks):
        terms = []
        for lane in lanes:
            if lane.delay:
                lane.delay -= 1
                continue
            if not lane.pending and queue:
                lane.take(queue.pop(0), method.loss, length)
            if lane.pending:
                terms.append(lane.loss(model, method.loss))
        if terms:
            mean = torch.stack(terms).sum() / num_lanes
            method.optimizer.zero_grad()
            mean.backward()
            method.optimizer.step()
            losses.append(mean.detach())
    assert not queue
    assert not any(lane.pending for lane in lanes)
    return losses


@pytest.mark.parametrize("kind", ["label", "steps"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_gradient_is_the_mean_of_the_lanes_own_worked_out_one_by_one(kind: str, lengths: str) -> None:
    given, pairs = batches(LENGTHS[lengths], per_step=kind == "steps")
    method = make_method(make_loss(kind))
    alone = make_method(make_loss(kind))
    results = list(method.train_stream(fptt.stagger(given, num_chunks=3, per_step=kind == "steps")))
    length = -(-len(given[0].inputs) // 3)
    # the lanes take sequences in the order of their delays, then of their ends: here by ticks, as in `by_hand`
    expected = by_hand(alone, pairs, given[0].inputs.shape[1], 3 * len(results), length)
    found = torch.cat([result.chunk_losses for result in results])
    assert method.updates == alone.updates == len(expected)
    torch.testing.assert_close(found[: len(expected)], torch.stack(expected), rtol=1e-12, atol=1e-12)
    for one, other in zip(method.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    if kind == "steps" or lengths != "equal":
        return
    # b = (k + 1)/K of each lane: lanes 0 … 3 of 3 chunks begin 0, 0, 1, 2 chunks late
    chunks = next(fptt.stagger(given, num_chunks=3))
    assert chunks.progress is not None
    assert chunks.progress.position.tolist() == [[1, 1, 0, 0], [2, 2, 1, 0], [3, 3, 2, 1]]


def test_steps_labelled_by_any_byte_count() -> None:
    """−100, which does not count, is 156 as a byte."""
    inputs, labels = torch.randn(6, 2, D), torch.full((6, 2), 156)
    for dtype in (torch.uint8, torch.int64):
        given = [fptt.Batch(inputs, labels.to(dtype))]
        progress = next(fptt.stagger(given, num_chunks=3, per_step=True)).progress
        assert progress is not None
        assert progress.num_steps[0].tolist() == [6, 1]  # the second lane has not begun


@pytest.mark.parametrize("per_step", [True, False])
def test_an_idle_lane_is_not_in_the_gradient_of_a_loss_without_zero(per_step: bool) -> None:
    """The targets of an idle lane, and of the steps after a sequence, are 0, of which there is no logarithm."""
    kind = fptt.SequenceLoss if per_step else fptt.TerminalLoss
    method = make_method(kind(lambda output, target: (output - target.log()).square()))
    inputs = torch.randn(7, 3, D)
    targets = torch.rand(7, 3, C) + 0.5 if per_step else torch.rand(3, C) + 0.5
    lanes = fptt.stagger([(inputs, targets)], num_chunks=3, per_step=per_step)
    assert all(result.loss.isfinite() for result in method.train_stream(lanes))
    assert method.updates == 5  # the last lane begins two chunks late


def test_a_running_prior_learns_from_a_lane_when_its_sequence_ends() -> None:
    given, _ = batches([[6] * 3] * 2)
    prior = fptt.RunningPrior(C, decay=0.5)
    method = make_method(fptt.TerminalLoss(functional.cross_entropy, prior), num_chunks=3)
    stream = method.train_stream(fptt.stagger(given, num_chunks=3))
    next(stream)
    # lane 0 alone has ended: the rows of other labels are still uniform
    seen = {int(given[0].targets[0])}
    assert {c for c in range(C) if not torch.equal(prior.probabilities[c], torch.full((C,), 1 / C))} == seen


def test_a_single_lane_is_the_same_as_together() -> None:
    given, pairs = batches([[6]] * 4)
    staggered, together = make_method(make_loss("label")), make_method(make_loss("label"))
    results = list(staggered.train_stream(fptt.stagger(given, num_chunks=3)))
    for inputs, target in pairs:
        together.train_batch(inputs[:, None], target[None])
    assert (len(results), staggered.updates) == (4, together.updates)
    for one, other in zip(staggered.model.parameters(), together.model.parameters(), strict=True):
        assert torch.equal(one, other)


# -- the samples -------------------------------------------------------------------------------------------------------


def gathered(items: list[fptt.Batch], num_chunks: int) -> list[Tensor]:
    """Return the sequences that lie in the lanes, in no order."""
    found: list[Tensor] = []
    num_lanes = items[0].inputs.shape[1]
    for lane in range(num_lanes):
        current: list[Tensor] = []
        for item in items:
            assert item.progress is not None
            length = len(item.inputs) // num_chunks
            for k in range(num_chunks):
                position, count = (int(column[k, lane]) for column in item.progress[:2])
                if position == 0:
                    assert not current
                    continue
                assert position == len(current) + 1
                steps = slice(k * length, (k + 1) * length)
                own = item.inputs[steps, lane]
                current.append(own if item.mask is None else own[item.mask[steps, lane]])
                if position == count:
                    found.append(torch.cat(current))
                    current = []
        assert not current
    return found


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("cut", [{"num_chunks": 3}, {"chunk_length": 2}, {"num_chunks": 1}])
def test_every_sequence_is_given_once_and_whole(lengths: str, cut: dict[str, Any]) -> None:
    given, pairs = batches(LENGTHS[lengths])
    items = list(fptt.stagger(given, **cut))
    num_chunks = len(items[0].progress.position)  # pyright: ignore[reportOptionalMemberAccess]
    found = gathered(items, num_chunks)
    key = lambda tensor: tensor.flatten().tolist()  # noqa: E731
    assert sorted(map(key, found)) == sorted(key(x) for x, _ in pairs)


def test_batch_first_is_the_same_transposed() -> None:
    given, _ = batches(RAGGED, per_step=True)
    turned = [
        fptt.Batch(*(None if tensor is None else tensor.transpose(0, 1) for tensor in batch[:3]))  # pyright: ignore
        for batch in given
    ]
    plain = list(fptt.stagger(given, num_chunks=3, per_step=True))
    others = list(fptt.stagger(turned, num_chunks=3, per_step=True, batch_first=True))
    for one, other in zip(plain, others, strict=True):
        for name in ("inputs", "targets", "mask"):
            assert torch.equal(getattr(one, name), getattr(other, name).transpose(0, 1))
        assert all(map(torch.equal, one.progress or (), other.progress or ()))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_stopped_source_goes_on_bitwise(lengths: str, stop: int, ahead: int) -> None:
    given, _ = batches(LENGTHS[lengths])
    expected = list(fptt.stagger(given, num_chunks=3))
    lanes = fptt.stagger(given, num_chunks=3)
    source: Any = fptt.prefetch(lanes, ahead) if ahead else lanes
    for _ in range(stop):
        next(source)
    position = copy.deepcopy(source.state_dict())
    others = fptt.stagger(given[position["skip"] :], num_chunks=3)
    others.load_state_dict(position)
    assert others.state_dict() == position
    found = list(others)
    assert len(found) == len(expected) - stop
    for one, other in zip(found, expected[stop:], strict=True):
        torch.testing.assert_close(tuple(one), tuple(other), rtol=0, atol=0)


def test_only_open_batches_are_to_be_read_again() -> None:
    given, _ = batches([[6] * 4] * 9)
    lanes = fptt.stagger(iter(given), num_chunks=3)
    skips = [(next(lanes), lanes.state_dict()["skip"])[1] for _ in range(9)]
    assert skips == [0, 1, 2, 3, 4, 5, 6, 7, 8]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_slips_are_named() -> None:
    x, y = torch.zeros(6, 4, D), torch.zeros(4, dtype=torch.int64)
    holes = torch.ones(6, 4, dtype=torch.bool).index_fill(0, torch.tensor([2]), False)
    begins = torch.zeros(6, 4, dtype=torch.bool)
    slips: list[tuple[list[Any], dict[str, Any], type[Exception], str]] = [
        ([(x, y)], {"num_chunks": 7}, ValueError, "num_chunks must be at most the sequence length 6, got 7"),
        ([(x, y)], {}, ValueError, "exactly one of num_chunks and chunk_length"),
        ([(x, y[:3])], {"num_chunks": 2}, ValueError, r"targets must be one a sequence.*\(4,\), got \(3,\) in batch 0"),
        (
            [(x, y)],
            {"num_chunks": 2, "per_step": True},
            ValueError,
            r"targets must be one a step.*\(6, 4\), got \(4,\)",
        ),
        ([(x, y), (x[..., :1], y)], {"num_chunks": 2}, ValueError, "batches must all be like the first.*in batch 1"),
        ([x], {"num_chunks": 2}, TypeError, "source must give pairs"),
        ([(x, y), None, (x, y)], {"num_chunks": 2}, TypeError, "source must give .* got a NoneType as chunk 1"),
        ([(x, None)], {"num_chunks": 2}, TypeError, "targets must be a tensor, got a NoneType in batch 0"),
        ([(x[:0], y)], {"num_chunks": 2}, ValueError, "inputs must be .* not empty"),
        ([fptt.Batch(x, y, [True])], {"num_chunks": 2}, TypeError, "mask must be a tensor, got a list"),  # pyright: ignore
        ([fptt.Batch(x, y, holes)], {"num_chunks": 2}, ValueError, "mask must be True from the first step"),
        ([fptt.Batch(x, y, holes[1:])], {"num_chunks": 2}, ValueError, r"mask must be boolean with T, B = \(6, 4\)"),
        (
            [fptt.Batch(x[:, :1].transpose(0, 1), y[:1], holes[:, 0])],
            {"num_chunks": 2, "batch_first": True},
            ValueError,
            r"mask must be boolean with T, B = \(6, 1\), got torch.bool of \(6,\) in batch 0",
        ),
        ([fptt.Batch(x, y, None, begins)], {"num_chunks": 2}, ValueError, "without is_first or progress, got batch 0"),
    ]
    for given, options, error, message in slips:
        with pytest.raises(error, match=message):
            list(fptt.stagger(given, **options))
    with pytest.raises(TypeError, match="batches must be iterable"):
        fptt.stagger(3, num_chunks=2)  # pyright: ignore[reportArgumentType]


def test_slips_of_resuming_are_named() -> None:
    given, _ = batches(EQUAL)
    lanes = fptt.stagger(given, num_chunks=3)
    next(lanes)
    position = lanes.state_dict()
    with pytest.raises(ValueError, match="must be loaded before the first batch is taken"):
        lanes.load_state_dict(position)
    slips: list[tuple[list[Any], int, dict[str, Any], str]] = [
        (given, 2, position, "state_dict must have num_chunks=2 as here, got 3"),
        (given, 3, {}, "must have the keys"),
        (given[:0], 3, position, "without the first 2: number 2 must have 3 steps, got the end"),
    ]
    for own, num_chunks, state, message in slips:
        with pytest.raises(ValueError, match=message):
            fptt.stagger(own, num_chunks=num_chunks).load_state_dict(state)


def test_a_method_that_does_not_fit_is_named() -> None:
    given, _ = batches(EQUAL)
    for options, error, message in (
        ({"num_chunks": 2}, ValueError, r"progress must be of the K, B = \(2, 4\) that the method cuts, got \(3, 4\)"),
        ({"num_duals": 3}, ValueError, "num_duals must be 1 with staggered lanes, got 3"),
    ):
        with pytest.raises(error, match=message):
            list(make_method(make_loss("label"), **options).train_stream(fptt.stagger(given, num_chunks=3)))
    item = next(fptt.stagger(given, num_chunks=3))
    flagged = item._replace(is_first=torch.zeros(6, 4, dtype=torch.bool))
    method = make_method(make_loss("steps"))
    with pytest.raises(ValueError, match="is_first must be None in a batch with progress"):
        list(method.train_stream([flagged]))
    with pytest.raises(ValueError, match=r"targets must have shape \(T, B, …\) with T, B = \(6, 4\), got \(3, 4\)"):
        list(method.train_stream([item]))
    # targets of steps look like one wide target a sequence: only the loss can tell
    model = fptt.nn.LSTM(D, H, C, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters())
    turned = fptt.TBPTT(model, optimizer, make_loss("steps"), num_chunks=3, batch_first=True)
    lanes = fptt.stagger([(torch.zeros(4, 6, D), torch.zeros(4, 6))], num_chunks=3, batch_first=True)
    with pytest.raises(ValueError, match=r"got \(3, 4, 6\), one for every chunk: give stagger per_step=True"):
        list(turned.train_stream(lanes))
    with pytest.raises(ValueError, match=r"targets must have shape \(K, B, …\) with K, B = \(3, 4\), .* got \(6, 4\)"):
        list(make_method(make_loss("label")).train_stream([item._replace(targets=torch.zeros(6, 4))]))

    class OwnLoss(fptt.ChunkLoss):
        def split(self, targets: Tensor, mask: Tensor | None, lengths: Any, batch_size: int) -> list[Any]:
            return [targets for _ in lengths]

        def forward(self, output: Tensor, part: Any) -> Tensor:
            return output.sum()

    with pytest.raises(TypeError, match="OwnLoss must define split_lanes to be trained in staggered lanes"):
        list(make_method(OwnLoss()).train_stream([item]))
    optimizer = torch.optim.SGD(method.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="BPTT"):
        list(fptt.BPTT(method.model, optimizer, make_loss("label")).train_stream(fptt.stagger(given, num_chunks=3)))
