"""A learner that goes through recordings: every step is predicted before it is learned."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

import fptt
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.tasks.hapt import Recording
from fptt.experiments.tasks.scores import IGNORED
from fptt.nn.models import CELLS


def make_learner(config: StreamConfig, num_inputs: int, num_classes: int) -> fptt.OnlineLearner:
    """Return the learner of a config, which standardizes its inputs by itself."""
    torch.manual_seed(config.seed)
    model = CELLS[config.cell](num_inputs, config.hidden_size, num_classes, num_layers=config.num_layers)
    names = ("chunk_length", "max_norm", "beta", "form", "coupling")
    method = fptt.FPTT(
        model,
        torch.optim.Adam(model.parameters(), lr=config.lr),
        fptt.SequenceLoss(functional.cross_entropy),
        alpha=config.alpha if config.method == "fptt" else 0.0,
        **{name: getattr(config, name) for name in names},
    )
    return fptt.OnlineLearner(method, classes=range(num_classes), max_delay=config.delay, standardize=True)


def predict_and_learn(
    learner: fptt.OnlineLearner, recording: Recording, config: StreamConfig, begin: int = 0
) -> Iterator[Tensor]:
    """Go through a recording chunk by chunk: predict its steps, learn it, and yield the predictions, outputs (n, C).

    The label of step t is learned after the prediction of step t + delay; those of the last steps at the end of the
    recording. Whatever was yielded is learned: another call resumes from there.

    Args:
        learner: In its state after the steps before `begin`.
        recording: All of it.
        config: Chunks and delay.
        begin: The first step not predicted yet.
    """
    labels = [None if label == IGNORED else label for label in recording.classes.tolist()]
    length, delay = len(labels), config.delay
    if begin == 0:
        learner.reset()
    for start in range(begin, length, config.chunk_length):
        chunk = recording.signal[start : start + config.chunk_length]
        outputs = learner.predict_many(chunk)
        known_until = start + len(chunk) - delay  # labels before this step are known by now
        _learn_late(learner, labels, range(max(start - delay, 0), min(start, known_until)), start)
        known = labels[start:known_until] if known_until > start else []
        learner.learn_many(chunk, known + [None] * (len(chunk) - len(known)))
        if start + len(chunk) == length:
            _learn_late(learner, labels, range(max(length - delay, 0), length), length)
            learner.flush()
        yield outputs


def _learn_late(learner: fptt.OnlineLearner, labels: list[int | None], steps: range, now: int) -> None:
    for step in steps:
        if labels[step] is not None:
            learner.learn_delayed(labels[step], now - step)


def gathered(outputs: Iterator[Tensor], num_steps: int) -> Iterator[Tensor]:
    """Concatenate outputs (n, C) until they have so many steps or more."""
    waiting: list[Tensor] = []
    length = 0
    for output in outputs:
        waiting.append(output)
        length += len(output)
        if length >= num_steps:
            yield torch.cat(waiting)
            waiting, length = [], 0
    if waiting:
        yield torch.cat(waiting)
