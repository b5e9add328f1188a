"""The rules of the code that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from tests.faults import misplaced

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_importing_the_library_loads_torch_alone_and_prints_nothing() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); state = torch.get_rng_state(); import fptt;"
        "assert torch.equal(state, torch.get_rng_state());"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "assert not loaded - {'fptt', 'torch'} - set(sys.stdlib_module_names), loaded"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_command_line_without_its_libraries_says_so_in_one_line() -> None:
    code = (
        "import sys, importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name: None if name == 'tyro' else find(name);"
        "from fptt.__main__ import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "fptt: the command line needs tyro: pip install 'fptt[experiments]'\n"


def test_files_are_finished_and_have_names() -> None:
    unfinished = [path for path in SOURCES if re.search(r"TODO|FIXME|NotImplementedError", path.read_text())]
    nameless = [path for path in SOURCES if path.stem in {"utils", "common", "helpers"}]
    assert (unfinished, nameless) == ([], [])


def test_init_files_only_import() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            body = [
                node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr | ast.ImportFrom)
            ]
            assert [ast.unparse(node) for node in body] in ([], ["__version__ = _version('fptt')"]), path


def test_no_module_beside_the_entry_hides_one_of_python() -> None:
    """`fabric run src/fptt/__main__.py` puts their folder first in the path."""
    names = {path.stem for path in (ROOT / "src" / "fptt").iterdir()}
    assert names & sys.stdlib_module_names == set()


def test_the_version_of_the_citation_is_that_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert version is not None
    assert cited is not None
    assert version[1] == cited[1]
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_planted_fault_still_fits_the_source() -> None:
    assert misplaced() == []
