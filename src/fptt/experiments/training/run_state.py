"""All of a run as one state, from which it goes on bit for bit."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from fptt._sequence import flatten_state, refill_state
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.random_state import random_state, set_random_state
from fptt.experiments.tasks.registry import check_vocabulary
from fptt.experiments.training.checkpoints import load_field
from fptt.experiments.training.folder import Weights
from fptt.experiments.training.run import Best, Run, Totals

CHECKPOINT_VERSION = 3

SHARED_OUT = ("state", "random")
"""What differs between the processes of a run, whose sequences are their own."""
OF_ONES_OWN = ("model", "optimizer", "method", "average")
"""What differs too where they make updates of their own."""


def state_of(run: Run) -> dict[str, Any]:
    """Return everything that training depends on: tensors, plain values, lists and dicts of them only.

    Every process must ask; the others have what differs from the first one's in its `others`.
    """
    state = _own_state(run)
    names = SHARED_OUT if run.config.sync_every == 1 else (*SHARED_OUT, *OF_ONES_OWN)
    _, *others = run.ranks.gather({name: state[name] for name in names}) or [None]
    return {**state, "others": others}


def _own_state(run: Run) -> dict[str, Any]:
    return {
        "version": CHECKPOINT_VERSION,
        "data": run.task.fingerprint,
        "vocabulary": None if run.task.vocabulary is None else list(run.task.vocabulary),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "method": run.method.state_dict(),
        "precision": run.fabric.strategy.precision.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
        "batches": run.batches.state_dict(),
        "state": _flat_state(run.state),
        "schedule": run.schedule.state_dict(),
        "best": asdict(run.best),
        "totals": {"sums": run.totals.sums, "batches": run.totals.batches},
        "counters": {name: getattr(run, name) for name in ("epoch", "rows", "seconds", "metric")},
        "random": random_state(run.fabric.device),
    }


def load_state(run: Run, state: dict[str, Any]) -> None:
    """Go back to what `state_of` returned.

    Raises:
        UserError: If it is of another version, or of other data.
        DamagedCheckpointError: If a field is missing or does not fit; load another state, or drop the run.
    """
    if state.get("version") != CHECKPOINT_VERSION:
        raise UserError(f"the checkpoint must have version {CHECKPOINT_VERSION}, got {state.get('version')!r}.")
    load_field(state, "vocabulary", lambda saved: check_vocabulary(saved, run.task))
    if load_field(state, "data", str) != run.task.fingerprint:
        raise UserError(f"the data of the task {run.task.name!r} are not those that the run was trained on.")
    own = load_field(state, "others", lambda others: _own_part(run, state, others))
    for name, load in _loaders(run).items():
        load_field(own, name, load)


def _own_part(run: Run, state: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of this process."""
    size, number = run.ranks.size, run.ranks.number
    if len(others) != size - 1:
        raise UserError(
            f"the checkpoint is of {len(others) + 1} processes, of which its field 'others' has {len(others)}, and now "
            f"there are {size}."
        )
    return {**state, **others[number - 1]} if number else state


def _loaders(run: Run) -> dict[str, Callable[[Any], None]]:
    """Return what takes each field of a state."""
    loaders: dict[str, Callable[[Any], None]] = {
        "model": run.model.load_state_dict,  # pyright: ignore[reportAssignmentType]
        "optimizer": partial(_load_optimizer, run),
        "method": run.method.load_state_dict,
        "precision": run.fabric.strategy.precision.load_state_dict,
        "batches": run.batches.load_state_dict,
        "schedule": run.schedule.load_state_dict,
        "state": partial(_load_recurrent_state, run),
        "best": partial(_load_best, run),
        "totals": partial(_load_totals, run),
        "counters": partial(_load_counters, run),
        "random": lambda states: set_random_state(states, run.fabric.device),
    }
    if run.average is not None:
        loaders["average"] = run.average.load_state_dict  # pyright: ignore[reportArgumentType]
    return loaders


def _load_optimizer(run: Run, saved: dict[str, Any]) -> None:
    run.optimizer.load_state_dict(saved)
    for param, entries in run.optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != param.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}")


def _load_recurrent_state(run: Run, tensors: list[Tensor] | None) -> None:
    run.state = _nested_state(run, tensors)


def _load_best(run: Run, saved: dict[str, Any]) -> None:
    best = Best(**saved)
    for weights in (best.weights, best.averages):
        if weights and not _fit(weights, run.model.state_dict()):
            raise ValueError("the weights do not fit the model")
    if (best.metric is None) != (not best.weights):
        raise ValueError("there are weights if and only if there is a metric")
    run.best = best


def _load_totals(run: Run, saved: dict[str, Any]) -> None:
    run.totals.sums = saved["sums"].to(run.totals.sums).reshape(len(Totals.NAMES))
    run.totals.batches = int(saved["batches"])


def _load_counters(run: Run, saved: dict[str, Any]) -> None:
    run.epoch, run.rows, run.seconds = int(saved["epoch"]), int(saved["rows"]), float(saved["seconds"])
    run.metric = None if saved["metric"] is None else float(saved["metric"])


def _nested_state(run: Run, tensors: list[Tensor] | None) -> Any:
    """Return the tensors of a recurrent state in the nest that the model gives them."""
    if tensors is None:
        return None
    inputs, _ = run.task.sequences(run.fabric.to_device(run.task.train[0]))
    return refill_state(run.first_state(inputs), tensors)


def _flat_state(state: Any) -> list[Tensor] | None:
    return None if state is None else flatten_state(state)


def _fit(weights: Weights, own: Weights) -> bool:
    """Tell whether tensors have the names, shapes and types of others."""
    described = [{name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} for found in (weights, own)]
    return described[0] == described[1]
