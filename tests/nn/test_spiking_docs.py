"""The code of docs/spiking.md, block after block."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "spiking.md"


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
