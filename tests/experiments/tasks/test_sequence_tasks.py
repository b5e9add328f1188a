import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.anbn import MARKER, A, B, StringScore, strings
from fptt.experiments.tasks.batches import num_samples
from fptt.experiments.tasks.copy import BLANK, GO, CopyScore, draw_samples
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.scores import IGNORED

SURE = 1000.0


def answers(classes: Tensor, num_classes: int) -> Tensor:
    """Return outputs that are sure of some classes."""
    return SURE * functional.one_hot(classes.clamp(min=0), num_classes).float()


def test_copy_has_the_layout_of_arjovsky() -> None:
    (inputs,), (targets,) = draw_samples(1, 5, torch.Generator().manual_seed(0))
    symbols = inputs[:10].tolist()
    assert inputs.tolist() == [*symbols, *4 * [BLANK], GO, *10 * [BLANK]]
    assert targets.tolist() == [*15 * [BLANK], *symbols]
    assert inputs.tolist().index(GO) + 1 == 15


def test_copy_with_the_shortest_delay_asks_at_once() -> None:
    (inputs,), _ = draw_samples(1, 1, torch.Generator().manual_seed(0))
    assert len(inputs) == 21
    assert inputs[10:].tolist() == [GO, *10 * [BLANK]]


def test_copy_symbols_are_uniform() -> None:
    inputs, _ = draw_samples(2000, 1, torch.Generator().manual_seed(0))
    counts = inputs[:, :10].flatten().bincount().float()
    assert len(counts) == 8
    assert ((counts - 2500).square() / 2500).sum() < 24.3  # χ² with 7 degrees of freedom, p = 0.001


def test_copy_reads_one_hot_vectors_and_has_a_target_at_every_step() -> None:
    task = load_task(Setting(task="copy", length=7), 0)
    batch = task.test[[3, 4]]
    inputs, targets = task.sequences(batch)
    assert inputs.shape == (27, 2, task.input_size) == (27, 2, 10)
    assert torch.equal(inputs.argmax(-1), batch[0].T)
    assert torch.equal(inputs.sum(-1), torch.ones(27, 2))
    assert torch.equal(targets[-10:], inputs[:10].argmax(-1))
    assert task.output_size == 9
    assert task.chance == 1 / 8


@pytest.mark.parametrize("name", ["adding", "copy", "anbn"])
def test_training_data_are_fresh_and_held_out_data_fixed(name: str) -> None:
    setting = Setting(task=name, length=30, batch_size=4)
    one, again, other = (load_task(setting, seed) for seed in (0, 0, 1))
    first = one.train[list(range(20))]
    assert torch.equal(first[0], again.train[list(range(20))][0])
    assert not torch.equal(first[0], one.train[list(range(20))][0])
    assert not torch.equal(first[0], other.train[list(range(20))][0])
    assert torch.equal(one.validation[:][0], other.validation[:][0])
    assert torch.equal(one.test[:][0], other.test[:][0])
    assert not torch.equal(one.validation[:][0], one.test[:][0])
    assert num_samples(one.train) == 400
    limited = load_task(Setting(task=name, limit=17), 0)
    assert num_samples(limited.train) == 17


def test_a_model_without_memory_has_the_cross_entropy_that_is_told() -> None:
    task = load_task(Setting(task="copy", length=13), 0)
    _, targets = task.sequences(task.test[:])
    outputs = answers(torch.full_like(targets, BLANK), 9)
    outputs[-10:] = torch.tensor([*8 * [0.0], -SURE])
    score = task.make_score()
    for chunk in zip(outputs.split(5), targets.split(5), strict=True):
        score.add(*chunk)
    figures = score.metrics()
    assert figures["memoryless_cross_entropy"] == pytest.approx(10 * math.log(8) / 33)
    assert figures["cross_entropy"] == pytest.approx(figures["memoryless_cross_entropy"])
    assert figures["accuracy"] == pytest.approx(1 / 8, abs=0.01)


def test_a_perfect_copy_scores_one_and_blanks_do_not_help() -> None:
    _, targets = load_task(Setting(task="copy"), 0).test[:]
    perfect, silent = CopyScore(100), CopyScore(100)
    perfect.add(answers(targets, 9), targets)
    assert perfect.metrics()["accuracy"] == 1
    assert perfect.metrics()["cross_entropy"] == pytest.approx(0)
    silent.add(answers(torch.full_like(targets, BLANK), 9), targets)
    assert silent.metrics()["accuracy"] == 0
    assert next(iter(silent.metrics())) == silent.metric == "accuracy"


def test_anbn_strings_by_hand() -> None:
    inputs, targets = strings([2, 1], 2)
    assert inputs.tolist() == [[MARKER, A, A, B, B], [MARKER, A, B, MARKER, MARKER]]
    assert targets.tolist() == [[IGNORED, IGNORED, IGNORED, B, MARKER], [IGNORED, IGNORED, MARKER, IGNORED, IGNORED]]


def test_anbn_is_tested_on_longer_strings_than_trained() -> None:
    task = load_task(Setting(task="anbn", length=4), 0)

    def lengths(inputs: Tensor) -> list[int]:
        assert torch.equal((inputs == A).sum(1), (inputs == B).sum(1))
        return (inputs == A).sum(1).tolist()

    counts = torch.tensor(lengths(task.train[list(range(4000))][0])).bincount().tolist()
    assert counts[0] == 0
    assert all(abs(count - 1000) < 100 for count in counts[1:])
    assert len(counts) == 5
    assert lengths(task.validation[:][0]) == [1, 2, 3, 4]
    assert lengths(task.test[:][0]) == [5, 6, 7, 8]
    inputs, targets = task.sequences(task.test[:])
    assert inputs.shape == (17, 4, 3)
    assert torch.equal(inputs.argmax(-1), task.test[:][0].T)
    assert (targets != IGNORED).sum(0).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("length", [1, 3, 9])
def test_a_counter_foretells_anbn_and_whole_strings_are_counted_over_chunks(length: int) -> None:
    _, targets = strings([2, 3, 4], 4)
    targets = targets.T
    predicted = answers(targets, 3)
    spoiled = predicted.clone()
    spoiled[4, 1] = answers(torch.tensor(MARKER), 3)  # too early an end: n = 3 is wrong, one step of 2 + 3 + 4
    for outputs, accuracy, whole in ((predicted, 1, 1), (spoiled, 8 / 9, 2 / 3)):
        score = StringScore()
        for _ in range(2):  # an error of one batch does not touch the next
            for chunk in zip(outputs.split(length), targets.split(length), strict=True):
                score.add(*chunk)
        score.add(predicted[:, :2], targets[:, :2])
        figures = score.metrics()
        assert figures["accuracy"] == pytest.approx((18 * accuracy + 5) / 23)
        assert figures["strings"] == pytest.approx((6 * whole + 2) / 8)


@pytest.mark.parametrize("name", ["copy", "anbn"])
def test_a_length_that_makes_no_sense_is_named(name: str) -> None:
    with pytest.raises(UserError, match="length must be positive, got 0"):
        load_task(Setting(task=name, length=0), 0)
