from pathlib import Path
from typing import Any

import pytest
import torch

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.contenders import SMALL_BATCHES, at_rate, parse_controls
from fptt.experiments.studies.labels import label, what_differs
from fptt.experiments.tasks import registry
from fptt.experiments.tasks.batches import FreshSamples, num_samples, samples_an_epoch
from fptt.experiments.training.processes import launch
from fptt.experiments.training.run import Run

TINY = TrainConfig(task="digits", limit=64, epochs=1, hidden_size=4, threads=1)


def test_controls_are_parsed() -> None:
    controls = parse_controls("rate=0.9, 0.8,bptt-small-batches,rate=5e-1")
    assert [control.name for control in controls] == [
        *("tbptt-rate-0.9", "tbptt-rate-0.8", "bptt-small-batches", "tbptt-rate-0.5")
    ]
    assert [control.rate for control in controls] == [0.9, 0.8, 1.0, 0.5]
    assert all(control.is_control for control in controls)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown control ''; there are rate=PART,PART,… and bptt-small-batches"),
        ("rate", "the control rate needs parts of the learning rate, as in rate=0.9,0.8,0.5"),
        ("rate=", "a rate of controls must be a part of the learning rate, in (0, 1), got ''"),
        ("rate=1", "must be a part of the learning rate, in (0, 1), got '1'"),
        ("rate=0.5,0", "must be a part of the learning rate, in (0, 1), got '0'"),
        ("rate=0.5,1.5", "must be a part of the learning rate, in (0, 1), got '1.5'"),
        ("rate=nan", "must be a part of the learning rate, in (0, 1), got 'nan'"),
        ("rate=half", "must be a part of the learning rate, in (0, 1), got 'half'"),
        ("rate=0.5,half", "unknown control 'half'"),
        ("0.9,0.8", "unknown control '0.9'"),
        ("bptt-small-batches,0.9", "unknown control '0.9'"),
        ("rate=0.9,,0.5", "unknown control ''"),
        ("bptt-small-batches=4", "unknown control 'bptt-small-batches=4'"),
        ("rate=0.9,0.90", "controls must not repeat, got rate=0.9,0.90"),
        ("bptt-small-batches,bptt-small-batches", "controls must not repeat"),
    ],
)
def test_errors_in_controls_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_controls(text)
    assert message in str(error.value)


def test_a_part_of_the_rate_is_that_part_and_nothing_else() -> None:
    setting = TrainConfig(task="digits", lr=0.002, seed=5)
    assert at_rate("0.9").config(setting, 3) == TrainConfig.of(setting, method="tbptt", seed=3, lr=0.0018)


@pytest.mark.parametrize(("batch_size", "num_chunks", "expected"), [(64, 8, 8), (20, 8, 3), (19, 8, 2), (4, 64, 1)])
def test_small_batches_are_smaller_by_the_chunks(batch_size: int, num_chunks: int, expected: int) -> None:
    setting = TrainConfig(task="digits", batch_size=batch_size, num_chunks=num_chunks)
    found = SMALL_BATCHES.config(setting, 1, epochs=None, max_updates=7)
    assert found == TrainConfig.of(
        setting,
        method="bptt",
        seed=1,
        bptt_losses=num_chunks,
        batch_size=expected,
        epochs=None,
        max_updates=7,
    )


@pytest.mark.parametrize("changes", [{"num_chunks": 1}, {"batch_size": 1}])
def test_batches_that_cannot_be_smaller_are_named(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="bptt-small-batches needs num_chunks and batch_size above 1, got num_chunks"):
        SMALL_BATCHES.check(TrainConfig.of(TINY, **changes))


@pytest.mark.parametrize(("limit", "expected"), [(None, 1600), (320, 320)])
def test_an_epoch_of_a_generated_task_has_the_same_samples_in_small_batches(limit: int | None, expected: int) -> None:
    """Without a limit it is 100 batches of any size: BPTT would see a fourth of the samples."""
    setting = TrainConfig(task="adding", length=8, num_chunks=4, batch_size=16, limit=limit)
    config = SMALL_BATCHES.config(setting, 0)
    sizes = {num_samples(registry.load_task(each, 0).train) for each in (setting, config)}
    assert (config.batch_size, sizes) == (4, {expected})


def test_the_generated_tasks_are_known() -> None:
    folder = Path(registry.__file__).parent
    drawn = {name for name in registry.TASKS if "samples_an_epoch(" in _source(folder, name)}
    assert set(registry.GENERATED) == drawn
    for name in registry.GENERATED:
        setting = TrainConfig(task=name, length=8, batch_size=3)
        train = registry.load_task(setting, 0).train
        assert isinstance(train, FreshSamples)
        assert len(train) == samples_an_epoch(setting) == 300


def _source(folder: Path, task: str) -> str:
    return (folder / f"{registry.MODULES.get(task, task)}.py").read_text()


def first_step(config: TrainConfig) -> dict[str, Any]:
    """Return the change of every weight by the first update of a run."""
    run = Run(config, launch(config))
    before = {name: param.detach().clone() for name, param in run.model.named_parameters()}
    steps: list[dict[str, Any]] = []
    run.optimizer.register_step_post_hook(
        lambda *_: steps.append({name: param.detach() - before[name] for name, param in run.model.named_parameters()})
    )
    run.train_batch(next(iter(run.batches)))
    assert len(steps) == config.num_chunks
    return steps[0]


def test_the_first_update_at_half_the_rate_is_half_as_long() -> None:
    setting = TrainConfig.of(TINY, method="tbptt", optimizer="sgd", lr=0.25, precision="64-true")
    whole, half = first_step(setting), first_step(at_rate("0.5").config(setting, 0))
    for name, step in whole.items():
        assert step.abs().sum() > 0
        torch.testing.assert_close(half[name], step / 2, rtol=1e-9, atol=1e-15)


def test_labels_say_what_differs() -> None:
    base = TrainConfig(task="digits", lr=0.002)
    assert label(base, base) == "FPTT-8"
    assert label(TrainConfig.of(base, method="bptt"), base) == "BPTT"
    assert label(TrainConfig.of(base, method="tbptt", lr=0.0016), base) == "TBPTT-8, lr × 0.8"
    changed = TrainConfig.of(base, method="bptt", bptt_losses=8, batch_size=8, alpha=0.5, seed=3, threads=2)
    assert label(changed, base) == "BPTT-8, batches of 8"
    assert what_differs(TrainConfig.of(base, alpha=0.5, hidden_size=4), base) == ["hidden_size 4", "alpha 0.5"]
