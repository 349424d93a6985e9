"""What is handed on: the wheel, its version, the licence."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bigjax

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what git tracks, so that nothing else of the folder gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if name.startswith(("bigjax/", "experiments/", "scripts/")) or "/" not in name:
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, "."]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder / "source", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_what_it_needs_and_no_other_top_level_name(wheel):
    assert wheel.name.startswith(f"bigjax-{bigjax.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"bigjax-{bigjax.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"bigjax", "experiments", info}
    assert f"{info}/licenses/LICENSE" in names
    wanted = subprocess.run(
        ["git", "ls-files", "bigjax", "experiments"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    missing = {name for name in wanted if not name.endswith(".md")} - names
    assert missing == set()


def test_the_library_imports_nothing_that_the_wheel_lacks():
    for path in (*ROOT.glob("bigjax/**/*.py"), *ROOT.glob("experiments/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [module or ""]
            assert not [n for n in names if n.split(".")[0] in ("scripts", "tests")], path


def test_version_changes_and_citation_agree():
    newest = re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert newest == cited == bigjax.__version__
