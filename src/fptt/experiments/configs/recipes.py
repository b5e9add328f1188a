"""Recipes: settings with a name, the published ones and small ones for two cores; they complete a config file."""

import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fptt.experiments.configs.config import TrainConfig, read_values, with_older_fields
from fptt.experiments.process.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A setting with a name.

    Attributes:
        about: One line for the list of recipes.
        config: The setting; method FPTT, seed 0.
        minutes: Duration of one run with FPTT on two cores, measured or, for published settings, estimated by an epoch.
        result: Test metric that FPTT reached there; None if it was not run.
    """

    about: str
    config: TrainConfig
    minutes: float | None = None
    result: str | None = None


# An update every time step: small ones, many, judged by their moving average, for the weights never stand still.
PER_STEP: dict[str, Any] = {
    "engine": "compiled",
    "lr": 5e-4,
    "schedule": "constant",
    "ema_decay": 0.98,
    "forget_bias": 1.0,
    "fan_in_init": True,
    "readout_sizes": (256,),
    "readout_activation": "relu",
}

# Kag & Saligrama: LSTM-128, Adam 1e-3, ÷ 10 at epochs 50, 75 and 90 of 200, batch 128, clip 1, α 0.1, β ½, K = 10
IMAGES: dict[str, Any] = {
    "readout_sizes": (256,),
    "batch_size": 128,
    "num_chunks": 10,
    "lr": 1e-3,
    "form": "released",
    "coupling": "coupled",
    "alpha": 0.1,
    "divergence": "running",
    "epochs": 200,
    "schedule": "steps",
    "milestones": (0.25, 0.375, 0.45),
}

SMALL_IMAGES: dict[str, Any] = {
    "readout_sizes": (256,),
    "batch_size": 64,
    "epochs": 2,
    "threads": 1,
    "num_chunks": 28,
    "lr": 1e-3,
    "forget_bias": 1.0,
    "fan_in_init": True,
}

# Neurons of sFPTT (Yin, Corradi & Bohté 2023); the rest is ours.
SFPTT: dict[str, Any] = {"cell": "liquid-lif", "lr": 3e-3, "threads": 1}

ADDING: dict[str, Any] = {
    "readout_sizes": (256,),
    "forget_bias": 1.0,
    "fan_in_init": True,
    "num_chunks": 10,
    "batch_size": 128,
    "lr": 1e-3,
    "schedule": "trapezoid",
    "divergence": "none",
}

# Kag & Saligrama: LSTM-256, SGD 2 with momentum 0.9, batch 128, dropout 0.2, α 0.5, μ 2, K = 6, rate ÷ 4 on a plateau
PTB_300: dict[str, Any] = {
    "length": 300,
    "hidden_size": 256,
    "optimizer": "sgd",
    "lr": 2.0,
    "momentum": 0.9,
    "batch_size": 128,
    "dropout": 0.2,
    "input_dropout": 0.2,
    "num_chunks": 6,
    "form": "released",
    "coupling": "coupled",
    "alpha": 0.5,
    "mu": 2.0,
    "schedule": "plateau",
    "lr_factor": 0.25,
}

# Merity, Keskar & Socher 2018
AWD: dict[str, Any] = {
    "num_layers": 3,
    "tied": True,
    "hidden_dropout": 0.25,
    "weight_dropout": 0.5,
    "weight_decay": 1.2e-6,
    "num_chunks": 3,
}

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        about="64 pixels, K = 8: the first thing to try",
        config=TrainConfig(task="digits", threads=1),  # too small for more, and robust beside other programs
        minutes=1,
        result="accuracy 0.955 ± 0.016",
    ),
    "digits-per-step": Recipe(
        about="64 pixels, K = 64: an update at every pixel, by the compiled engine",
        config=TrainConfig(task="digits", num_chunks=64, epochs=200, threads=1, **PER_STEP),
        minutes=2,
        result="accuracy 0.956 ± 0.017",
    ),
    "digits-rows-spiking": Recipe(
        about="8 rows, K = 8: spiking neurons with liquid time constants, an update at every row",
        config=TrainConfig(task="digits", by="row", hidden_size=64, num_chunks=8, epochs=40, **SFPTT),
        minutes=0.5,
        result="accuracy 0.941 ± 0.018",
    ),
    "digits-spiking": Recipe(
        about="64 pixels, K = 8: spiking neurons with liquid time constants",
        config=TrainConfig(task="digits", hidden_size=64, num_chunks=8, epochs=40, chrono_init=64, **SFPTT),
        minutes=1,
        result="accuracy 0.788 ± 0.033",
    ),
    "adding-200": Recipe(
        about="add two numbers in 200 steps",
        config=TrainConfig(task="adding", length=200, epochs=15, **ADDING),
        minutes=4,
        result="mse 0.0018 ± 0.0008",
    ),
    "adding-500": Recipe(
        about="add two numbers in 500 steps, where BPTT is known to fail",
        config=TrainConfig(task="adding", length=500, epochs=15, **ADDING),
        minutes=9,
        result="mse 0.0045 ± 0.0043",
    ),
    "adding-1000": Recipe(
        about="add two numbers in 1,000 steps",
        config=TrainConfig(task="adding", length=1000, epochs=15, **ADDING),
        minutes=10,
        result="mse 0.0332 ± 0.0456",
    ),
    "copy-100": Recipe(
        about="repeat ten symbols after 100 steps",
        config=TrainConfig(task="copy", length=100, num_chunks=10, batch_size=128, lr=1e-3, epochs=30, forget_bias=1.0),
        minutes=3,
        result="accuracy 0.126 (one seed)",
    ),
    "anbn": Recipe(
        about="aⁿbⁿ for n ≤ 10, tested on n up to 20",
        config=TrainConfig(
            task="anbn", length=10, num_chunks=7, hidden_size=16, batch_size=64, lr=5e-3, epochs=20, threads=1
        ),
        minutes=0.3,
        result="accuracy 0.865 ± 0.100",
    ),
    "smnist": Recipe(
        about="S-MNIST, 784 steps, the published setting",
        config=TrainConfig(task="mnist", **IMAGES),
        minutes=500,
    ),
    "psmnist": Recipe(
        about="permuted S-MNIST, the published setting",
        config=TrainConfig(task="mnist", permuted=True, **IMAGES),
        minutes=500,
    ),
    "smnist-small": Recipe(
        about="S-MNIST, K = 28, in seven minutes",
        config=TrainConfig(task="mnist", **SMALL_IMAGES),
        minutes=6,
        result="accuracy 0.863 (one seed)",
    ),
    "psmnist-small": Recipe(
        about="permuted S-MNIST, K = 28, in seven minutes",
        config=TrainConfig(task="mnist", permuted=True, **SMALL_IMAGES),
        minutes=7,
        result="accuracy 0.848 (one seed)",
    ),
    "smnist-rows": Recipe(
        about="MNIST row by row, 28 steps",
        config=TrainConfig(task="mnist", by="row", num_chunks=4, batch_size=128, lr=1e-3, epochs=10),
    ),
    "smnist-rows-spiking": Recipe(
        about="MNIST row by row, K = 4: spiking neurons with liquid time constants",
        config=TrainConfig(task="mnist", by="row", num_chunks=4, batch_size=128, epochs=10, **SFPTT),
        minutes=3,
        result="accuracy 0.978 ± 0.003",
    ),
    "smnist-spiking": Recipe(
        about="S-MNIST, K = 784: spiking neurons, an update at every pixel, for a GPU",
        config=TrainConfig(
            task="mnist",
            num_chunks=784,
            batch_size=128,
            epochs=20,
            engine="compiled",
            chrono_init=784,
            **{**SFPTT, "lr": 3e-4},
        ),
    ),
    "smnist-per-step": Recipe(
        about="S-MNIST, K = 784: an update at every pixel, by the compiled engine",
        config=TrainConfig(
            task="mnist",
            num_chunks=784,
            batch_size=128,
            epochs=6,
            threads=1,
            **{**PER_STEP, "lr": 1.25e-5, "schedule": "cosine", "forget_bias": 0.0, "chrono_init": 784},
        ),
        minutes=42,
        result="accuracy 0.853 ± 0.002",
    ),
    "cifar10": Recipe(
        about="CIFAR-10 pixel by pixel, 1,024 steps, the published setting",
        config=TrainConfig(task="cifar10", **IMAGES),
        minutes=600,
    ),
    "cifar10-small": Recipe(
        about="CIFAR-10 pixel by pixel, K = 32, in seven minutes",
        config=TrainConfig(task="cifar10", **{**SMALL_IMAGES, "num_chunks": 32}),
        minutes=6,
        result="accuracy 0.316 (one seed)",
    ),
    "ptb-300": Recipe(
        about="words of the Penn Treebank, T = 300, the published setting",
        config=TrainConfig(task="ptb-word", epochs=100, **PTB_300),
        minutes=200,
    ),
    "ptb-300-small": Recipe(
        about="words of the Penn Treebank, T = 300, in 20 minutes",
        config=TrainConfig(task="ptb-word", epochs=4, threads=1, **PTB_300),
        minutes=18,
        result="perplexity 204 (one seed)",
    ),
    "ptb-70": Recipe(
        about="words of the Penn Treebank, T = 70, an LSTM with the dropouts of AWD-LSTM (no mixture of softmaxes)",
        config=TrainConfig(
            task="ptb-word",
            length=70,
            hidden_size=1150,
            embedding_size=400,
            dropout=0.4,
            input_dropout=0.4,
            embedding_dropout=0.1,
            optimizer="sgd",
            lr=30.0,
            batch_size=20,
            max_norm=0.25,
            schedule="plateau",
            lr_factor=0.25,
            plateau_epochs=5,
            epochs=200,
            **AWD,
        ),
        minutes=10_000,
    ),
    "ptb-char": Recipe(
        about="characters of the Penn Treebank, T = 150, K = 3, three layers of 1,000, tied; strength ours",
        config=TrainConfig(
            task="ptb-char",
            length=150,
            hidden_size=1000,
            embedding_size=200,
            dropout=0.1,
            batch_size=128,
            lr=2.7e-3,
            form="released",
            coupling="coupled",
            alpha=0.1,
            epochs=100,
            schedule="steps",
            milestones=(0.6, 0.8),
            **AWD,
        ),
        minutes=10_000,
    ),
    "ptb-char-small": Recipe(
        about="characters of the Penn Treebank, T = 150, one layer of 256, in 20 minutes",
        config=TrainConfig(
            task="ptb-char",
            length=150,
            hidden_size=256,
            embedding_size=64,
            batch_size=64,
            lr=3e-3,
            num_chunks=3,
            epochs=4,
            threads=1,
        ),
        minutes=13,
        result="bits per character 1.540 (one seed)",
    ),
    "text": Recipe(
        about="characters of any text: --data FILE, then fptt sample",
        config=TrainConfig(
            task="text", length=100, hidden_size=256, embedding_size=64, batch_size=32, lr=3e-3, num_chunks=5, epochs=10
        ),
    ),
    "har": Recipe(
        about="activities from windows of sensors, 128 steps",
        config=TrainConfig(task="har", num_chunks=8, batch_size=64, lr=1e-3, epochs=30, forget_bias=1.0),
        minutes=2,
        result="accuracy 0.899 ± 0.007",
    ),
    "har-spiking": Recipe(
        about="activities from windows of sensors, 128 steps: spiking neurons",
        config=TrainConfig(task="har", num_chunks=16, batch_size=64, epochs=30, **{**SFPTT, "lr": 1e-3}),
    ),
    "hapt": Recipe(
        about="activities and transitions at every step of a recording",
        config=TrainConfig(task="hapt", length=1000, num_chunks=20, batch_size=16, lr=2e-3, epochs=30, forget_bias=1.0),
        minutes=4,
        result="accuracy 0.892 (one seed)",
    ),
    "shd": Recipe(
        about="spoken digits as spikes, 100 steps, K = 20: spiking neurons with liquid time constants",
        config=TrainConfig(task="shd", length=100, num_chunks=20, batch_size=128, epochs=30, **{**SFPTT, "lr": 1e-3}),
    ),
    "sequences": Recipe(
        about="your own sequences: --data FILE; K is √T",
        config=TrainConfig(task="sequences", lr=5e-3, batch_size=32, forget_bias=1.0, fan_in_init=True),
    ),
}
"""The recipes, by name."""

DEFAULTS: dict[str, str] = {
    "adding": "adding-200",
    "copy": "copy-100",
    "mnist": "smnist-small",
    "cifar10": "cifar10-small",
    "ptb-word": "ptb-300-small",
    "ptb-char": "ptb-char-small",
}
"""The recipe of a task, where it is not the one with the task's own name."""

COMPILED: dict[str, str] = {"digits": "digits-per-step", "mnist": "smnist-per-step"}
"""The recipe of a task for the compiled engine."""


def recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UserError: If there is none; lists those that exist.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {reprlib.repr(name)}; there are {', '.join(RECIPES)}.")
    return RECIPES[name]


def task_config(task: str, engine: str = "eager") -> TrainConfig:
    """Return the setting of a task; some have another one for the compiled engine, with an update every time step.

    Raises:
        UserError: If there is no such task; lists those that exist.
    """
    tasks = list(dict.fromkeys(entry.config.task for entry in RECIPES.values()))
    if task not in tasks:
        raise UserError(f"unknown task {reprlib.repr(task)}; there are {', '.join(tasks)}.")
    name = COMPILED.get(task) if engine == "compiled" else None
    return RECIPES[name or DEFAULTS.get(task, task)].config


def read_config(path: Path, *, of_a_run: bool = False) -> TrainConfig:
    """Read a config file; fields that it lacks are those of its task's recipe.

    Args:
        path: File.
        of_a_run: The file was written by a run, perhaps by an earlier version, before some of the fields existed.

    Raises:
        UserError: If the file is missing or damaged, or a field is unknown or wrong.
    """
    values = with_older_fields(read_values(path)) if of_a_run else read_values(path)
    try:
        return replace(task_config(values.get("task", "digits"), values.get("engine", "eager")), **values)
    except UserError as error:
        raise UserError(f"config {path}: {error}") from error
