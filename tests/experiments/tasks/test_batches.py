"""Training batches: an order that resumes anywhere, together and in staggered lanes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import fptt
from fptt.experiments.tasks.batches import FreshSamples, Samples, ShuffledBatches, StaggeredBatches

T = 6


def draw(count: int, generator: torch.Generator) -> Samples:
    return torch.rand(count, T, generator=generator), torch.randint(9, (count,), generator=generator)


def make(num_samples: int, batch_size: int, num_chunks: int, *, fresh: bool = False) -> StaggeredBatches:
    stored = TensorDataset(
        torch.arange(num_samples)[:, None].expand(-1, T) + 0.1 * torch.arange(T), torch.arange(num_samples)
    )
    dataset = FreshSamples(draw, num_samples, seed=2) if fresh else stored
    batches = ShuffledBatches(dataset, batch_size, seed=1)
    return StaggeredBatches(
        batches, lambda batch: (batch[0].T[..., None], batch[1]), num_chunks=num_chunks, num_steps=T, per_step=False
    )


def seen(items: list[fptt.Batch]) -> list[int]:
    """Return the labels of the sequences that end, in order."""
    labels: list[int] = []
    for item in items:
        assert item.progress is not None
        labels += item.targets[item.progress.position == item.progress.num_chunks].tolist()
    return labels


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (12, 4), (9, 4), (3, 8), (5, 1), (7, 7), (1, 1)])
@pytest.mark.parametrize("num_chunks", [1, 2, 3, 5, 6])
def test_an_epoch_has_every_sample_once_in_as_many_batches_as_it_says(
    num_samples: int, batch_size: int, num_chunks: int
) -> None:
    batches = make(num_samples, batch_size, num_chunks)
    epochs = [list(batches) for _ in range(3)]
    for items in epochs:
        assert len(items) == len(batches)
        assert sorted(seen(items)) == list(range(num_samples))
        assert {item.inputs.shape[1] for item in items} == {batches.num_lanes}
    if num_samples >= 7:
        assert len({tuple(seen(items)) for items in epochs}) > 1


def forever(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


def source_of(*, staggered: bool, fresh: bool = False) -> Any:
    lanes = make(10, 4, 3, fresh=fresh)
    return lanes if staggered else lanes.batches


def flat(item: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(item) if leaf is not None]  # pyright: ignore


def assert_same(found: Iterable[Any], expected: Iterable[Any]) -> None:
    for one, same in zip(found, expected, strict=True):
        for tensor, its in zip(flat(one), flat(same), strict=True):
            assert torch.equal(tensor, its)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("stop", range(10))
@pytest.mark.parametrize("staggered", [False, True])
def test_it_resumes_bitwise_anywhere(*, staggered: bool, stop: int, fresh: bool) -> None:
    """In the middle of the sequences, with the last batch of an epoch, and after it."""
    source, other = (source_of(staggered=staggered, fresh=fresh) for _ in range(2))
    expected = list(islice(forever(source_of(staggered=staggered, fresh=fresh)), stop + 6))
    running = forever(source)
    for _ in range(stop):
        next(running)
    other.load_state_dict(source.state_dict())
    assert_same(islice(forever(other), 6), expected[stop:])


@pytest.mark.parametrize("staggered", [False, True])
def test_a_state_loaded_in_mid_epoch_is_saved_again_as_it_is(*, staggered: bool) -> None:
    """As a rollback does: the run goes back, saves a checkpoint at once, and goes on from either."""
    source, other = (source_of(staggered=staggered) for _ in range(2))
    expected = list(islice(forever(source_of(staggered=staggered)), 8))
    running = forever(source)
    for _ in range(2):
        next(running)
    state = source.state_dict()
    next(running)
    source.load_state_dict(state)
    other.load_state_dict(source.state_dict())
    for going_on in (other, source):
        assert_same(islice(forever(going_on), 6), expected[2:])


def test_between_epochs_the_state_is_that_of_the_next() -> None:
    batches = make(10, 4, 3).batches
    list(batches)
    other = make(10, 4, 3).batches
    other.load_state_dict(batches.state_dict())
    assert torch.equal(torch.cat([y for _, y in batches]), torch.cat([y for _, y in other]))
