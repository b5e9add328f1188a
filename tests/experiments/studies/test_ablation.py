import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from rich.console import Console

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies import plots
from fptt.experiments.studies.ablation import FIELDS, Ablation, parse_axes
from fptt.experiments.studies.differences import EXPLANATION
from fptt.experiments.training.folder import RunFolder

TINY = TrainConfig(task="digits", limit=64, epochs=1, hidden_size=4, threads=1)


def test_fields_that_the_other_choices_leave_without_use_are_named() -> None:
    cosine = "makes no difference with schedule cosine: it needs "
    for text, message in (
        ("lr_factor=0.5:0.25", f"lr_factor {cosine}steps or plateau"),
        ("lr,plateau_epochs=3", f"plateau_epochs {cosine}plateau"),
        ("schedule,plateau_epochs=3", f"plateau_epochs {cosine}plateau"),  # one at a time
        ("rollback_factor=0.1", "rollback_factor makes no difference with on_bad_number raise: it needs rollback"),
        ("max_rollbacks=2", "max_rollbacks makes no difference with on_bad_number raise: it needs rollback"),
    ):
        with pytest.raises(UserError) as error:
            ablation_of(text)
        assert message in str(error.value)
    assert len(ablation_of("schedule=cosine:plateau,plateau_epochs=1:3", grid=True).configs) == 3 * 4
    for choices, text in (
        ({"schedule": "steps"}, "lr_factor=0.5"),
        ({"schedule": "plateau"}, "lr_factor=0.5,plateau_epochs=3"),
        ({"on_bad_number": "rollback"}, "rollback_factor=0.1,max_rollbacks=2"),
    ):
        axes = parse_axes(text)
        setting = TrainConfig.of(TINY, **choices)
        assert len(Ablation(setting, axes, [0], Path("out")).configs) == 3 * (1 + len(axes))


def names(ablation: Ablation) -> list[str]:
    return [ablation.folder(*key).relative_to(ablation.out).as_posix() for key in ablation.configs]


def ablation_of(text: str, seeds: int = 1, **options: Any) -> Ablation:
    return Ablation(TINY, parse_axes(text), range(seeds), Path("out"), **options)


def test_axes_are_parsed_in_the_types_of_their_fields() -> None:
    assert parse_axes("num_chunks=4:8:16, alpha=0.01:1, form,coupling=coupled,optimizer=sgd:adamw") == {
        "num_chunks": [4, 8, 16],
        "alpha": [0.01, 1.0],
        "form": [],
        "coupling": ["coupled"],
        "optimizer": ["sgd", "adamw"],
    }
    assert parse_axes("hidden_size=8:16:8") == {"hidden_size": [8, 16]}
    assert parse_axes("num-chunks=4:8,on-bad-number=skip") == {"num_chunks": [4, 8], "on_bad_number": ["skip"]}
    assert parse_axes("precision=32-true:bf16-mixed,permuted=true,max_norm=none:0.5,epochs=3,limit=64:none") == {
        "precision": ["32-true", "bf16-mixed"],
        "permuted": [True],
        "max_norm": [None, 0.5],
        "epochs": [3],
        "limit": [64, None],
    }


def test_all_that_is_a_choice_or_a_number_may_vary() -> None:
    values = {name: getattr(TrainConfig(), name) for name in FIELDS}
    others = {field.name for field in dataclasses.fields(TrainConfig)} - values.keys()
    of_data = {"task", "data", "id", "time", "inputs", "target", "group", "kind"}
    assert others == {*of_data, "readout_sizes", "milestones", "accelerator", "method", "seed"}
    for name in FIELDS:
        (value,) = parse_axes(f"{name}={'none' if values[name] is None else str(values[name]).lower()}")[name]
        assert (value, type(value)) == (values[name], type(values[name]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown field ''; there are limit, permuted, by, standardization, length, level, split_seed, cell,"),
        ("alpha,color", "unknown field 'color'; there are limit, permuted"),
        ("milestones=0.5", "the field milestones cannot vary: it is neither a choice nor a number"),
        ("seed=0:1", "the field seed cannot vary: --seeds sets their number"),
        ("method", "the field method cannot vary: every ablation has all methods"),
        ("alpha,,form", "unknown field ''"),
        ("lr,lr=1", "fields must not repeat, got lr twice"),
        ("max_norm=1,max-norm=2", "fields must not repeat, got max_norm twice"),
        ("num_chunks=4:x", "num_chunks must be a whole number, got 'x'"),
        ("num_chunks=4.5", "num_chunks must be a whole number, got '4.5'"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("alpha=none", "alpha must be a number, got 'none'"),
        ("max_norm=big", "max_norm must be a number or none, got 'big'"),
        ("limit=0.5", "limit must be a whole number or none, got '0.5'"),
        ("tied=yes", "tied must be one of false, true, got 'yes'"),
        ("precision=bf16", "precision must be one of 32-true, 64-true, bf16-mixed, 16-mixed, got 'bf16'"),
        ("alpha=nan", "alpha must be a number, got 'nan'"),
        ("alpha=", "alpha must be a number, got ''"),
        ("form=paper:printed", "form must be one of paper, released, got 'printed'"),
        ("optimizer=lion", "optimizer must be one of adam, adamw, sgd, rmsprop, adagrad, got 'lion'"),
    ],
)
def test_errors_in_axes_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_axes(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha=-1", "alpha must not be negative"),
        ("beta=2", "beta must be at most 1, got 2.0"),
        ("num_chunks=0", "num_chunks must be positive"),
        ("epochs=" + 400 * "9", "epochs must be at most 1,000,000,000,000, got 999"),
        ("num_chunks=4:65", "num_chunks must be at most the sequence length 64, got 65"),
        ("momentum=0.9", "momentum belongs to the optimizer sgd"),
        ("epochs=none", "epochs, max_updates and max_seconds are all None"),
        ("batch_size", "batch_size has no usual values: give some, as in batch_size=A:B"),
    ],
)
def test_impossible_values_are_named_before_anything_runs(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ablation_of(text)


def test_fields_that_a_method_does_not_have_are_named() -> None:
    with pytest.raises(UserError, match="alpha makes no difference to tbptt"):
        ablation_of("alpha", method="tbptt")
    with pytest.raises(UserError, match="unknown field 'color'"):
        Ablation(TINY, {"color": []}, [0], Path("out"))


def test_default_values_are_around_the_setting() -> None:
    axes = ablation_of("num_chunks,alpha,form,coupling,lr,beta,optimizer,hidden_size,precision,fan_in_init").axes
    assert axes == {
        "num_chunks": [2, 4, 8, 16, 32],
        "alpha": [0.01, 0.1, 0.5],
        "form": ["paper", "released"],
        "coupling": ["coupled", "decoupled"],
        "lr": [0.000667, 0.002, 0.006],
        "beta": [0.5, 0.7],
        "optimizer": ["adam", "sgd", "rmsprop"],
        "hidden_size": [2, 4, 8],
        "precision": ["32-true", "bf16-mixed"],
        "fan_in_init": [False, True],
    }


@pytest.mark.parametrize(("own", "expected"), [(1, [1, 2, 4]), (2, [1, 2, 4, 8]), (32, [8, 16, 32, 64])])
def test_default_numbers_of_chunks_are_whole_distinct_and_fit_the_sequence(own: int, expected: list[int]) -> None:
    setting = TrainConfig(task="digits", num_chunks=own)
    axes = Ablation(setting, {"num_chunks": []}, [0], Path("out")).axes
    assert axes["num_chunks"] == expected


def test_one_field_at_a_time_differs_from_the_setting_and_every_control_is_there_once() -> None:
    ablation = ablation_of("num_chunks=4:8,alpha=0.1:0.5,form,lr=0.002:0.01")
    assert names(ablation) == [
        "fptt/seed-0",
        "fptt-num_chunks-4/seed-0",
        "fptt-alpha-0.5/seed-0",
        "fptt-form-released/seed-0",
        "fptt-lr-0.01/seed-0",
        "tbptt/seed-0",
        "tbptt-num_chunks-4/seed-0",
        "tbptt-lr-0.01/seed-0",
        "bptt/seed-0",
        "bptt-lr-0.01/seed-0",
    ]
    configs = dict(zip(names(ablation), ablation.configs.values(), strict=True))
    assert configs["fptt-alpha-0.5/seed-0"] == TrainConfig.of(TINY, alpha=0.5)
    assert configs["tbptt-num_chunks-4/seed-0"] == TrainConfig.of(TINY, method="tbptt", num_chunks=4)
    assert configs["bptt-lr-0.01/seed-0"] == TrainConfig.of(TINY, method="bptt", lr=0.01)


def test_a_grid_is_the_whole_product_and_nothing_else() -> None:
    ablation = ablation_of("num_chunks=4:16,coupling", grid=True)
    assert names(ablation) == [
        "fptt-num_chunks-4-coupling-coupled/seed-0",
        "fptt-num_chunks-4/seed-0",
        "fptt-num_chunks-16-coupling-coupled/seed-0",
        "fptt-num_chunks-16/seed-0",
        "tbptt-num_chunks-4/seed-0",
        "tbptt-num_chunks-16/seed-0",
        "bptt/seed-0",
    ]


def test_every_variant_has_every_seed() -> None:
    ablation = ablation_of("beta=0.7", seeds=2)
    assert names(ablation) == [
        *("fptt/seed-0", "fptt/seed-1", "fptt-beta-0.7/seed-0", "fptt-beta-0.7/seed-1"),
        *("tbptt/seed-0", "tbptt/seed-1", "bptt/seed-0", "bptt/seed-1"),
    ]
    assert [config.seed for config in ablation.configs.values()] == [0, 1] * 4


def test_other_optimizers_do_without_the_momentum_of_sgd() -> None:
    setting = TrainConfig(task="digits", optimizer="sgd", momentum=0.9)
    ablation = Ablation(setting, parse_axes("optimizer=sgd:adam"), [0], Path("out"))
    found = [(config.method, config.optimizer, config.momentum) for config in ablation.configs.values()]
    assert found == [(name, *rest) for name in ("fptt", "tbptt", "bptt") for rest in (("sgd", 0.9), ("adam", 0.0))]


def test_a_grid_with_a_momentum_that_an_optimizer_lacks_is_named() -> None:
    """It would be the same run under another name."""
    setting = TrainConfig(task="digits", optimizer="sgd")
    axes = parse_axes("optimizer=sgd:adam,momentum=0:0.9")
    with pytest.raises(UserError, match=r"momentum belongs to the optimizer sgd, got momentum 0.9 with adam"):
        Ablation(setting, axes, [0], Path("out"), grid=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_duals=1:3", "^fptt-num_duals-3: num_duals must be 1 or num_chunks, 8, got 3"),
        ("horizon=1:16", "^fptt-horizon-16: horizon must be at most num_chunks, 8, got 16"),
        ("mu=1:2", "^fptt-mu-2.0: mu must be 1 in the form 'paper', got 2.0"),
        ("permuted=true", "^fptt-permuted-True: permuted belongs to the task 'mnist'"),
        ("num_duals=1:8,engine=compiled", "^fptt-num_duals-8-engine-compiled: num_duals must be 1 with engine"),
        ("coupling,previous_gradient", "^fptt-previous_gradient-recomputed: previous_gradient='recomputed' needs"),
    ],
)
def test_a_variant_that_cannot_be_built_is_named_before_any_run(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ablation_of(text, grid="," in text)


def test_the_usual_previous_gradients_can_be_built() -> None:
    """The decoupled penalty of the setting has no recomputed one."""
    configs = ablation_of("previous_gradient", method="fptt").configs.values()
    assert [(config.method, config.previous_gradient, config.coupling) for config in configs] == [
        ("fptt", "dual", "decoupled"),
        ("fptt", "recomputed", "coupled"),
        ("tbptt", "dual", "decoupled"),
        ("bptt", "dual", "decoupled"),
    ]


def test_a_dual_for_each_chunk_stays_one_for_each() -> None:
    for own, expected in ((1, [1, 1, 1]), (8, [8, 2, 4])):
        setting = TrainConfig.of(TINY, num_duals=own)
        configs = Ablation(setting, parse_axes("num_chunks=2:4"), [0], Path("out")).configs.values()
        assert [config.num_duals for config in configs if config.method == "fptt"] == expected


def test_chunks_are_checked_beside_the_length_of_their_variant() -> None:
    setting = TrainConfig(task="adding", length=20, limit=64, num_chunks=4)
    ablation = Ablation(setting, parse_axes("num_chunks=40,length=50"), [0], Path("out"), grid=True, method="tbptt")
    assert names(ablation)[0] == "tbptt-num_chunks-40-length-50/seed-0"
    with pytest.raises(UserError, match="num_chunks must be at most the sequence length 30, got 40"):
        Ablation(setting, parse_axes("num_chunks=40,length=30"), [0], Path("out"), grid=True, method="tbptt")
    with pytest.raises(UserError, match="num_chunks must be at most the sequence length 20, got 40"):
        Ablation(setting, parse_axes("num_chunks=40"), [0], Path("out"), method="tbptt")


def summary(config: TrainConfig, test: float) -> dict[str, Any]:
    return {
        "test_accuracy": test,
        "test_macro_f1": 0.5,
        "validation_accuracy": 0.75,
        "status": "finished",
        "epochs": 1.0,
        "updates": 1 if config.method == "bptt" else config.num_chunks,
        "seconds": 2.0,
        "peak_memory_bytes": 2**21,
        "training_memory_bytes": 2**20,
        "commit": "c0ffee",
        "device": "cpu (abacus)",
        "torch": "2.9",
    }


def write_runs(ablation: Ablation, tests: dict[str, float]) -> None:
    """Leave finished runs, so that none has to be made."""
    for key, config in ablation.configs.items():
        folder = RunFolder(ablation.folder(*key))
        folder.create(config)
        folder.append_metrics({"epoch": 1, "updates": 1, "seconds": 1, "validation_accuracy": 0.75})
        folder.write_summary(summary(config, tests[folder.path.relative_to(ablation.out).as_posix()]))


TESTS = {
    "fptt/seed-0": 0.5,
    "fptt/seed-1": 0.7,
    "fptt-num_chunks-4/seed-0": 0.2,
    "fptt-num_chunks-4/seed-1": 0.4,
    "fptt-alpha-0.5/seed-0": 0.6,
    "fptt-alpha-0.5/seed-1": 0.8,
    "tbptt/seed-0": 0.3,
    "tbptt/seed-1": 0.3,
    "tbptt-num_chunks-4/seed-0": 0.1,
    "tbptt-num_chunks-4/seed-1": 0.2,
    "bptt/seed-0": 0.9,
    "bptt/seed-1": 0.8,
}

TABLE = """\
| method | K | form | coupling | α or γ | {validation} | {test} | epochs | updates | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| FPTT | 8 | paper | decoupled | 0.1 | 0.7500 ± 0.0000 | 0.6000 ± 0.1414 | 1.0 | 8 | 2.0 |
| FPTT | 4 | paper | decoupled | 0.1 | 0.7500 ± 0.0000 | 0.3000 ± 0.1414 | 1.0 | 4 | 2.0 |
| FPTT | 8 | paper | decoupled | 0.5 | 0.7500 ± 0.0000 | 0.7000 ± 0.1414 | 1.0 | 8 | 2.0 |
| TBPTT | 8 | – | – | – | 0.7500 ± 0.0000 | 0.3000 ± 0.0000 | 1.0 | 8 | 2.0 |
| TBPTT | 4 | – | – | – | 0.7500 ± 0.0000 | 0.1500 ± 0.0707 | 1.0 | 4 | 2.0 |
| BPTT | – | – | – | – | 0.7500 ± 0.0000 | 0.8500 ± 0.0707 | 1.0 | 1 | 2.0 |

Mean ± sample standard deviation of the seeds 0, 1. Commit c0ffee; cpu (abacus); torch 2.9.

| difference | seeds | in test accuracy (above 0 is better) | 95 % interval | p | p, Holm | FPTT is |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| FPTT-8 − TBPTT-8 | 2 | +0.3000 | [-0.9706, +1.5706] | 0.205 | 0.936 | undecided |
| FPTT-8 − BPTT | 2 | -0.2500 | [-2.1559, +1.6559] | 0.344 | 0.936 | undecided |
| FPTT-4 − TBPTT-4 | 2 | +0.1500 | [-0.4853, +0.7853] | 0.205 | 0.936 | undecided |
| FPTT-4 − BPTT | 2 | -0.5500 | [-2.4559, +1.3559] | 0.170 | 0.936 | undecided |
| FPTT-8, alpha 0.5 − TBPTT-8 | 2 | +0.4000 | [-0.8706, +1.6706] | 0.156 | 0.936 | undecided |
| FPTT-8, alpha 0.5 − BPTT | 2 | -0.1500 | [-2.0559, +1.7559] | 0.500 | 0.936 | undecided |

{explanation}
"""
"""With two seeds p is 1 − 2/π · atan t, t the mean over half the distance: six times the least, 0.156, is 0.936, and
Holm's p of the others is never less."""


def test_rows_table_and_plot_are_those_of_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = Ablation(TINY, parse_axes("num_chunks=4,alpha=0.1:0.5"), range(2), tmp_path)
    write_runs(ablation, TESTS)
    ablation.run(Console(), 1)
    assert "12 runs, 12 of them are finished already" in capsys.readouterr().out
    ablation.report(Console(width=200))
    captured = capsys.readouterr().out
    assert "0.1500 ± 0.0707" in captured
    assert "warning" not in captured
    better = "accuracy (higher is better)"
    assert (tmp_path / "ablation.md").read_text() == TABLE.format(
        validation=f"validation {better}", test=f"test {better}", explanation=EXPLANATION
    )
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    rows = ablation.rows()
    assert len(rows) == 6
    row = rows[4]
    assert row["method"] == "tbptt"
    assert row["values"] == {"num_chunks": 4, "form": None, "coupling": None, "alpha": None}
    assert row["test_accuracy_mean"] == pytest.approx(0.15)
    assert row["test_accuracy_sd"] == pytest.approx(0.05 * 2**0.5)
    assert row["tests"] == {0: 0.1, 1: 0.2}
    assert (row["updates"], row["commit"], row["device"]) == (4, ["c0ffee"], ["cpu (abacus)"])


def test_a_grid_is_drawn_and_mixed_commits_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = Ablation(TINY, parse_axes("alpha=0:0.5,form"), range(1), tmp_path, grid=True)  # 0 has no logarithm
    write_runs(ablation, dict.fromkeys(names(ablation), 0.5))
    changed = RunFolder(tmp_path / "bptt" / "seed-0")
    changed.write_summary({**changed.read_summary(), "commit": "decade"})
    ablation.run(Console(), 1)
    ablation.report(Console(width=200))
    assert "more than one commit: c0ffee, decade" in capsys.readouterr().out
    assert (tmp_path / "ablation.png").stat().st_size > 5000


def test_epochs_that_are_varied_are_not_those_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than asked, with a limit of updates."""
    ablation = Ablation(TINY, parse_axes("epochs=2:3"), [0], tmp_path)
    write_runs(ablation, dict.fromkeys(names(ablation), 0.5))
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    ablation.run(Console(quiet=True), 1)
    asked_and_made = [(row["values"]["epochs"], row["epochs"]) for row in ablation.rows() if row["method"] == "fptt"]
    assert asked_and_made == [(1, 1), (2, 1), (3, 1)]
    ablation.report(Console(quiet=True))
    lines = (tmp_path / "ablation.md").read_text().splitlines()[2:5]
    assert [line.split("|")[6].strip() for line in lines] == ["1", "2", "3"]
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ["1", "2", "3"]
    plt.close(figures[0])


def test_a_value_of_none_is_no_field_without_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = Ablation(TINY, parse_axes("max_norm=none:0.5"), [0], tmp_path, method="bptt")
    tests = {"bptt/seed-0": 0.3, "bptt-max_norm-None/seed-0": 0.1, "bptt-max_norm-0.5/seed-0": 0.2}
    write_runs(ablation, tests)
    ablation.run(Console(), 1)
    assert [row["values"]["max_norm"] for row in ablation.rows()] == [1.0, "none", 0.5]
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    ablation.report(Console())
    (axis,) = figures[0].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "1.0", "none"]
    assert next(line for line in axis.lines if line.get_label() == "BPTT").get_ydata().tolist() == [0.2, 0.3, 0.1]
    plt.close(figures[0])


def test_what_a_change_brings_with_it_is_drawn_with_that_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = Ablation(TINY, parse_axes("previous_gradient=recomputed,coupling=coupled"), [0], tmp_path)
    tests = {"fptt": 0.1, "fptt-previous_gradient-recomputed": 0.2, "fptt-coupling-coupled": 0.3}
    write_runs(ablation, {f"{name}/seed-0": test for name, test in {**tests, "tbptt": 0.4, "bptt": 0.5}.items()})
    ablation.run(Console(), 1)
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    ablation.report(Console())
    lines = [next(line for line in axis.lines if line.get_label() == "FPTT") for axis in figures[0].axes]
    assert [line.get_ydata().tolist() for line in lines] == [[0.1, 0.2], [0.1, 0.3]]
    plt.close(figures[0])


@pytest.mark.usefixtures("forked_runs")
def test_precisions_are_compared(tmp_path: Path) -> None:
    axes = parse_axes("precision=32-true:bf16-mixed")
    ablation = Ablation(TINY, axes, [0], tmp_path, method="bptt")
    ablation.run(Console(), 1)
    weights = [RunFolder(ablation.folder(*key)).read_weights() for key in ablation.configs]
    assert [key for (_, key), _ in ablation.configs] == [(), (("precision", "bf16-mixed"),)]
    assert not torch.equal(weights[0]["readout.0.weight"], weights[1]["readout.0.weight"])
    assert [row["values"]["precision"] for row in ablation.rows()] == ["32-true", "bf16-mixed"]


@pytest.mark.usefixtures("forked_runs")
def test_runs_are_made_and_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = Ablation(TINY, parse_axes("num_chunks=4"), [0], tmp_path, method="tbptt")
    write_runs(ablation, dict.fromkeys(names(ablation), 0.5))
    for name in ("summary.json", "metrics.csv"):
        (tmp_path / "tbptt-num_chunks-4" / "seed-0" / name).unlink()
    ablation.run(Console(), 1)
    assert "3 runs, 2 of them are finished already" in capsys.readouterr().out
    made = RunFolder(tmp_path / "tbptt-num_chunks-4" / "seed-0").read_summary()
    assert (made["method"], made["num_chunks"], made["updates"], made["status"]) == ("tbptt", 4, 4, "finished")
    other = Ablation(TrainConfig.of(TINY, batch_size=32), parse_axes("num_chunks=4"), [0], tmp_path, method="tbptt")
    with pytest.raises(UserError, match="batch_size 64, not 32"):
        other.run(Console(), 1)


def test_the_plot_has_a_panel_a_field_with_the_controls_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = Ablation(TINY, parse_axes("num_chunks=4,alpha=0.1:0.5"), range(2), tmp_path)
    write_runs(ablation, TESTS)
    ablation.run(Console(), 1)
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    ablation.report(Console())
    chunks, alpha = figures[0].axes
    assert (chunks.get_xlabel(), chunks.get_xscale()) == ("K", "log")
    lines = {line.get_label(): line.get_xydata().round(9).tolist() for line in chunks.lines}
    assert lines["FPTT"] == [[4, 0.3], [8, 0.6]]
    assert lines["TBPTT"] == [[4, 0.15], [8, 0.3]]
    assert [y for _, y in lines["BPTT"]] == [0.85, 0.85]
    points = [line.get_xydata().tolist() for line in chunks.lines if line.get_marker() == "."]
    assert [[4, 0.2], [4, 0.4]] in points
    lines = {line.get_label(): line.get_xydata().round(9).tolist() for line in alpha.lines}
    assert lines["FPTT"] == [[0.1, 0.6], [0.5, 0.7]]
    assert [y for _, y in lines["TBPTT"]] == [0.3, 0.3]  # of the setting's own K alone
    plt.close(figures[0])


def test_a_variant_has_no_more_than_its_cell_has(tmp_path: Path) -> None:
    """A forget bias is of the LSTM alone; one that is asked for beside another cell is refused before any run."""
    setting = TrainConfig.of(TINY, forget_bias=1.0, fan_in_init=True)
    axes = parse_axes("cell=lstm:gru:lif,chrono_init=64:None")
    ablation = Ablation(setting, axes, [0], tmp_path, method="tbptt")
    assert [
        (dict(changes), config.forget_bias, config.fan_in_init)
        for ((_, changes), _), config in (ablation.configs.items())
    ][:4] == [
        ({}, 1.0, True),
        ({"cell": "gru"}, 0.0, True),
        ({"cell": "lif"}, 0.0, False),
        ({"chrono_init": 64.0}, 0.0, True),
    ]
    for over in ("cell=gru,forget_bias=2", "cell=lstm:gru,forget_bias=0.5:2"):
        with pytest.raises(UserError, match="forget_bias"):
            Ablation(setting, parse_axes(over), [0], tmp_path, grid=True, method="tbptt")
    assert not list(tmp_path.iterdir())
