import copy
import pickle
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from fptt.experiments.configs.config import GROUPS, Setting, StreamConfig, TrainConfig, is_config_of
from fptt.experiments.configs.recipes import read_config, task_config
from fptt.experiments.process.errors import UserError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"limit": 0}, "limit must be positive, got 0"),
    ({"limit": True}, "limit must be a valid integer, got True"),
    ({"limit": 2.0}, "limit must be a valid integer, got 2.0"),
    ({"limit": "5"}, "limit must be a valid integer, got '5'"),
    ({"alpha": -1}, "alpha must not be negative, got -1"),
    ({"lr": "fast"}, "lr must be a valid number, got 'fast'"),
    ({"lr": True}, "lr must be a valid number, got True"),
    ({"lr": "nan"}, "lr must be a finite number, got 'nan'"),
    ({"lr": float("inf")}, "lr must be a finite number, got inf"),
    ({"lr": 1e39}, "lr must be at most 1e+30, got 1e+39"),
    ({"weight_decay": 1e300}, "weight_decay must be at most 1e+30, got 1e+300"),
    ({"forget_bias": -1e39}, "forget_bias must be at least -1e+30, got -1e+39"),
    ({"beta": 1.5}, "beta must be at most 1, got 1.5"),
    ({"dropout": 1}, "dropout must be less than 1, got 1"),
    ({"permuted": 3}, "permuted must be a valid boolean, got 3"),
    ({"cell": "mlp"}, "cell must be 'lstm', 'gru', 'rnn', 'lif', 'alif' or 'liquid-lif', got 'mlp'"),
    ({"surrogate": "box"}, "surrogate must be 'multi-gaussian', 'fast-sigmoid', 'arctan' or 'sigmoid', got 'box'"),
    ({"threshold": 0}, "threshold must be positive, got 0"),
    ({"pool": "sum"}, "pool must be 'last', 'mean' or 'max', got 'sum'"),
    ({"data": 3}, "data must be a valid string, got 3"),
    ({"accelerator": "x" * 101}, "accelerator must have at most 100 characters, got 'xxx"),
    ({"readout_sizes": 5}, "readout_sizes must be a list, got 5"),
    ({"readout_sizes": [8, 0]}, "an entry of readout_sizes must be positive, got 0"),
    ({"readout_sizes": [1] * 101}, "readout_sizes must have at most 100 items"),
    ({"milestones": [0.5, 1]}, "an entry of milestones must be less than 1, got 1"),
    ({"num_layers": 3 * 10**18}, "num_layers must be at most 100, got 3000000000000000000"),
    ({"hidden_size": 10**6}, "hidden_size must be at most 65,536, got 1000000"),
    ({"epochs": 10**13}, "epochs must be at most 1,000,000,000,000, got 10000000000000"),
    ({"devices": 10**6}, "devices must be at most 1,024, got 1000000"),
    ({"seed": 2**31}, "seed must be less than 2,147,483,648, got 2147483648"),
    ({"lr": -1, "beta": 0}, "lr must be positive, got -1; beta must be positive, got 0"),
    ({"epochs": None}, "epochs, max_updates and max_seconds are all None"),
    ({"momentum": 0.9}, "momentum belongs to the optimizer sgd"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=str)
def test_values_are_checked_alike_in_python_and_from_yaml(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as python_error:
        TrainConfig(**values)
    assert message in str(python_error.value)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as yaml_error:
        read_config(path)
    assert str(yaml_error.value) == f"config {path}: {python_error.value}"


def test_messages_are_short_whatever_the_value(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for value in ("x" * 60_000, [[0] * 9] * 900, {str(key): 0 for key in range(5000)}):
        for field in ("lr", "cell", "readout_sizes", "task", value if isinstance(value, str) else "seed"):
            path.write_text(yaml.safe_dump({field: copy.deepcopy(value)}, default_flow_style=True)[: 2**16])
            with pytest.raises(UserError) as error:
                read_config(path)
            assert len(str(error.value)) < 500 + len(str(path))


def test_files_that_flood_the_machine_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    aliases = ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]" for n in range(9))
    start = time.process_time()
    for text in (f"readout_sizes: [{aliases}]", "limit: 3\n" * 10_000, "seed: " + "9" * 5000, "task: " + "[" * 20_000):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            read_config(path)
    assert time.process_time() - start < 2


def test_numbers_without_a_point_and_lists_are_what_the_field_needs() -> None:
    config = TrainConfig(lr="1e-3", max_seconds=1, readout_sizes=[6, 5])  # pyright: ignore[reportArgumentType]
    assert (config.lr, config.max_seconds, config.readout_sizes) == (1e-3, 1.0, (6, 5))
    assert pickle.loads(pickle.dumps(config)) == copy.copy(config) == config


def test_every_field_is_in_one_group_of_the_help() -> None:
    grouped = [field.name for group in GROUPS.values() for field in fields(group)]
    assert grouped == [field.name for field in fields(TrainConfig)]
    assert set(grouped) - {field.name for field in fields(Setting)} == {"method", "seed"}


def test_older_files_with_fields_that_are_no_more_are_read(tmp_path: Path) -> None:
    path, config = tmp_path / "config.yaml", task_config("digits")
    for strategy in ("auto", "ddp"):
        path.write_text(config.to_yaml() + f"strategy: {strategy}\n")
        assert read_config(path) == config
        assert is_config_of(path.read_text(), config)
    path.write_text(config.to_yaml() + "strategy: fsdp\n")
    assert not is_config_of(path.read_text(), config)
    with pytest.raises(UserError, match="unknown fields: strategy"):
        read_config(path)


def test_streams_are_checked_alike() -> None:
    for values, message in (
        ({"delay": -1}, "delay must not be negative, got -1"),
        ({"chunk_length": 0}, "chunk_length must be positive, got 0"),
        ({"alpha": 0}, "alpha must be positive, got 0"),
        ({"alpha": 1e300}, r"alpha must be at most 1e\+30, got 1e\+300"),
        ({"max_classes": 1001}, "max_classes must be at most 1,000, got 1001"),
        ({"beta": 2}, "beta must be at most 1, got 2"),
        ({"split": "none"}, "split must be 'all', 'train' or 'test', got 'none'"),
        ({"colour": "red"}, "colour"),
    ):
        with pytest.raises(UserError, match=message):
            StreamConfig(**values)  # pyright: ignore[reportArgumentType]
