"""Sequences of a user's own, from files: classes or regression, one target a sequence or a step, of any lengths."""

import itertools
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, from_numpy
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import DataSetting, Setting
from fptt.experiments.configs.lists import split_list
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.batches import PaddedSamples
from fptt.experiments.tasks.cells import LARGEST_WHOLE, shown_names
from fptt.experiments.tasks.loading import channel_statistics, divisors, spread
from fptt.experiments.tasks.scores import IGNORED, RegressionScore
from fptt.experiments.tasks.sequence_files import SUFFIXES, Columns, Sequences, place_of, read_sequences, suffix_of
from fptt.experiments.tasks.task import Scaling, Task

PARTS = ("train", "validation", "test")
HELD_OUT = 0.15
"""Of all sequences, or of all groups, for each of validation and test, where the data do not have them as parts."""
MAX_CLASSES = 1000


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load a file or a folder of sequences, or return what was loaded last, if it is the same.

    The command line asks for T, for a first K, before the run asks for the data.

    What the data lack of validation and test, 15 % each, is taken from training at random, by a seed that all runs
    share: whole groups with `setting.group`, else as many of every class as training has. Inputs, and the targets of a
    regression, have zero mean and unit variance over the steps of training. With a limit every part is cut to that many
    sequences, evenly spaced.

    Raises:
        UserError: If the data cannot be read, or are not such sequences.
    """
    key = (*_files(setting), *(getattr(setting, field.name) for field in fields(DataSetting) if field.name != "data"))
    if key not in _last:
        task = _load(setting)
        _last.clear()
        _last[key] = task
    return _last[key]


_last: dict[tuple, Task] = {}


def _files(setting: Setting) -> list[tuple[str, int, int]]:
    """Return the files of the data with their sizes and times, by which a change is noticed."""
    path = Path(setting.data or "").expanduser().resolve()
    found = [path, *(sorted(path.iterdir()) if path.is_dir() and setting.data else [])]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found if file.exists()]


def _load(setting: Setting) -> Task:
    """Load a file or a folder of sequences; see `load`."""
    parts = _read(setting)
    kind = setting.kind or _kind(parts)
    if kind == "classes":  # before they are divided, as many of each class
        parts = {name: part._replace(targets=_whole(part.targets)) for name, part in parts.items()}
    parts = split(parts, setting)
    per_step = any(part.has_step_targets for part in parts.values())
    targets = {name: _targets_of(part, per_step) for name, part in parts.items()}
    class_names = _classes(targets, setting, per_step) if kind == "classes" else None
    source = f"data {setting.data!r}"
    scaling = _scaling(parts["train"], targets["train"] if kind == "regression" else None, source)
    mean, deviation = (torch.tensor(own, dtype=torch.float64) for own in (scaling.input_mean, scaling.input_deviation))
    train = parts["train"]
    num_steps = int(train.lengths.max())
    is_ragged = len({int(length) for part in parts.values() for length in part.lengths}) > 1

    def part(name: str) -> TensorDataset | PaddedSamples:
        inputs = standardized(parts[name], mean, deviation, source).float()
        lengths = from_numpy(parts[name].lengths)
        if class_names is None:
            encoded = _standardized_targets(targets[name], scaling, name, source)
        else:
            encoded = _numbers_of(targets[name], class_names, per_step)
        if is_ragged:
            return PaddedSamples(
                inputs,
                encoded,
                lengths,
                per_step=per_step,
                # chunks are as long in every batch
                num_steps=num_steps if name == "train" else None,
                padding=0.0 if class_names is None else IGNORED,
            )
        equal = (len(lengths), num_steps)
        return TensorDataset(inputs.unflatten(0, equal), encoded.unflatten(0, equal) if per_step else encoded)

    return Task(
        name="sequences",
        kind=kind,
        train=part("train"),
        validation=part("validation"),
        test=part("test"),
        to_sequences=lambda batch: batch.transpose(0, 1),
        input_size=train.inputs.shape[1],
        output_size=1 if class_names is None else len(class_names),
        has_step_targets=per_step,
        score=(lambda: RegressionScore(scaling.target_deviation)) if kind == "regression" else None,
        chance=_chance(targets, kind),
        class_names=class_names,
        input_names=train.input_names,
        time_name=train.time_name,
        scaling=scaling,
        about=_about(parts, class_names, per_step=per_step)
        + _unseen(targets["train"], class_names)
        + _untimed(train)
        + _equal_times(parts),
    )


def _scaling(train: Sequences, targets: np.ndarray | None, source: str) -> Scaling:
    """Return mean and deviation of the inputs of training, and of its targets if they are given.

    Raises:
        UserError: If a float cannot hold one of them.
    """
    mean, deviation = channel_statistics(from_numpy(train.inputs))
    bad = (~(mean.isfinite() & deviation.isfinite())).nonzero().flatten().tolist()
    if bad:
        column = bad[0] if train.input_names is None else train.input_names[bad[0]]
        largest = np.abs(train.inputs[:, bad[0]]).max()
        raise UserError(
            f"{source} must hold inputs with a mean and deviation that a float can hold, got numbers up to "
            f"{largest:.3g} in column {column!r}."
        )
    scaling = Scaling(tuple(mean.tolist()), tuple(deviation.tolist()))
    if targets is None:
        return scaling
    own = _floats(targets)
    own_mean = own.mean()
    own_deviation = divisors(own.unsqueeze(-1), own_mean, own.std(correction=0))
    if not own_deviation.isfinite():
        raise UserError(
            f"{source} must hold targets with a mean and deviation that a float can hold, got numbers up to "
            f"{own.abs().max():.3g}."
        )
    return scaling._replace(target_mean=float(own_mean), target_deviation=float(own_deviation))


def standardized(sequences: Sequences, mean: Tensor, deviation: Tensor, source: str) -> Tensor:
    """Return inputs less the mean and over the deviation, (D,) both, of training: (ΣT_i, D), float64.

    Raises:
        UserError: If one is infinite in float32, in which models compute.
    """
    inputs = (from_numpy(sequences.inputs) - mean) / deviation
    bad = (inputs.abs() > torch.finfo(torch.float32).max).nonzero()
    if len(bad):
        step, column = bad[0].tolist()
        name = column if sequences.input_names is None else sequences.input_names[column]
        raise UserError(
            f"{source} must hold inputs of the size of those of training, got {sequences.inputs[step, column]:.3g} in "
            f"column {name!r} at {place_of(step, sequences)}."
        )
    return inputs


def _standardized_targets(targets: np.ndarray, scaling: Scaling, name: str, source: str) -> Tensor:
    """Return the targets of a regression less the mean and over the deviation of training: (N, 1), or (ΣT_i, 1).

    Raises:
        UserError: If one is infinite in float32, in which models compute: the error would be infinite.
    """
    own = _floats(targets)
    encoded = ((own - scaling.target_mean) / scaling.target_deviation).float()
    if encoded.isinf().any():
        raise UserError(
            f"{source} must hold targets of the size of those of training, got {own[encoded.abs().argmax()]:.3g} in "
            f"the {name} part."
        )
    return encoded.unsqueeze(-1)


def columns_of(setting: Setting) -> Columns:
    """Return the names of the columns of a setting."""
    inputs = None if setting.inputs is None else split_list("inputs", setting.inputs)
    return Columns(setting.id, setting.time, inputs, setting.target, setting.group)


# -- parts ------------------------------------------------------------------------------------------------------------


def _read(setting: Setting) -> dict[str, Sequences]:
    """Return the parts that the data have, all with the same inputs."""
    if setting.data is None:
        kinds = ", ".join(SUFFIXES)
        raise UserError(
            f"sequences are your own: give --data, a file ({kinds}) or a folder with the files train, validation and "
            "test of these kinds."
        )
    path, columns = Path(setting.data).expanduser(), columns_of(setting)
    if not path.exists():
        raise UserError(f"data {setting.data!r} does not exist.")
    targets = "numbers" if setting.kind == "regression" else "any"
    files = _part_files(path) if path.is_dir() else {"train": path}
    train = read_sequences(files["train"], columns, targets)
    # by name, whatever their order; a part without the times of the others would be in the order of its rows
    named = columns._replace(inputs=train.input_names or columns.inputs, time=train.time_name or columns.time)
    others = {name: file for name, file in files.items() if name != "train"}
    parts = {"train": train} | {
        name: read_sequences(file, columns if suffix_of(file) == ".npz" else named, targets)
        for name, file in others.items()
    }
    for name, part in parts.items():
        if part.inputs.shape[1] != train.inputs.shape[1] or part.input_names != train.input_names:
            own, others = (_described_inputs(found) for found in (train, part))
            raise UserError(
                f"{str(files[name])!r} must have the inputs of {str(files['train'])!r}, {own}, got {others}."
            )
        if part.time_name and train.rows is not None and not train.time_name:  # an array is in the order of its steps
            raise UserError(
                f"{str(files['train'])!r} must have the column {part.time_name!r}, by which the steps of "
                f"{str(files[name])!r} are ordered, got none of that name."
            )
    for (name, part), (other, beside) in itertools.combinations(parts.items(), 2):
        if part.group_names is not None and beside.group_names is not None:
            shared = np.intersect1d(part.group_names, beside.group_names)
            if len(shared):
                raise UserError(
                    f"{name} and {other} of {setting.data!r} must not share a {columns.group!r}, got "
                    f"{shared[0].item()!r} in both."
                )
    return parts


def _described_inputs(part: Sequences) -> str:
    size = part.inputs.shape[1]
    return f"D = {size}" if part.input_names is None else f"{', '.join(part.input_names)} (D = {size})"


def _part_files(folder: Path) -> dict[str, Path]:
    """Return the file of each part in a folder."""
    found: dict[str, Path] = {}
    for name, file in itertools.product(PARTS, sorted(folder.iterdir())):
        if file.stem == name and suffix_of(file) in SUFFIXES:
            if name in found:
                raise UserError(
                    f"data folder {str(folder)!r} must have one file {name}, got {found[name].name} and {file.name}."
                )
            found[name] = file
    if "train" not in found:
        held = sorted(file.name for file in folder.iterdir())[:10]
        kinds = ", ".join(f"train{suffix}" for suffix in SUFFIXES)
        raise UserError(
            f"data folder {str(folder)!r} must have one of the files {kinds}, got {', '.join(held) or 'none'}."
        )
    return found


def split(parts: dict[str, Sequences], setting: Setting) -> dict[str, Sequences]:
    """Return training, validation and test; those that lack are taken from training; each cut to the limit."""
    train, lacking = parts["train"], [name for name in PARTS[1:] if name not in parts]
    count = len(train.lengths if train.groups is None else np.unique(train.groups))
    if count <= len(lacking):
        what = "sequences" if train.groups is None else "groups"
        raise UserError(
            f"data {setting.data!r} must have at least {1 + len(lacking)} {what}, of which {' and '.join(lacking)} are "
            f"taken, got {count}."
        )
    found = dict(parts)
    for number, name in enumerate(lacking):
        share = HELD_OUT / (1 - HELD_OUT * number)  # of what is left, so that all are of the same size
        held_out = _held_out(train, share, setting.split_seed)
        found[name], train = train.subset(np.flatnonzero(held_out)), train.subset(np.flatnonzero(~held_out))
    found["train"] = train
    return {
        name: found[name].subset(np.asarray(spread(len(found[name].lengths), setting.limit), np.int64))
        for name in PARTS
    }


def _held_out(train: Sequences, share: float, seed: int) -> np.ndarray:
    """Return which sequences are held out, (N,): of whole groups, or as many of every class."""
    units = np.arange(len(train.lengths)) if train.groups is None else np.unique(train.groups)
    options = {"test_size": share, "random_state": seed}
    targets = train.targets
    if train.groups is None and targets is not None and len(targets) == len(units) and targets.dtype.kind != "f":
        with suppress(ValueError):  # a class has too few sequences for that
            return np.isin(units, train_test_split(units, stratify=targets, **options)[1])
    chosen = train_test_split(units, **options)[1]
    return np.isin(units if train.groups is None else train.groups, chosen)


# -- targets ----------------------------------------------------------------------------------------------------------


def _kind(parts: dict[str, Sequences]) -> Literal["classes", "regression"]:
    """Return what targets are: numbers with a fraction a regression, whole numbers and text classes."""
    kinds = {_whole(part.targets).dtype.kind for part in parts.values()}
    return "regression" if "f" in kinds and kinds <= set("fi") else "classes"


def _whole(targets: np.ndarray | None) -> np.ndarray:
    """Return targets, whole ones as integers: 1.0, as a column is written that once had a gap, is the class 1."""
    assert targets is not None
    is_whole = targets.dtype.kind == "f" and (targets % 1 == 0).all() and np.abs(targets).max() <= LARGEST_WHOLE
    return targets.astype(np.int64) if is_whole else targets


def _targets_of(part: Sequences, per_step: bool) -> np.ndarray:
    """Return the targets of a part, which were asked for: one a sequence, or one a step."""
    targets = (part.with_step_targets() if per_step else part).targets
    assert targets is not None
    return targets


def _floats(targets: np.ndarray) -> Tensor:
    return from_numpy(targets.astype(np.float64))


def _class_names(targets: np.ndarray) -> np.ndarray:
    """Return targets as names of classes."""
    if targets.dtype.kind == "f":
        whole = targets.astype(np.int64)
        if (whole != targets).any():
            strange = targets[whole != targets][0]
            raise UserError(f"kind classes needs a target of text or whole numbers, got {strange}.")
        targets = whole
    return targets.astype(np.str_)


def _classes(targets: dict[str, np.ndarray], setting: Setting, per_step: bool) -> tuple[str | int, ...]:
    """Return the classes in their order: that of numbers, or of the alphabet."""
    texts = {name: set(np.unique(_class_names(values)).tolist()) for name, values in targets.items()}
    if per_step:
        texts = {name: own - {str(IGNORED)} for name, own in texts.items()}
    for name, own in texts.items():
        if str(IGNORED) in own:
            raise UserError(
                f"the class {IGNORED} is for steps that do not count, got it as the target of a whole sequence in the "
                f"{name} part of {setting.data!r}: leave the sequence out."
            )
        if not own:
            raise UserError(
                f"the {name} part of {setting.data!r} must have a step that counts, got the target {IGNORED} at all."
            )
    if len(texts["train"]) < 2:
        column = setting.target or "the target"
        found = ", ".join(texts["train"]) or "none"
        raise UserError(
            f"training data must have at least two classes, got {found} alone as {column} in {setting.data!r}."
        )
    names = set[str]().union(*texts.values())
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"the target in {setting.data!r} must have at most {MAX_CLASSES:,} classes, got {len(names):,}: is it a "
            "number, --kind regression?"
        )
    if all(values.dtype.kind in "if" for values in targets.values()):
        return tuple(sorted(map(int, names)))
    try:
        return tuple(sorted(sorted(names), key=int))  # 01 and 1 in a fixed order too
    except ValueError:
        return tuple(sorted(names))


def _numbers_of(targets: np.ndarray, names: tuple[str | int, ...], per_step: bool) -> Tensor:
    """Return the numbers of classes; a step with the target -100 does not count."""
    found, inverse = np.unique(_class_names(targets), return_inverse=True)
    numbers = {str(name): number for number, name in enumerate(names)}
    if per_step:
        numbers.setdefault(str(IGNORED), IGNORED)
    return torch.tensor([numbers[name] for name in found.tolist()])[from_numpy(inverse)]


def _chance(targets: dict[str, np.ndarray], kind: str) -> float:
    """Return the metric on the test data of the class that is most frequent in training, or of the mean there."""
    train, test = targets["train"], targets["test"]
    if kind == "regression":
        return float((_floats(test) - _floats(train).mean()).square().mean())
    own, others = (texts[texts != str(IGNORED)] for texts in map(_class_names, (train, test)))
    found, counts = np.unique(own, return_counts=True)
    return float((others == found[counts.argmax()]).mean()) if len(others) else 0.0


def _about(parts: dict[str, Sequences], class_names: tuple[str | int, ...] | None, *, per_step: bool) -> str:
    """Return what was found in the data."""
    lengths = np.concatenate([part.lengths for part in parts.values()])
    shortest, longest = int(lengths.min()), int(lengths.max())
    counts = ", ".join(
        f"{len(parts[name].lengths):,} {label}"
        for name, label in zip(PARTS, ("to train", "to validate", "to test"), strict=True)
    )
    steps = f"T = {longest}" if shortest == longest else f"T = {shortest} to {longest}"
    inputs = shown_names(parts["train"].input_names)
    each = "step" if per_step else "sequence"
    if class_names is None:
        outputs = f"a number a {each}"
    else:
        outputs = f"{len(class_names)} classes, one a {each}{shown_names(class_names)}"
    return f"sequences: {counts}; {steps}, D = {parts['train'].inputs.shape[1]}{inputs}; {outputs}"


def _unseen(train: np.ndarray, class_names: tuple[str | int, ...] | None) -> str:
    """Return which classes the targets of training lack, which may be a slip of spelling."""
    if class_names is None:
        return ""
    seen = set(np.unique(_class_names(train)).tolist())
    unseen = tuple(name for name in class_names if str(name) not in seen)
    return f"; none to train of{shown_names(unseen)}" if unseen else ""


def _untimed(train: Sequences) -> str:
    """Return that the rows of a table are the order of its steps, where it has no time."""
    if train.rows is None or train.times is not None:
        return ""
    return "; no column of times: steps in the order of the file"


def _equal_times(parts: dict[str, Sequences]) -> str:
    """Return how many sequences have steps at equal times, as one that is two recordings of the same id has."""
    found = [(int(step), part) for part in parts.values() for step in part.first_equal_times()]
    if not found:
        return ""
    total = sum(len(part.lengths) for part in parts.values())
    # by row, and not by id, which may be a name: the model card has this line too
    return f"; equal times in {len(found):,} of {total:,} sequences (as in {place_of(*found[0])})"
