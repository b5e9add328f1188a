"""Penn Treebank in Mikolov's preparation (Mikolov et al. 2012): the next of 50 characters."""

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.language import PARTS, UNDERSCORED, make_task
from fptt.experiments.tasks.loading import load_splits, texts
from fptt.experiments.tasks.task import Task

LENGTH = 150
END_OF_LINE = "\n"


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the three splits: 5,017,482 characters to train, 393,042 to validate, 442,423 to test.

    Ends of lines are among them; an underscore is the blank between words.

    Raises:
        UserError: If no data are given: this form of the corpus is not on the hub.
    """
    if setting.data is None:
        raise UserError(
            "data must be given for the task 'ptb-char': a folder of Parquet files with the splits "
            f"{', '.join(PARTS)} and a column sentence, its characters separated by blanks, '_' for a blank."
        )
    splits = load_splits(setting.data, PARTS)
    parts = {name: _characters(texts(split, name, "sentence")) for name, split in splits.items()}
    return make_task(setting, parts, UNDERSCORED, length=LENGTH)


def _characters(lines: list[str]) -> list[str]:
    return [character for line in lines for character in (*line.split(), END_OF_LINE)]
