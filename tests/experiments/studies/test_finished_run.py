import json
from pathlib import Path
from typing import Any

import pytest

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.finished_run import metric_of, read_run
from tests.experiments.studies.runs import SMALL, write_run


def test_the_metric_is_named_by_the_summary_or_the_first_test_metric() -> None:
    assert metric_of({"task": "text", "test_accuracy": 0.5, "test_perplexity": 3.0, "metric": "perplexity"}) == (
        "perplexity"
    )
    assert metric_of({"task": "text", "test_bits_per_character": 1.5, "test_accuracy": 0.5}) == "bits_per_character"
    with pytest.raises(UserError, match="no metric"):
        metric_of({"status": "finished"})


def test_a_run_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "equal-epochs" / "run", TrainConfig.of(SMALL, method="bptt", bptt_losses=4, seed=3), 0.75)
    run = read_run(tmp_path / "equal-epochs" / "run", "equal-epochs")
    assert (run.metric, run.summary["test_accuracy"]) == ("accuracy", 0.75)
    assert run.setting == TrainConfig(task="digits", method="bptt", bptt_losses=4)  # threads, seed, K are gone
    at_equal_updates = read_run(tmp_path / "equal-epochs" / "run", "more/equal-updates")
    assert at_equal_updates.setting == TrainConfig.of(run.setting, epochs=1)  # any number would do
    assert [row["epoch"] for row in run.metrics] == [1, 2, 3]


@pytest.mark.parametrize(("policy", "kept"), [("raise", 5000), ("skip", 5000), ("rollback", 8)])
def test_the_checkpoints_of_a_run_are_a_setting_where_it_may_go_back_to_them(
    policy: Any, kept: int, tmp_path: Path
) -> None:
    write_run(tmp_path, TrainConfig.of(SMALL, on_bad_number=policy, checkpoint_updates=8), 0.75)
    assert read_run(tmp_path).setting.checkpoint_updates == kept


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "failed"}, "failed."),
        ({"status": ...}, "of unknown status."),
        ({"status": 7}, "of unknown status."),
        ({"test_accuracy": "0.5"}, "lacks test_accuracy"),
        ({"test_accuracy": None}, "lacks test_accuracy"),
        ({"test_accuracy": True}, "lacks test_accuracy"),
        ({"test_accuracy": 7.5}, r"test_accuracy in summary.json must be in \[0, 1\], got 7.5"),
        ({"test_accuracy": float("nan")}, r"test_accuracy in summary.json must be in \[0, 1\], got nan"),
        ({"test_accuracy": 10**400}, "summary.json cannot be read .an integer has 401 digits"),
        ({"validation_accuracy": -0.1}, r"validation_accuracy in summary.json must be in \[0, 1\], got -0.1"),
        ({"test_macro_f1": 1.5}, r"test_macro_f1 in summary.json must be in \[0, 1\]"),
        ({"test_cross_entropy": -1.0}, "test_cross_entropy in summary.json must be at least 0, got -1.0"),
        ({"updates": None}, "lacks updates"),
        ({"updates": -5}, "updates in summary.json must be finite and at least 0, got -5"),
        ({"seconds": float("inf")}, "seconds in summary.json must be finite and at least 0, got inf"),
        ({"device": 3}, "lacks device"),
        ({"commit": ...}, "lacks commit"),
        ({"earlier_environments": [{"device": "cpu"}]}, "lacks earlier_environments"),
        ({"task": "adding"}, "task in summary.json must be 'digits' as in config.yaml, got 'adding'"),
        ({"method": "bptt"}, "method in summary.json must be 'fptt' as in config.yaml, got 'bptt'"),
        ({"seed": 1}, "seed in summary.json must be 0 as in config.yaml, got 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_summaries_are_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path, SMALL)
    summary = {**json.loads(folder.summary_file.read_text()), **change}
    folder.write_summary({name: value for name, value in summary.items() if value is not ...})
    with pytest.raises(UserError, match=reason):
        read_run(tmp_path)


def test_damage_is_named_without_the_path_whatever_blanks_it_has(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "two  blanks", SMALL)
    folder.summary_file.write_text("[1")
    reason = "Expecting ',' delimiter: line 1 column 3 (char 2)"
    with pytest.raises(UserError) as error:
        folder.read_summary()
    assert str(error.value) == f"run folder {folder.path} is damaged: summary.json cannot be read ({reason})."
    with pytest.raises(UserError) as error:
        read_run(folder.path)
    assert str(error.value) == f"damaged: summary.json cannot be read ({reason})."
