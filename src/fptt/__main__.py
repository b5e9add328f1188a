"""The `fptt` command: the entry to `fptt.experiments`, which needs more libraries than the library itself."""

import sys
from importlib.util import find_spec

NEEDED = (
    *("datasets", "lightning_fabric", "matplotlib", "numpy", "pandas", "pydantic", "rich", "safetensors", "sklearn"),
    *("tabulate", "tyro", "yaml"),
)


def main() -> int:
    """Run the command line, or name the missing libraries in one line."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"fptt: the command line needs {', '.join(missing)}: pip install 'fptt[experiments]'", file=sys.stderr)
        return 1
    try:
        from fptt.experiments.commands.cli import run
        from fptt.experiments.process.console import replace_unencodable

        replace_unencodable()
        return run(sys.argv[1:])
    except KeyboardInterrupt:
        print("fptt: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
