"""Penn Treebank in Mikolov's preparation: the next of 10,000 words (2010), or of 50 characters (2012)."""

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.language import PARTS, UNDERSCORED, WORDS, make_task
from fptt.experiments.tasks.loading import load_splits, texts
from fptt.experiments.tasks.task import Task

WORDS_HUB_ID = "ptb-text-only/ptb_text_only"
"""Of the words; the characters are not on the hub."""
NUM_WORDS_A_WINDOW = 70
NUM_CHARACTERS_A_WINDOW = 150
END_OF_LINE = "\n"


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the three splits, ends of lines among their tokens.

    `ptb-word` has 929,589 words to train, 73,760 to validate, 82,430 to test. `ptb-char` has 5,017,482, 393,042 and
    442,423 characters, with an underscore for the blank between words.

    Raises:
        UserError: If no data are given for `ptb-char`, or those of the other task.
    """
    if setting.task == "ptb-char" and setting.data is None:
        raise UserError(
            "data must be given for the task 'ptb-char': a folder of Parquet files with the splits "
            f"{', '.join(PARTS)} and a column sentence, its characters separated by blanks, '_' for a blank."
        )
    splits = load_splits(setting.data or WORDS_HUB_ID, PARTS)
    lines = {name: texts(split, name, "sentence") for name, split in splits.items()}
    _check_level(setting.task, lines)
    if setting.task == "ptb-word":
        words = {name: WORDS.split("".join(line + END_OF_LINE for line in own)) for name, own in lines.items()}
        return make_task(setting, words, WORDS, length=NUM_WORDS_A_WINDOW)
    characters = {
        name: [character for line in own for character in (*line.split(), END_OF_LINE)] for name, own in lines.items()
    }
    return make_task(setting, characters, UNDERSCORED, length=NUM_CHARACTERS_A_WINDOW)


def _check_level(task: str, lines: dict[str, list[str]]) -> None:
    """Raise UserError if the words are given for the characters, or the other way round."""
    longest = {
        name: max((word for line in own for word in line.split()), key=len, default="") for name, own in lines.items()
    }
    if task == "ptb-word" and len(longest["train"]) == 1:
        raise UserError(
            "the train split must hold words for the task 'ptb-word', got single characters alone: are they those of "
            "the task 'ptb-char'?"
        )
    for name, word in longest.items():
        if task == "ptb-char" and len(word) > 1:
            raise UserError(
                f"the {name} split must hold single characters with blanks between them for the task 'ptb-char', got "
                f"{word!r}: are they the words of the task 'ptb-word'?"
            )
