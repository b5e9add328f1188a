from collections.abc import Callable

import pytest

from fptt.experiments.commands.cli import run
from fptt.experiments.training.folder import RunFolder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Return a function that gives the finished run of a command, made once for all tests, which only read it."""
    made: dict[tuple[str, ...], RunFolder] = {}

    def finished(*command: str) -> RunFolder:
        if command not in made:
            folder = RunFolder(tmp_path_factory.mktemp("undisturbed") / "run")
            assert run([*command, "--out", str(folder.path)]) == 0
            made[command] = folder
        return made[command]

    return finished
