"""Lists every experiment: name, and the first line of its docstring. Imports none of them."""

import ast
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
    print(listing())
    print("\nrun one with: python -m experiments.NAME   (scripts/run experiments.NAME)")
