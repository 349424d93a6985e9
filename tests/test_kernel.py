"""The screen in a real notebook kernel, as golden text: `tests/golden/notebook.txt`.

Needs `pip install ipykernel nbclient`. Written anew by `python -m tests.test_kernel --write`.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.test_screen import seen

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "notebook.txt"

CELLS = (
    # The training that test_screen draws on a terminal and in a file, with a clock of its own.
    """
import sys, tempfile
from pathlib import Path
from bigjax.run import screen
from tests.test_screen import Clock, train
screen.time = clock = Clock()
train(sys.stderr, clock, Path(tempfile.mkdtemp()))
import time
screen.time = time
""",
    # A real one; the same run again finds it finished.
    """
import logging
import bigjax
from tests.small import small_config
folder = Path(tempfile.mkdtemp())
config = small_config(train=dict(steps=40, batch_size=40), log=dict(every=20, tensorboard=False))
run = bigjax.train(config, folder / "run")
""",
    """bigjax.train(config, folder / "run").step""",
    # What is wrong is one line, and no SystemExit.
    """
try:
    bigjax.train(dict(config.items(), trian={}), folder / "other")
except bigjax.UserError as error:
    print(error)
""",
)


def outputs() -> list[str]:
    """What each cell shows at its end, as a notebook draws it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    from jupyter_client import AsyncKernelManager

    cells = [nbformat.v4.new_code_cell(code.strip()) for code in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager = AsyncKernelManager()
    manager.kernel_spec.argv = command
    client = nbclient.NotebookClient(notebook, km=manager, timeout=500, coalesce_streams=True)
    client.execute(cwd=str(ROOT))
    return ["\n".join(drawn(output) for output in cell.outputs).strip() for cell in notebook.cells]


def drawn(output) -> str:
    if output.output_type == "stream":
        return "\n".join(seen(output.text))
    return output.data["text/plain"]


def steady(text: str) -> str:
    """Without what differs from machine to machine: times, rates, numbers of a model, a folder."""
    text = re.sub(r"/\S*/(run|other)\b", r"DIR/\1", text)
    text = re.sub(r"(\d+h)?(\d+m)?\d+s left", "TIME left", text)
    text = re.sub(
        r"[\d.,]+ steps/s now.*", "RATE now ...", text
    )  # what still fits depends on digits
    text = re.sub(r"errors \d+", "errors N", text)
    return re.sub(r"(?<= )-?\d+\.\d+(e-\d+)?(?=\s|$)", "N", text)


def whole() -> str:
    first, *rest = outputs()
    return (
        "\n\n".join(f"[{i}]\n{text}" for i, text in enumerate((first, *map(steady, rest)))) + "\n"
    )


@pytest.mark.slow
def test_a_notebook_shows_whole_lines_and_one_bar_that_is_rewritten():
    assert whole() == GOLDEN.read_text()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.test_kernel --write")
    GOLDEN.write_text(whole())
