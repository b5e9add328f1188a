"""What one run is: frozen dataclasses, written to and read from YAML."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

import yaml

from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import read_yaml

MAX_BYTES = 2**16  # of a config file: twenty times as many as are needed
MethodName = Literal["bptt", "tbptt", "fptt"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about a run but its method and seed."""

    task: str = "digits"
    """What is learned; `fptt --help` lists the tasks."""
    data: str | None = None
    """Hub id, local folder or, for text, file of the data; the task's own hub id by default."""
    limit: int | None = None
    """Use less data: so many samples (of a text: tokens) of each part; digits: of training; generated: an epoch."""
    permuted: bool = False
    """Read the pixels in one fixed random order (mnist)."""
    by: Literal["pixel", "row"] = "pixel"
    """What a time step of an image is (mnist)."""
    standardization: Literal["published", "data", "none"] = "published"
    """Inputs of images, (x - mean) / deviation: with the constants of the published settings, with those of each color
    in the training split, or as they are, in [0, 1] (mnist, cifar10)."""
    length: int | None = None
    """Time steps T: of a generated sequence (adding), the delay (copy), the largest n in training (anbn), a window of a
    text or of a recording."""
    level: Literal["character", "word"] = "character"
    """What a token of a text is (text)."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    """Recurrent layer."""
    hidden_size: int = 128
    """Width of the recurrent state."""
    num_layers: int = 1
    """Recurrent layers."""
    readout_sizes: tuple[int, ...] = ()
    """Widths of hidden layers between state and output."""
    readout_activation: Literal["linear", "relu"] = "linear"
    """What follows each hidden layer of the read-out."""
    embedding_size: int | None = None
    """Width of the embedding of a token; that of the state by default (language models)."""
    tied: bool = False
    """The read-out has the weights of the embedding (language models)."""
    dropout: float = 0.0
    """Of the last layer's outputs, in [0, 1), one mask for all steps of a chunk (language models)."""
    input_dropout: float = 0.0
    """Of the embedded inputs, likewise."""
    hidden_dropout: float = 0.0
    """Between recurrent layers, likewise."""
    weight_dropout: float = 0.0
    """Of the recurrent weights."""
    embedding_dropout: float = 0.0
    """Of whole tokens."""

    forget_bias: float = 0.0
    """Added to the LSTM's initial forget bias: it begins by keeping σ(forget_bias) of its memory a step."""
    chrono_init: int | None = None
    """Longest dependency in steps, for chrono initialization: the units of LSTM or GRU begin with memories up to it."""

    fan_in_init: bool = False
    """Draw the input weights from ±1/√(input size), not ±1/√(hidden size): louder where inputs are few."""

    epochs: int | None = 60
    """Passes over the training data."""
    max_updates: int | None = None
    """Stop after this many updates."""
    max_seconds: float | None = None
    """Stop after this many seconds of training."""
    batch_size: int = 64
    """Sequences a batch."""
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"] = "adam"
    """Optimizer of torch.optim."""
    lr: float = 2e-3
    """Learning rate at the start."""
    momentum: float = 0.0
    """Momentum (sgd)."""
    weight_decay: float = 0.0
    """Weight decay."""
    schedule: Literal["constant", "cosine", "trapezoid", "steps", "plateau"] = "cosine"
    """Learning rate over the run: constant; half a cosine down to 0; constant, then linearly to 0 in the last tenth;
    times lr_factor at every milestone; times lr_factor whenever validation has not improved for plateau_epochs."""
    milestones: tuple[float, ...] = (0.25, 0.375, 0.45)
    """Parts of the run after which the rate falls (steps)."""
    lr_factor: float = 0.1
    """What the rate is multiplied by (steps, plateau)."""
    plateau_epochs: int = 1
    """Epochs without a better validation figure before the rate falls (plateau)."""
    early_stopping: int | None = None
    """End the run after so many epochs without a better validation figure."""
    max_norm: float | None = 1.0
    """Clip the norm of the gradient; None for no clipping."""

    ema_decay: float = 0.0
    """Validate, test and keep a moving average of the weights instead of the weights: after every batch
    average ← ema_decay · average + (1 − ema_decay) · weights. 0 for the weights themselves."""

    num_chunks: int = 8
    """K: chunks a sequence for TBPTT and FPTT."""
    bptt_losses: int = 1
    """Chunk losses of BPTT, which makes one update all the same."""
    divergence: Literal["none", "uniform", "running"] = "uniform"
    """Q of the terminal loss, to which early chunks are held (classes only)."""
    alpha: float = 0.1
    """Strength of FPTT's penalty; 0 is TBPTT."""
    beta: float = 0.5
    """Weight of the new parameters in FPTT's average, in (0, 1]."""
    form: Literal["paper", "released"] = "paper"
    """Form of the penalty: the printed formula or the authors' code."""
    coupling: Literal["coupled", "decoupled"] = "decoupled"
    """Add the penalty to the gradient, or take it off the weights after the optimizer's step."""
    mu: float = 1.0
    """Pull towards the average in the released form."""
    previous_gradient: Literal["dual", "recomputed"] = "dual"
    """FPTT's previous gradient: the dual at no cost, or a second pass."""
    num_duals: int = 1
    """Duals of FPTT: one for all chunks, or num_chunks, one for each chunk."""
    engine: Literal["eager", "compiled"] = "eager"
    """Executor of TBPTT and FPTT: PyTorch's operations one by one, or a chunk step compiled to machine code, which pays
    with many small chunks. BPTT is always eager."""

    checkpoint_updates: int | None = 5000
    """Save all that a run needs to go on, after every so many updates; Ctrl-C saves it too."""
    accelerator: str = "cpu"
    """Device, as Lightning Fabric names it: cpu, cuda, mps, auto."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of weights and arithmetic, as Lightning Fabric names it; with mixed ones the weights are float32."""
    on_bad_number: Literal["raise", "skip", "rollback"] = "raise"
    """At NaN or Inf in inputs, loss, gradient or weights: raise an error, skip the chunk, or go back to the last
    checkpoint and on with a smaller learning rate."""
    rollback_factor: float = 0.5
    """What the learning rate is multiplied by at every rollback."""
    max_rollbacks: int = 5
    """Give up after so many rollbacks."""
    deterministic: bool = False
    """Allow only operations that give the same bits every time; one that cannot is an error."""
    threads: int | None = None
    """CPU threads of each process; all cores by default."""
    devices: int = 1
    """Processes on this machine, each on a device of its own, or on a part of the cores; they share every batch."""
    num_nodes: int = 1
    """Machines with as many processes; start the same command on each of them by torchrun or `fabric run`."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes train one model; auto is ddp: each has the whole model and a part of every batch."""
    sync_every: int = 1
    """Updates between two averagings of weights, averages and duals over the processes; 1 averages every gradient."""
    check_sync: bool = False
    """Compare the weights of all processes after every batch that ends in step, for debugging."""

    def __post_init__(self) -> None:
        """Check ranges that do not depend on the task."""
        if self.epochs is None and self.max_updates is None and self.max_seconds is None:
            raise UserError("epochs, max_updates and max_seconds are all None: give one of them.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, got {value}.")
        for name in ("alpha", "weight_decay", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 < self.beta <= 1:
            raise UserError(f"beta must be in (0, 1], got {self.beta}.")
        self._check_parts()
        if self.momentum and self.optimizer != "sgd":
            raise UserError(
                f"momentum belongs to the optimizer sgd, got momentum {self.momentum} with {self.optimizer}."
            )

    def _check_parts(self) -> None:
        """Check what is a part of something, or a width."""
        for name in _PARTS:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        for name in ("lr_factor", "rollback_factor"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must be in (0, 1), got {getattr(self, name)}.")
        if any(not 0 < part < 1 for part in self.milestones):
            raise UserError(f"milestones must be in (0, 1), parts of the run, got {self.milestones}.")
        if any(size < 1 for size in self.readout_sizes):
            raise UserError(f"readout_sizes must be positive, got {self.readout_sizes}.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Setting):
    """A whole run; a recipe is one instance."""

    method: MethodName = "fptt"
    """bptt, tbptt or fptt."""
    seed: int = 0
    """Seed of weights, order of samples and generated data, below 2³¹."""

    def __post_init__(self) -> None:
        """Check ranges that do not depend on the task."""
        super().__post_init__()
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed must be in [0, 2³¹), got {self.seed}.")

    @classmethod
    def of(cls, setting: Setting, **changes: Any) -> Self:
        """Return a run with a setting's values."""
        return cls(**{**dataclasses.asdict(setting), **changes})

    def to_yaml(self) -> str:
        """Return every field, readable and re-runnable."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return yaml.safe_dump(values, sort_keys=False)


STANDARDIZATION_BEFORE = {"mnist": "none", "cifar10": "data"}
"""Of the runs whose config does not say it: it became a field after them."""


def with_older_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run's config with those that did not exist when it was written, as they were then."""
    standardization = STANDARDIZATION_BEFORE.get(str(values.get("task")), Setting.standardization)
    return {"standardization": standardization, **values}


def is_config_of(text: Any, config: TrainConfig) -> bool:
    """Tell whether a text that `TrainConfig.to_yaml` wrote, perhaps before some of today's fields, is of a config.

    Fields that it lacks must be what they were before they existed, or have their defaults.
    """
    try:
        saved = yaml.safe_load(text)
    except (AttributeError, yaml.YAMLError):
        return False
    own = yaml.safe_load(config.to_yaml())
    if not isinstance(saved, dict):
        return False
    saved = with_older_fields(saved)
    defaults = yaml.safe_load(TrainConfig().to_yaml())
    return all(saved.get(name, defaults[name]) == value for name, value in own.items()) and saved.keys() <= own.keys()


def read_values(path: Path) -> dict[str, Any]:
    """Read the fields of a file that `TrainConfig.to_yaml` wrote, or of one written by hand.

    Raises:
        UserError: If the file is missing or damaged, or has an unknown field or a value of the wrong type.
    """
    values = read_yaml(path, MAX_BYTES)
    if not isinstance(values, dict):
        raise UserError(f"config {path} must hold one field a line, got {type(values).__name__}.")
    hints = get_type_hints(TrainConfig)
    unknown = sorted(str(name) for name in values if name not in hints)
    if unknown:
        raise UserError(f"config {path} has unknown fields: {', '.join(unknown)}.")
    return {name: _checked(path, name, value, hints[name]) for name, value in values.items()}


_POSITIVE = (
    *("limit", "length", "hidden_size", "num_layers", "epochs", "max_updates", "max_seconds", "batch_size", "lr"),
    *("max_norm", "num_chunks", "bptt_losses", "num_duals", "mu", "threads", "embedding_size"),
    *("plateau_epochs", "early_stopping", "checkpoint_updates", "devices", "num_nodes", "sync_every"),
)

_PARTS = ("ema_decay", "dropout", "input_dropout", "hidden_dropout", "weight_dropout", "embedding_dropout")

_SEQUENCES: dict[str, tuple[type, str]] = {"readout_sizes": (int, "whole numbers"), "milestones": (float, "numbers")}


def _checked(path: Path, name: str, value: Any, hint: Any) -> Any:
    """Return a value from YAML in the type of its field; the types are those that `Setting` uses."""
    if name in _SEQUENCES:
        kind, described = _SEQUENCES[name]
        if isinstance(value, list) and all(type(entry) in (int, kind) for entry in value):
            return tuple(value)
        raise UserError(f"config {path}: {name} must be a list of {described}, got {value!r}.")
    options = get_args(hint)
    kinds = tuple(option for option in options if isinstance(option, type)) or (hint,)
    if float in kinds and isinstance(value, str) and _is_number(value):
        value = float(value)  # YAML 1.1 reads 1e-3 as text
    if str in options or hint is str:
        fits = isinstance(value, str) or (value is None and type(None) in kinds)
    elif options and all(isinstance(option, str) for option in options):
        fits = value in options
    elif float in kinds:
        fits = type(value) in (int, float, *kinds)
    else:
        fits = type(value) in kinds
    if not fits:
        raise UserError(f"config {path}: {name} must be {_describe(hint)}, got {value!r}.")
    return value


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
