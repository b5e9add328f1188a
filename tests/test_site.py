"""The site of the documentation: it builds, no link of it is dead, it needs no network, and it names what is public."""

import inspect
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import fptt
from fptt.experiments.commands.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))


class Page(HTMLParser):
    """The links, anchors and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.anchors.add(value)
            elif (tag, name) == ("a", "href"):
                self.links.add(value)
            elif name == "src" or ((tag, name) == ("link", "href") and dict(attrs).get("rel") == "stylesheet"):
                self.loaded.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built from a copy of the documents, without running the notebooks."""
    for name in ("zensical", "mkdocstrings", "jupytext"):
        pytest.importorskip(name, reason=f"the group docs is not installed: there is no {name}")
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, root / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", root)
    command = [sys.executable, str(root / "docs" / "build.py"), "--no-execute"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return root / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("index.html")}


def nav_pages() -> list[str]:
    """Return the sources of all pages of the menu."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\nplugins:")[0]
    groups = [value for entry in yaml.safe_load(text) for value in entry.values()]
    flat = [[entry] if isinstance(entry, str) else [page for one in entry for page in one.values()] for entry in groups]
    return [page for group in flat for page in group]


def test_every_page_is_in_the_menu_and_built(site: Path) -> None:
    sources = nav_pages()
    for source in sources:
        place = site / source.removesuffix("index.md").removesuffix(".md") / "index.html"
        assert "<h1" in place.read_text(encoding="utf-8"), f"{source} is in the menu and is no page"
    made = {f"notebooks/{notebook.stem}.md" for notebook in NOTEBOOKS} | {"reference/command-line.md"}
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - made
    assert written | made == set(sources)


def test_no_link_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            is_elsewhere = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            if not target.is_file() or is_elsewhere:
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead, "\n".join(dead)


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert not {one for page in pages.values() for one in page.loaded if urlsplit(one).netloc}


def test_mathematics_is_marked_for_the_typesetter_of_the_site(site: Path) -> None:
    page = (site / "method" / "index.html").read_text(encoding="utf-8")
    fences = (DOCS / "method.md").read_text(encoding="utf-8").count("```math")
    assert page.count('<div class="arithmatex">') == fences > 0
    for file in ("katex.min.js", "katex.min.css", "fonts/KaTeX_Main-Regular.woff2"):
        assert (site / "theme" / "katex" / file).is_file()


def test_the_command_line_is_that_of_the_program(site: Path) -> None:
    text = (site / "reference" / "command-line" / "index.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f'id="fptt-{name}"' not in text] == []
    assert "--num-chunks" in text
    assert "--tyro" not in text


@pytest.mark.parametrize("module", [fptt, fptt.nn, fptt.nn.spiking], ids=lambda module: module.__name__)
def test_every_public_name_has_its_place_in_the_reference(module: ModuleType) -> None:
    """Of classes and functions; aliases of types stand in the signatures."""
    named = re.findall(r"^::: (\S+)", "".join(page.read_text() for page in (DOCS / "api").glob("*.md")), re.M)
    assert len(named) == len(set(named))
    public = {
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert public - set(named) == set()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs(notebook: Path) -> None:
    """As plain Python, which a file in jupytext's percent format is."""
    import matplotlib.pyplot as plt

    assert notebook.read_text(encoding="utf-8").count("# %% [markdown]") > 3
    runpy.run_path(str(notebook))
    plt.close("all")
