"""Text from a trained language model, token by token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.machine import prepare_process
from fptt.experiments.tasks.language import CHARACTERS, UNDERSCORED, UNKNOWN, WORDS, Level, encode
from fptt.experiments.training.build import make_language_model
from fptt.experiments.training.evaluation import load_weights
from fptt.experiments.training.folder import RunFolder
from fptt.nn.prediction import evaluating


def sample_text(
    path: Path,
    *,
    prompt: str | None,
    num_tokens: int,
    temperature: float,
    seed: int,
    averages: bool = False,
) -> str:
    """Continue a text by the model of a run folder, on the CPU.

    Args:
        path: The run folder, of a task with a vocabulary.
        prompt: The beginning of the text, at least one token. None for a new line, or the most frequent token of the
            training text where that has no lines.
        num_tokens: Tokens to draw, ≥ 1: characters or words, as the run has them.
        temperature: Divides the scores, ≥ 0; 0 takes the most likely token.
        seed: Of the draws.
        averages: Take the averages W̄ instead of the weights W.

    Returns:
        The prompt and its continuation. Words are separated by single blanks, `<eos>` is a new line.

    Raises:
        UserError: If the folder is damaged or of another kind of task, or the prompt has a character that the training
            text lacks.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    level = _level(config)
    beginning = level.split("\n" if prompt is None else prompt)
    if not beginning:
        raise UserError(f"prompt must have at least one {level.token}, got {prompt!r}.")
    prepare_process(config.threads)
    vocabulary = folder.read_vocabulary()
    if vocabulary is None:
        raise UserError(f"run folder {path} is damaged: vocabulary.json is missing.")
    model = make_language_model(config, len(vocabulary))
    load_weights(model, folder.read_weights(averages=averages), folder)
    if prompt is None and not set(beginning) <= set(vocabulary):
        # the most frequent ones come first
        beginning = [next((token for token in vocabulary if token != UNKNOWN), UNKNOWN)]
    tokens = encode(beginning, vocabulary, level, "prompt").tolist()
    generator = torch.Generator().manual_seed(seed)
    drawn = continue_text(model, tokens, num_tokens=num_tokens, temperature=temperature, generator=generator)
    return level.join([*beginning, *(vocabulary[token] for token in drawn)])


@torch.no_grad()
def continue_text(
    model: nn.Module, prompt: Sequence[int], *, num_tokens: int, temperature: float, generator: torch.Generator
) -> list[int]:
    """Return the tokens that follow a prompt, drawn one by one with the state carried over.

    Args:
        model: Returns scores (T, 1, V) and a state for tokens (T, 1) and a state; evaluated without dropout.
        prompt: Numbers of at least one token.
        num_tokens: Tokens to draw.
        temperature: Divides the scores; 0 takes the most likely token.
        generator: Of the draws.
    """
    state, read, drawn = None, list(prompt), []
    with evaluating(model):
        for _ in range(num_tokens):
            # the whole prompt at first, then one token at a time
            outputs, state = model(torch.tensor(read).unsqueeze(1), state)
            drawn.append(_draw(outputs[-1, 0], temperature, generator))
            read = drawn[-1:]
    return drawn


def _draw(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    """Draw a token by its scores, (V,)."""
    if temperature == 0:
        return int(scores.argmax())
    above = (scores.double() - scores.max()) / temperature  # at most 0, so that no temperature overflows
    return int(torch.multinomial(above.softmax(0), 1, generator=generator))


def _level(config: TrainConfig) -> Level:
    """Return the kind of tokens of a run."""
    own_text = WORDS if config.level == "word" else CHARACTERS
    levels = {"ptb-word": WORDS, "ptb-char": UNDERSCORED, "text": own_text}
    if config.task not in levels:
        raise UserError(f"only runs of {', '.join(levels)} can be sampled from, got one of the task {config.task!r}.")
    return levels[config.task]
