"""The model card of a run: what it is, on what data, its figures, its command, and how to load it."""

from collections.abc import Mapping
from typing import Any

import yaml

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.tasks.registry import TASKS, TEXTS
from fptt.experiments.tasks.scores import metric_form

MAX_NAMES = 20
"""Of classes or inputs, that are written out."""


def model_card(config: TrainConfig, summary: Mapping[str, Any], interface: Interface, about: str | None) -> str:
    """Return README.md of a run, in Markdown with the header of a model card of Hugging Face.

    It names no path: a card is made to be shown.

    Args:
        config: Of the run.
        summary: Its figures.
        interface: What goes into the model, and what comes out.
        about: A line on the data, where the task has one.
    """
    method = config.method.upper()
    header = {
        "library_name": "fptt",
        "tags": list(dict.fromkeys(["fptt", "recurrent-neural-network", config.cell, config.method, config.task])),
    }
    chunks = f"{summary['num_chunks']} chunks a sequence" if config.method != "bptt" else "one update a batch"
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {config.cell.upper()} trained by {method} on {config.task}",
        f"{config.num_layers} layer{'s' if config.num_layers > 1 else ''} of width {config.hidden_size}, "
        f"{summary['num_parameters']:,} parameters, trained by {method} with {chunks}, "
        f"{config.optimizer} at {config.lr:g} and batches of {config.batch_size}, by "
        f"fptt {summary['fptt']}.",
        "## Data",
        f"The task `{config.task}`: {TASKS[config.task].partition(': --data')[0]}."
        + ("" if about is None else f" {about[0].upper()}{about[1:]}."),
        _described(interface),
        "## Figures",
        _figures(summary),
        f"Weights of epoch {summary['best_epoch']}, chosen by validation; seed {config.seed}. The run "
        f"{'ended as planned' if summary['status'] == 'finished' else 'was ' + summary['status']}. Trained on "
        f"{summary['device']} with torch {summary['torch']}"
        + (f", commit {summary['commit']}." if summary.get("commit") else "."),
        "## Command",
        "```bash\nfptt train --config config.yaml --out FOLDER   # once more\n"
        "fptt evaluate .                                # the figures of the test again\n```",
        "## Use",
        _use(interface, is_text=config.task in TEXTS, has_averages=config.method == "fptt" and config.alpha != 0),
    ]
    return "\n\n".join(lines) + "\n"


def _described(interface: Interface) -> str:
    """Return sentences on inputs and outputs."""
    inputs = f"{interface.input_size} inputs a step" + _named(interface.input_names)
    one = "every step" if interface.has_step_targets else "every sequence"
    if interface.kind == "classes":
        outputs = f"one of {interface.output_size} classes for {one}" + _named(interface.class_names)
    else:
        outputs = f"{interface.output_size} number{'s' if interface.output_size > 1 else ''} for {one}"
    return f"In: {inputs}. Out: {outputs}."


def _named(names: tuple[Any, ...] | None) -> str:
    if names is None:
        return ""
    shown = ", ".join(f"`{name}`" for name in names[:MAX_NAMES])
    return f" ({shown}{', …' if len(names) > MAX_NAMES else ''})"


def _figures(summary: Mapping[str, Any]) -> str:
    names = [*(name for name in summary if name.startswith("test_")), f"validation_{summary['metric']}"]
    found = {name: summary[name] for name in names if isinstance(summary.get(name), int | float)}
    rows = [(name, format(value, metric_form(name, value))) for name, value in found.items()]
    rows += [("updates", f"{summary['updates']:,}"), ("epochs", f"{summary['epochs']:g}")]
    rows.append(("seconds of training", f"{summary['seconds']:.1f}"))
    body = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in rows)
    return f"| | |\n| --- | ---: |\n{body}"


def _use(interface: Interface, *, is_text: bool, has_averages: bool) -> str:
    if is_text:
        return '```bash\nfptt sample . --prompt "…"\n```'
    # the model itself standardizes what is of one's own; the other tasks prepare their data outside of it
    prepared = "prepared as the task does" if interface.input_mean is None else "as in the data"
    sequences = f"an array (N, T, D), a list of arrays (T_i, D), or a DataFrame, {prepared}"
    note = "  # averages=True for the averages of FPTT" if has_averages else ""
    probabilities = "\nrun.predict_proba(x)" if interface.kind == "classes" else ""
    lines = ["import fptt.experiments", "", f'run = fptt.experiments.load_run("."){note}']
    code = "\n".join([*lines, f"run.predict(x)  # {sequences}{probabilities}"])
    return f"```python\n{code}\n```"
