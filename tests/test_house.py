"""The house is as its README draws it: rooms that import only rooms below, small enough to be read."""

import ast
import re
import sys
from pathlib import Path

from bigjax.build.assemble import assemble
from bigjax.config.config import Config
from bigjax.run import manifest
from tests.small import small

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "bigjax"
FILES = sorted(HOUSE.rglob("*.py"))


def drawn():
    """The rooms as the root README lists them, from the top down."""
    section = (ROOT / "README.md").read_text().partition("## The house")[2].partition("\n## ")[0]
    block = re.search(r"((?:^ {4}\S.*\n)+)", section, re.MULTILINE)[1]
    return [
        room
        for line in block.splitlines()
        for room in re.findall(r"(?:^ {4}| {3,})(\w+) {2,}", line)
    ]


def imported(tree):
    """Every module of bigjax that a file imports, wherever it does so, but for annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bigjax."):
            yield node.module
        if isinstance(node, ast.ImportFrom) and node.module == "bigjax":
            yield from (f"bigjax.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("bigjax."))


def test_a_room_imports_only_rooms_that_stand_below_it():
    floor = {room: -i for i, room in enumerate(drawn())}
    wrong = [
        f"{path.relative_to(HOUSE)} imports {module}"
        for path in FILES
        for module in imported(ast.parse(path.read_text()))
        if path.parent != HOUSE
        and (room := module.split(".")[1]) in floor
        and floor[room] > floor[path.relative_to(HOUSE).parts[0]]
    ]
    assert not wrong


def test_every_room_is_drawn_and_has_a_readme_at_its_door():
    rooms = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert rooms == set(drawn())
    assert not [room for room in rooms if not (HOUSE / room / "README.md").is_file()]
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_no_file_is_longer_than_one_reads_and_no_function_than_a_screen():
    assert not [path for path in FILES if len(path.read_text().splitlines()) > 400]
    functions = [
        (path.name, node.name)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80
    ]
    assert not functions


def test_the_config_of_a_run_enters_few_files(tmp_path):
    entered = set()

    def look(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(HOUSE)):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(isinstance(frame.f_locals.get(name), Config) for name in names):
                entered.add(Path(code.co_filename).relative_to(HOUSE).as_posix())

    config = small()
    sys.setprofile(look)
    try:  # as `loop.train` does; from there on nobody sees a config
        manifest.check_config(config, tmp_path)
        assemble(config, tmp_path)
    finally:
        sys.setprofile(None)
    assert {"build/assemble.py", "run/manifest.py"} <= entered
    assert len(entered | {"loop/train.py"}) <= 12
