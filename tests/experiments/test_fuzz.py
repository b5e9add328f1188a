"""Damaged and forged files end in one clear error: never in another exception, a half-loaded run or foreign code."""

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.configs.recipes import read_config
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.loading import floats, load_splits, whole_numbers
from fptt.experiments.training.checkpoints import Checkpoints, DamagedCheckpointError, read_checkpoint
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.processes import launch
from fptt.experiments.training.run import Run

CASES = pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.slow)])
FEW_CASES = pytest.mark.parametrize("cases", [20, pytest.param(1000, marks=pytest.mark.slow)])

Place = tuple[str | int, ...]
exact = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9)
scalars = exact | st.floats(allow_subnormal=False)
keys = exact | st.floats(allow_nan=False, allow_subnormal=False)  # whether two NaN are one key depends on their address
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
cuts = st.none() | st.integers(0, 10**9)
changes = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=8)


def fuzz(cases: int, *arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Call what is decorated so many times, always with the same arguments."""

    def decorate(check: Callable[..., None]) -> None:
        settings(max_examples=cases, deadline=None, derandomize=True)(given(*arguments)(check))()

    return decorate


def changed(content: bytes, places: list[tuple[int, int]], cut: int | None) -> bytes:
    """Return bytes with some replaced, and the end cut off if asked."""
    damaged = bytearray(content)
    for place, value in places:
        damaged[place % len(damaged)] = value
    return bytes(damaged if cut is None else damaged[: cut % len(damaged)])


@pytest.fixture(scope="module")
def trained() -> tuple[Run, dict[str, Any]]:
    """Return a run after two batches, and its state."""
    config = TrainConfig(limit=64, hidden_size=4, batch_size=16, epochs=1, threads=1)
    run = Run(config, launch(config))
    batches = iter(run.batches)
    for _ in range(2):
        run.train_batch(next(batches))
    return run, copy.deepcopy(run.state_dict())


@CASES
def test_damaged_checkpoints(cases: int, tmp_path: Path) -> None:
    """Whatever byte of a record is not what was written is found; the padding between records may change."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"weights": torch.arange(50.0), "name": "a state"})
    (path,) = checkpoints.files()
    content = path.read_bytes()

    @fuzz(cases, changes, cuts)
    def _(places: list[tuple[int, int]], cut: int | None) -> None:
        path.write_bytes(changed(content, places, cut))
        told = ""
        try:
            state = read_checkpoint(path)
        except DamagedCheckpointError as error:
            told = str(error)
        else:
            assert state.keys() == {"weights", "name"}
            assert state["name"] == "a state"
            assert torch.equal(state["weights"], torch.arange(50.0))
        assert not told or f"{path} is damaged: " in told


@CASES
def test_damaged_weights(cases: int, tmp_path: Path) -> None:
    """What safetensors still reads is tensors."""
    folder = RunFolder(tmp_path)
    folder.write_weights({"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}, {})
    content = folder.weights_file.read_bytes()

    @fuzz(cases, changes, cuts)
    def _(places: list[tuple[int, int]], cut: int | None) -> None:
        folder.weights_file.write_bytes(changed(content, places, cut))
        told = ""
        try:
            weights = folder.read_weights()
        except UserError as error:
            told = str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
        assert not told or f"{tmp_path} is damaged: model.safetensors cannot be read" in told


@CASES
def test_forged_states(cases: int, trained: tuple[Run, dict[str, Any]]) -> None:
    """One value anywhere in a state is replaced: it is refused with the name of its field, or it fits."""
    run, state = trained
    places = places_in(state)

    @fuzz(cases, st.sampled_from(places), values)
    def _(place: Place, value: Any) -> None:
        forged = copy.deepcopy(state)
        holder: Any = forged
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        told = ""
        try:
            run.load_state_dict(forged)
        except UserError as error:
            told = str(error)
        assert not told or str(place[0]) in told or "data of the task" in told
        run.load_state_dict(copy.deepcopy(state))  # whatever was loaded of the forged one is replaced
        for name, weight in run.model.state_dict().items():
            assert torch.equal(weight, state["model"][name])


def places_in(value: Any, place: Place = ()) -> list[Place]:
    """Return the way to every value in a nest of dicts and lists."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found: list[Place] = []
    for key in list(keys)[:20]:
        found += [(*place, key), *places_in(value[key], (*place, key))]
    return found


@CASES
def test_random_configs(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    fields = st.sampled_from([*TrainConfig.__dataclass_fields__, "x"])

    @fuzz(cases, st.one_of(st.text(), st.dictionaries(fields, values)))
    def _(content: Any) -> None:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        with suppress(UserError):
            assert isinstance(read_config(path), TrainConfig)


@FEW_CASES
def test_damaged_parquet(cases: int, tmp_path: Path) -> None:
    folder, kept = tmp_path / "data", tmp_path / "kept"
    folder.mkdir()
    rows = {"signal": [[0.5, 1.5, -2.0]] * 40, "label": [number % 3 for number in range(40)]}
    datasets.Dataset.from_dict(rows).to_parquet(kept)
    content = kept.read_bytes()
    (folder / "test-00000.parquet").write_bytes(content)

    @fuzz(cases, changes, cuts)
    def _(places: list[tuple[int, int]], cut: int | None) -> None:
        (folder / "train-00000.parquet").write_bytes(changed(content, places, cut))
        with suppress(UserError):
            split = load_splits(str(folder))["train"]
            assert all(signal.shape == (3,) for signal in floats(split, "train", "signal", (3,)))
            assert int(whole_numbers(split, "train", "label", 2).max()) <= 2
