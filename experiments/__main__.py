"""Lists every experiment: name, and the first line of its docstring. Imports none of them.

`python -m experiments runs DIR` is a table of the runs below a folder instead; `python -m experiments
table` the Markdown of experiments/README.md.
"""

import ast
import difflib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
HEAD = """# The experiments

Each file is a page of a lab notebook: what it shows, the command, the hardware, and the figure really reached. This
table is made of their docstrings: `python -m experiments table > experiments/README.md` (a test holds them together).
`figures.toml` has their figures for machines; `scripts/verify [NAME...]` runs them again and says which still hold. What it
said last, and where: `scripts/benchmarks/results/verify.txt`.

| name | what it shows, and reached |
|---|---|
"""
BESIDE = ("runs", "table", "bigjax", "bigjax.doctor", "bigjax.sweep")  # what else may be meant


def summaries(folder: Path = FOLDER) -> dict[str, str]:
    """Name -> the first paragraph of the docstring, in one line, in order of name."""
    found = {}
    for file in sorted(folder.glob("*.py")):
        if not file.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(file.read_text())) or ""
            found[file.stem] = " ".join(text.partition("\n\n")[0].split())
    return found


def listing() -> str:
    """One line per experiment."""
    found = summaries()
    width = max(len(name) for name in found)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in found.items())


def check_name(module: str) -> None:
    """Ends the program with one line and code 2 if there is no experiment of that name."""
    name = module.removeprefix("experiments.")
    if not FOLDER.joinpath(*name.split(".")).with_suffix(".py").exists() and name != "sweeps":
        known = [*summaries(), *(f"sweeps.{k}" for k in summaries(FOLDER / "sweeps")), *BESIDE]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "the list: python -m experiments"
        print(f"error: no experiment '{name}' ({hint})", file=sys.stderr)
        sys.exit(2)


def table() -> str:
    """The text of experiments/README.md."""
    rows = {**summaries(), **{f"sweeps.{k}": v for k, v in summaries(FOLDER / "sweeps").items()}}
    return HEAD + "".join(f"| `{name}` | {line} |\n" for name, line in rows.items())


if __name__ == "__main__":
    if sys.argv[1:2] == ["runs"]:
        from bigjax.report import runs

        sys.exit(runs.main(sys.argv[2:]))
    if sys.argv[1:2] == ["table"]:
        print(table(), end="")
        sys.exit()
    if sys.argv[1:]:
        check_name(sys.argv[1])
        print(f"error: write experiments.{sys.argv[1]}, in one word", file=sys.stderr)
        sys.exit(2)
    print(listing())
    print("\nrun one with: python -m experiments.NAME   (scripts/run experiments.NAME)")
    print("their runs: python -m experiments runs [DIR] [--sort=COLUMN]")
