"""Penn Treebank in Mikolov's preparation (Mikolov et al. 2010): the next of 10,000 words."""

from fptt.experiments.configs.config import Setting
from fptt.experiments.tasks.language import PARTS, WORDS, make_task
from fptt.experiments.tasks.loading import load_splits, texts
from fptt.experiments.tasks.task import Task

HUB_ID = "ptb-text-only/ptb_text_only"
LENGTH = 70


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the three splits: 929,589 words to train, 73,760 to validate, 82,430 to test, ends of lines among them."""
    splits = load_splits(setting.data or HUB_ID, PARTS)
    parts = {name: _words(texts(split, name, "sentence")) for name, split in splits.items()}
    return make_task(setting, parts, WORDS, length=LENGTH)


def _words(lines: list[str]) -> list[str]:
    return WORDS.split("".join(line + "\n" for line in lines))
