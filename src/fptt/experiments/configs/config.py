"""The settings of runs, in groups, written to and read from YAML, and those of streams."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic.dataclasses import dataclass

from fptt._methods.fptt import OF_FPTT
from fptt.experiments.configs.checked import (
    STRICT,
    Address,
    Bounded,
    Checked,
    Count,
    Depth,
    InnerPart,
    InnerParts,
    Name,
    Natural,
    NonNegative,
    NumClasses,
    Part,
    Positive,
    Seed,
    Weight,
    Width,
    Widths,
    Workers,
)
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import parse_yaml, read_yaml

MAX_CONFIG_BYTES = 2**16  # of a config file: twenty times as many as it needs
MethodName = Literal["bptt", "tbptt", "fptt"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunChoice(Checked):
    """Method and seed."""

    method: MethodName = "fptt"
    """Training method."""
    seed: Seed = 0
    """Seed of weights, order of samples and generated data, below 2³¹."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSetting(Checked):
    """Task and data."""

    task: Name = "digits"
    """Task; `fptt --help` lists them."""
    data: Address | None = None
    """Hub id, local folder or, for text and sequences, file of the data; the task's own hub id by default."""
    limit: Count | None = None
    """Use less data: so many samples (of a text: tokens) of each part; digits: of training; generated: an epoch."""
    permuted: bool = False
    """Read the pixels in one fixed random order (mnist)."""
    by: Literal["pixel", "row"] = "pixel"
    """Time step of an image (digits, mnist)."""
    standardization: Literal["published", "data", "none"] = "published"
    """Inputs of images, (x - mean) / deviation: with the constants of the published settings, with those of each color
    in the training split, or as they are, in [0, 1] (mnist, cifar10)."""
    length: Count | None = None
    """Time steps T: of a generated sequence (adding), the delay (copy), the largest n in training (anbn), a window of a
    text or of a recording; the bins of a word (shd)."""
    level: Literal["character", "word"] = "character"
    """Token of a text (text)."""
    id: Name | None = None
    """Column that says to which sequence a row belongs; id by default (sequences)."""
    time: Name | None = None
    """Column by which the rows of a sequence are sorted, numbers or dates; by default time, if there is one with no
    other part, such as an input's, and else they stay in the order of the file (sequences)."""
    inputs: Address | None = None
    """Comma-separated columns of the inputs, all others by default; in an .npz file the name of the array
    (sequences)."""
    target: Name | None = None
    """Column of the target; target by default, in an .npz file targets (sequences)."""
    group: Name | None = None
    """Column of what sequences have in common, as the person they are of: no two parts of the data have the same one
    (sequences)."""
    kind: Literal["classes", "regression"] | None = None
    """Whether the target is a class or a number; by default a class if it is text or whole numbers (sequences)."""
    split_seed: Seed = 0
    """Seed of the random parts for validation and test, the same for every seed of a run (sequences)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSetting(Checked):
    """Recurrent network, dropouts, initial weights."""

    cell: Literal["lstm", "gru", "rnn", "lif", "alif", "liquid-lif"] = "lstm"
    """Recurrent layer; lif, alif and liquid-lif are spiking neurons."""
    hidden_size: Width = 128
    """Width of the recurrent state."""
    num_layers: Depth = 1
    """Recurrent layers."""
    surrogate: Literal["multi-gaussian", "fast-sigmoid", "arctan", "sigmoid"] = "multi-gaussian"
    """Derivative in place of that of a spike (spiking neurons)."""
    threshold: Positive = 0.1
    """Potential above which a neuron spikes, before any adaptation (spiking neurons)."""
    pool: Literal["last", "mean", "max"] = "last"
    """Outputs at a step: the potentials of the read-out, or their mean or maximum so far (spiking neurons)."""
    readout_sizes: Widths = ()
    """Widths of hidden layers between state and output."""
    readout_activation: Literal["linear", "relu"] = "linear"
    """Activation of the hidden layers of the read-out."""
    embedding_size: Width | None = None
    """Width of the embedding of a token; that of the state by default (language models)."""
    tied: bool = False
    """Share the weights of embedding and read-out (language models)."""
    dropout: Part = 0.0
    """Dropout of the last layer's outputs, in [0, 1), one mask for all steps of a chunk (language models)."""
    input_dropout: Part = 0.0
    """Dropout of the embedded inputs, likewise."""
    hidden_dropout: Part = 0.0
    """Dropout between recurrent layers, likewise."""
    weight_dropout: Part = 0.0
    """Dropout of the recurrent weights."""
    embedding_dropout: Part = 0.0
    """Dropout of whole tokens."""
    forget_bias: Bounded = 0.0
    """Added to the LSTM's initial forget bias: at first it keeps σ(forget_bias) of its memory a step."""
    chrono_init: Count | None = None
    """Longest dependency in steps, for chrono initialization: the units of LSTM or GRU start with memories up to it,
    spiking neurons with time constants up to it."""
    fan_in_init: bool = False
    """Draw the input weights from ±1/√(input size), not ±1/√(hidden size): larger where inputs are few."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerSetting(Checked):
    """Optimizer, learning rate over the run, clipping, averaging of weights."""

    optimizer: Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"] = "adam"
    """Optimizer of torch.optim."""
    lr: Positive = 2e-3
    """Learning rate at the start."""
    momentum: NonNegative = 0.0
    """Momentum (sgd)."""
    weight_decay: NonNegative = 0.0
    """Weight decay."""
    schedule: Literal["constant", "cosine", "trapezoid", "steps", "plateau"] = "cosine"
    """Learning rate over the run: constant; half a cosine down to 0; constant, then linearly to 0 in the last tenth;
    times lr_factor at every milestone; times lr_factor whenever validation has not improved for plateau_epochs."""
    milestones: InnerParts = (0.25, 0.375, 0.45)
    """Parts of the run after which the rate falls, in (0, 1) (steps)."""
    lr_factor: InnerPart = 0.1
    """Factor of the rate at a milestone or plateau, in (0, 1) (steps, plateau)."""
    plateau_epochs: Count = 1
    """Epochs without a better validation metric before the rate falls (plateau)."""
    max_norm: Positive | None = 1.0
    """Clip the norm of the gradient; None for no clipping."""
    ema_decay: Part = 0.0
    """Validate, test and keep a moving average of the weights instead of the weights: after every batch
    average ← ema_decay · average + (1 − ema_decay) · weights. 0 for the weights themselves."""

    def __post_init__(self) -> None:
        """Check what concerns several fields."""
        if self.momentum and self.optimizer != "sgd":
            raise UserError(
                f"momentum belongs to the optimizer sgd, got momentum {self.momentum} with {self.optimizer}."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodSetting(Checked):
    """Chunks, losses and penalty of the training methods."""

    num_chunks: Count = 8
    """K: chunks a sequence for TBPTT and FPTT; √T by default for sequences of your own."""
    lanes: Literal["together", "staggered"] = "together"
    """The sequences of a batch: together, or each lane some chunks later than the one before, so that every update sees
    all places of a sequence (TBPTT and FPTT on independent sequences)."""
    horizon: Count = 1
    """Chunks that the gradient of an update goes through: its own and those before it (TBPTT and FPTT)."""
    bptt_losses: Count = 1
    """Chunk losses of BPTT, which makes one update all the same."""
    divergence: Literal["none", "uniform", "running"] = "uniform"
    """Q of the terminal loss, to which early chunks are held (classes only)."""
    alpha: NonNegative = 0.1
    """Strength of FPTT's penalty; 0 is TBPTT."""
    beta: Weight = 0.5
    """Weight of the new parameters in FPTT's average, in (0, 1]."""
    form: Literal["paper", "released"] = "paper"
    """Form of the penalty: the printed formula or the authors' code."""
    coupling: Literal["coupled", "decoupled"] = "decoupled"
    """Add the penalty to the gradient, or take it off the weights after the optimizer's step."""
    mu: Positive = 1.0
    """Pull towards the average in the released form."""
    previous_gradient: Literal["dual", "recomputed"] = "dual"
    """FPTT's previous gradient: the dual at no cost, or a second pass."""
    num_duals: Count = 1
    """Duals of FPTT: one for all chunks, or num_chunks, one for each chunk."""
    engine: Literal["eager", "compiled"] = "eager"
    """Executor of TBPTT and FPTT: PyTorch's operations one by one, or a chunk step compiled to machine code, which pays
    with many small chunks. BPTT is always eager."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingSetting(Checked):
    """Budget, batches, checkpoints, numerical failures."""

    epochs: Count | None = 60
    """Passes over the training data."""
    max_updates: Count | None = None
    """Stop after the batch in which this many updates are reached; skipped chunks count as updates here."""
    max_seconds: Positive | None = None
    """Stop after this many seconds of training."""
    batch_size: Count = 64
    """Sequences a batch."""
    early_stopping: Count | None = None
    """End the run after so many epochs without a better validation metric."""
    checkpoint_updates: Count | None = 5000
    """Save all that is needed to resume, after every so many updates and every ten minutes; Ctrl-C saves it too. None:
    on Ctrl-C alone. A rollback goes back to one by updates."""
    on_bad_number: Literal["raise", "skip", "rollback"] = "raise"
    """At NaN or Inf in inputs, loss, gradient or weights: raise an error, skip the chunk, or go back to the last
    checkpoint and on with a smaller learning rate."""
    rollback_factor: InnerPart = 0.5
    """Factor of the learning rate at every rollback, in (0, 1)."""
    max_rollbacks: Natural = 5
    """Give up after so many rollbacks."""

    def __post_init__(self) -> None:
        """Check what concerns several fields."""
        if self.epochs is None and self.max_updates is None and self.max_seconds is None:
            raise UserError("epochs, max_updates and max_seconds are all None: give one of them.")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MachineSetting(Checked):
    """Device, precision, processes; rarely needed."""

    accelerator: Name = "cpu"
    """Device, as Lightning Fabric names it: cpu, cuda, mps, auto."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Precision of weights and arithmetic, as Lightning Fabric names it; with mixed ones the weights are float32."""
    threads: Workers | None = None
    """CPU threads of each process; None for all cores."""
    deterministic: bool = False
    """Allow only operations that give the same bits every time; one that cannot is an error."""
    devices: Workers = 1
    """Processes on this machine, each on a device of its own, or on a part of the cores; they share every batch."""
    num_nodes: Workers = 1
    """Machines with as many processes; start the same command on each of them by torchrun or `fabric run`."""
    sync_every: Count = 1
    """Updates between two averagings of weights, averages and duals over the processes; 1 averages every gradient."""
    check_sync: bool = False
    """Compare the weights of all processes after every batch that ends in step, for debugging."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Setting(
    MachineSetting, TrainingSetting, MethodSetting, OptimizerSetting, ModelSetting, DataSetting
):  # a dataclass has the fields of its last base first
    """Everything about a run but its method and seed."""

    def __post_init__(self) -> None:
        """Check what concerns several fields."""
        OptimizerSetting.__post_init__(self)
        TrainingSetting.__post_init__(self)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig(Setting, RunChoice):
    """A whole run; a recipe is one instance."""

    @classmethod
    def of(cls, setting: Setting, **changes: Any) -> Self:
        """Return a run with a setting's values."""
        return cls(**{**dataclasses.asdict(setting), **changes})

    @property
    def chunk_losses(self) -> int:
        """Losses of a sequence: of TBPTT and FPTT the number of chunks."""
        return self.bptt_losses if self.method == "bptt" else self.num_chunks

    def value(self, name: str) -> Any:
        """Return the value of a field; None where it makes no difference to the method."""
        return None if name in UNUSED[self.method] else getattr(self, name)

    def to_yaml(self) -> str:
        """Return every field, readable and re-runnable."""
        return yaml.safe_dump(_plain(self), sort_keys=False)


UNUSED: dict[MethodName, tuple[str, ...]] = {
    "fptt": ("bptt_losses",),
    "tbptt": (*OF_FPTT, "bptt_losses"),
    "bptt": (*OF_FPTT, "num_chunks", "lanes", "horizon", "engine"),
}
"""Fields that make no difference to a method."""

USED_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "milestones": ("schedule", ("steps",)),
    "lr_factor": ("schedule", ("steps", "plateau")),
    "plateau_epochs": ("schedule", ("plateau",)),
    "rollback_factor": ("on_bad_number", ("rollback",)),
    "max_rollbacks": ("on_bad_number", ("rollback",)),
}
"""Fields that make a difference beside some choices of another one alone: which one, and these choices."""

MOVABLE = ("data", "accelerator", "threads")
"""Where the data lie and what computes: a run that was interrupted may be resumed with others."""

GROUPS: dict[str, type[Checked]] = {
    "run": RunChoice,
    "data": DataSetting,
    "model": ModelSetting,
    "optimizer": OptimizerSetting,
    "method": MethodSetting,
    "training": TrainingSetting,
    "machine": MachineSetting,
}
"""The groups that the fields of a run belong to, in the order of the help."""

STANDARDIZATION_BEFORE = {"mnist": "none", "cifar10": "data"}
"""Of runs whose config lacks the field, which is newer than they are."""

GONE = {"strategy": ("auto", "ddp")}
"""Fields of older configs that are no more, and the values that mean what happens today."""


def with_older_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run's config with those that did not exist when it was written, as they were then."""
    standardization = STANDARDIZATION_BEFORE.get(str(values.get("task")), Setting.standardization)
    return {"standardization": standardization, **values}


def is_config_of(text: Any, config: TrainConfig) -> bool:
    """Return whether a text that `TrainConfig.to_yaml` wrote, perhaps before some of today's fields, is of a config.

    Fields that it lacks must be what they were before they existed, or have their defaults; `MOVABLE` ones may differ.
    """
    try:
        saved = parse_yaml(text) if isinstance(text, str) else None
    except ValueError:
        return False
    if not isinstance(saved, dict):
        return False
    saved = with_older_fields(_without_gone(saved))
    own, defaults = _plain(config), _plain(TrainConfig())
    fixed = {name: value for name, value in own.items() if name not in MOVABLE}
    return all(saved.get(name, defaults[name]) == value for name, value in fixed.items()) and saved.keys() <= own.keys()


def read_values(path: Path) -> dict[str, Any]:
    """Read the fields of a file that `TrainConfig.to_yaml` wrote, or of one written by hand; a config checks them.

    Raises:
        UserError: If the file is missing or damaged, or has an unknown field.
    """
    values = read_yaml(path, MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise UserError(f"config {path} must hold one field a line, got {type(values).__name__}.")
    values = _without_gone(values)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(str(name)[:40] for name in values if name not in names)
    if unknown:
        raise UserError(f"config {path} has unknown fields: {', '.join(unknown[:10])}.")
    return values


def _without_gone(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in GONE.get(name, ())}


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return the fields with lists for tuples, as YAML has them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


# -- streams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StreamConfig(Checked):
    """A stream, and the learner that is sent through it."""

    task: Literal["hapt", "table"] = "hapt"
    """The stream: the continuous recordings of HAPT, a label for most steps; or the rows of a table of your own."""
    data: Address | None = None
    """Local folder of Parquet files, or hub id (hapt); a CSV or Parquet file, or - for CSV from standard input
    (table)."""
    split: Literal["all", "train", "test"] = "all"
    """Recordings that are streamed; all: those of train, then those of test (hapt)."""
    target: Name | None = None
    """Column of the labels, empty where there is none; target by default (table)."""
    inputs: Address | None = None
    """Comma-separated columns of the inputs, all others by default (table)."""
    time: Name | None = None
    """Column of the time, numbers or dates, by which rows must be sorted; by default time, if there is one with no
    other part, such as an input's (table)."""
    missing: Literal["hold", "skip", "error"] = "hold"
    """Gaps in the inputs: hold the latest value of the column, skip the row, or stop (table)."""
    kind: Literal["classes", "regression"] | None = None
    """What the target is; by default numbers with fractions among the first 1,000 rows are a regression (table)."""
    max_classes: NumClasses = 20
    """Outputs of the model for classes, which are numbered as they come, 1,000 at most (table)."""
    limit: Count | None = None
    """Stop after this many steps."""
    delay: Natural = 0
    """Steps by which every label is late: that of step t arrives after the prediction of step t + delay."""
    baselines: bool = False
    """Send River's logistic regression through the stream too; it takes minutes."""

    method: Literal["tbptt", "fptt"] = "fptt"
    """tbptt or fptt."""
    cell: Literal["lstm", "gru", "rnn"] = "gru"
    """Recurrent layer."""
    hidden_size: Width = 64
    """Width of the recurrent state."""
    num_layers: Depth = 1
    """Recurrent layers."""
    chunk_length: Count = 50
    """Steps of an update. A chunk is predicted with the weights before it."""
    lr: Positive = 1e-2
    """Learning rate of Adam."""
    max_norm: Positive | None = 1.0
    """Clip the norm of the gradient; None for no clipping."""
    alpha: Positive = 0.1
    """Strength of FPTT's penalty."""
    beta: Weight = 0.5
    """Weight of the new parameters in FPTT's average, in (0, 1]."""
    form: Literal["paper", "released"] = "paper"
    """Form of the penalty: the printed formula or the authors' code."""
    coupling: Literal["coupled", "decoupled"] = "decoupled"
    """Add the penalty to the gradient, or take it off the weights after the optimizer's step."""

    checkpoint_steps: Count | None = 100_000
    """Save all that is needed to resume, after every so many steps and every ten minutes; Ctrl-C saves it too. None: on
    Ctrl-C alone."""
    window: Count = 10_000
    """Labeled steps of the rolling metric."""
    seed: Seed = 0
    """Seed of the weights, below 2³¹."""
    threads: Workers | None = 1
    """CPU threads; None for all cores."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field."""
        return dataclasses.asdict(self)
