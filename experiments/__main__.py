"""Lists every experiment: name, and the first line of its docstring. Imports none of them.

`python -m experiments runs DIR` is a table of the runs below a folder instead.
"""

import ast
import sys
from pathlib import Path


def listing() -> str:
    """One line per experiment, in order of name."""
    folder = Path(__file__).parent
    found = {
        file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_")
    }
    width = max(len(name) for name in found)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in found.items())


if __name__ == "__main__":
    if sys.argv[1:2] == ["runs"]:
        from bigjax.report import runs

        sys.exit(runs.main(sys.argv[2:]))
    print(listing())
    print("\nrun one with: python -m experiments.NAME   (scripts/run experiments.NAME)")
    print("their runs: python -m experiments runs [DIR] [--sort=COLUMN]")
