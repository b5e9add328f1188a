"""Copy memory (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016): repeat ten symbols after a long delay."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from fptt.experiments.configs.config import Setting
from fptt.experiments.tasks.batches import check_held_out, generated_parts, samples_an_epoch
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.tasks.scores import Score
from fptt.experiments.tasks.task import Task

NUM_KINDS = 8
NUM_SYMBOLS = 10
BLANK, GO = NUM_KINDS, NUM_KINDS + 1
NUM_HELD_OUT = 1000


class CopyScore(Score):
    """Accuracy of the recalled symbols, cross entropy (nats) over all steps, and that of a model without memory.

    A model without memory predicts the blanks, and guesses the symbols: 10 ln 8 / (T + 20).

    Args:
        length: The delay T.
    """

    metric = "accuracy"

    def __init__(self, length: int) -> None:
        self.memoryless = NUM_SYMBOLS * math.log(NUM_KINDS) / (length + 2 * NUM_SYMBOLS)
        self.entropy, self.steps, self.correct, self.recalled = 0.0, 0, 0, 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs (…, C) and symbols (…); a step is recall where its target is no blank."""
        outputs, targets = outputs.flatten(0, -2), targets.flatten()
        is_recall = targets != BLANK
        self.entropy += functional.cross_entropy(outputs.double(), targets, reduction="sum").item()
        self.steps += len(targets)
        self.correct += (outputs.argmax(-1) == targets)[is_recall].sum().item()
        self.recalled += is_recall.sum().item()

    def metrics(self) -> dict[str, float]:
        """Return accuracy, cross entropy, and the cross entropy of a model without memory."""
        return {
            "accuracy": self.correct / max(self.recalled, 1),
            "cross_entropy": self.entropy / max(self.steps, 1),
            "memoryless_cross_entropy": self.memoryless,
        }


def load(setting: Setting, seed: int) -> Task:
    """Make the task for the delay T = `setting.length`: fresh training data from the seed, fixed held-out data.

    An epoch is 100 batches, or `setting.limit` samples. Inputs are one-hot of 8 symbols, blank and go-signal; outputs
    are scores of 8 symbols and blank.
    """
    length = setting.length or 100
    check_held_out(NUM_HELD_OUT, length + 2 * NUM_SYMBOLS)
    train, validation, test = generated_parts(
        lambda count, generator: draw_samples(count, length, generator), samples_an_epoch(setting), NUM_HELD_OUT, seed
    )
    return Task(
        name="copy",
        kind="classes",
        train=train,
        validation=validation,
        test=test,
        to_sequences=one_hot,
        input_size=GO + 1,
        output_size=BLANK + 1,
        has_step_targets=True,
        score=lambda: CopyScore(length),
        chance=CHANCE["copy", "accuracy"],
    )


def draw_samples(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, whole numbers (count, T + 20) both.

    Inputs: ten symbols, T − 1 blanks, the go-signal (step T + 10, counted from 1), ten blanks. Targets: T + 10 blanks,
    the last of them at the go-signal's step, then the ten symbols.
    """
    symbols = torch.randint(0, NUM_KINDS, (count, NUM_SYMBOLS), generator=generator)
    inputs = torch.full((count, length + 2 * NUM_SYMBOLS), BLANK)
    targets = inputs.clone()
    inputs[:, :NUM_SYMBOLS] = symbols
    inputs[:, -NUM_SYMBOLS - 1] = GO
    targets[:, -NUM_SYMBOLS:] = symbols
    return inputs, targets


def one_hot(batch: Tensor) -> Tensor:
    """Return symbols, (B, T + 20), as sequences of one-hot vectors, (T + 20, B, 10)."""
    return functional.one_hot(batch.T, GO + 1).float()
