"""The set-up scripts, with a stand-in for Python so that nothing is installed."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("requirements.txt", "requirements-test.txt", "requirements-no-deps.txt")

# Plays python3 and .venv/bin/python: writes its arguments to calls.log; `-m venv` copies itself.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$FAKE_LOG"
case "$*" in
    --version) echo "Python 3.11.7" ;;
    *"import fcntl"*) exec {python} "$@" ;;
    "- "*) exec {toml_python} "$@" ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip --version") ;;
    *"pip install"*) exit "${{FAKE_PIP_CODE:-0}}" ;;
    "-m experiments.missing"*) echo "No module named experiments.missing" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts and requirements, and a `start(script, *arguments, **environment)`."""
    scripts = ("scripts/setup.sh", "scripts/run")
    for name in (*scripts, *REQUIREMENTS, "pyproject.toml"):
        target = tmp_path / "repo" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    python = tmp_path / "python"
    system = shutil.which("python3", path="/usr/bin:/bin")
    python.write_text(FAKE_PYTHON.format(python=system, toml_python=sys.executable))
    python.chmod(0o755)
    return tmp_path


def start(checkout, *arguments, **environment):
    return subprocess.run(
        [checkout / "repo" / "scripts" / "run", *arguments],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHON": str(checkout / "python"),
            "FAKE_LOG": str(checkout / "calls.log"),
            **environment,
        },
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(checkout, part):
    return [line for line in (checkout / "calls.log").read_text().splitlines() if part in line]


def test_no_suitable_python_is_one_clear_line_and_exit_2(checkout):
    done = start(checkout, "experiments.x", PYTHON="/nowhere/python3")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Python 3.11 or newer" in done.stderr and "/nowhere/python3" in done.stderr
    assert not (checkout / "repo" / ".venv").exists()


def test_old_python_on_the_path_is_passed_over(checkout):
    folder = checkout / "bin"
    folder.mkdir()
    (folder / "python3").write_text("#!/bin/sh\nexit 1\n")
    (folder / "python3").chmod(0o755)
    shutil.copy(checkout / "python", folder / "python3.12")
    done = start(checkout, "experiments.x", PYTHON="", PATH=f"{folder}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert calls(checkout, "-m experiments.x") == ["-m experiments.x"]


def test_second_start_installs_nothing(checkout):
    assert start(checkout, "experiments.x", "--config.seed=1").returncode == 0
    assert start(checkout, "experiments.x").returncode == 0
    assert len(calls(checkout, "pip install")) == len(calls(checkout, "-m venv")) == 1
    assert calls(checkout, "-m experiments") == [
        "-m experiments.x --config.seed=1",
        "-m experiments.x",
    ]


def test_bigjax_is_found_from_any_folder_also_after_a_move(checkout):
    packages = checkout / "repo" / ".venv" / "lib" / "python3.11" / "site-packages"
    start(checkout, "experiments.x")
    packages.mkdir(parents=True)  # an environment that an older checkout made: there is no file
    (checkout / "repo" / "bigjax").mkdir()
    for before in (None, "/moved/away", str(checkout / "repo")):
        if before:
            (packages / "bigjax.pth").write_text(before + "\n")
        assert start(checkout, "experiments.x").returncode == 0
        assert (packages / "bigjax.pth").read_text() == f"{(checkout / 'repo').resolve()}\n"


def test_changed_requirements_are_installed_again(checkout):
    start(checkout, "experiments.x")
    with open(checkout / "repo" / "requirements.txt", "a") as file:
        file.write("# changed\n")
    start(checkout, "experiments.x")
    assert len(calls(checkout, "pip install")) == 2


def test_failed_installation_is_tried_again(checkout):
    assert start(checkout, "experiments.x", FAKE_PIP_CODE="1").returncode == 1
    assert calls(checkout, "-m experiments") == []
    assert start(checkout, "experiments.x").returncode == 0
    assert len(calls(checkout, "pip install")) == 2


def test_two_starts_at_once_install_once(checkout):
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(lambda name: start(checkout, name), ("experiments.a", "experiments.b"))
        )
    assert [d.returncode for d in done] == [0, 0]
    assert len(calls(checkout, "pip install")) == 1


def test_arguments_and_exit_code_pass_through(checkout):
    done = start(checkout, "experiments.missing", "a b")
    assert done.returncode == 1
    assert "No module named experiments.missing" in done.stderr
    assert start(checkout).returncode == 0
    assert calls(checkout, "-m experiments")[-1] == "-m experiments"
    start(checkout, "mine.py", "config")
    assert calls(checkout, "mine.py") == ["mine.py config"]
    start(
        checkout, "bigjx.doctor"
    )  # no folder of that name: the experiments' listing names the nearest
    assert calls(checkout, "bigjx") == ["-m experiments bigjx.doctor"]


def test_accelerator_extra_is_installed_beside_the_pins(checkout):
    start(checkout, "experiments.x", BIGJAX_JAX_EXTRA="cuda13")
    (install,) = calls(checkout, "pip install")
    assert install.endswith("--requirement requirements.txt jax[cuda13]")
    assert "--constraint requirements.txt" in install


def test_extras_are_installed_once_and_an_unknown_one_is_refused(checkout):
    for _ in range(2):
        assert start(checkout, "experiments.x", BIGJAX_EXTRAS="sweep,slurm").returncode == 0
    extras = calls(checkout, "pip install")[1:]
    assert [line.split()[-1].split(">=")[0] for line in extras] == ["optuna", "submitit"]
    done = start(checkout, "experiments.x", BIGJAX_EXTRAS="sweeep")
    assert done.returncode == 2 and "no extra 'sweeep'; there are" in done.stderr


def test_an_extra_whose_metadata_refuses_the_pins_is_installed_without_what_it_asks_for(checkout):
    start(checkout, "experiments.x", BIGJAX_EXTRAS="rl")
    _, brought, alone = calls(checkout, "pip install")
    assert "--constraint requirements.txt gymnasium>=" in brought and "gymnax" not in brought
    assert alone.endswith("--no-deps gymnax==1.0.1")


def pins(name, python):
    """{package: version} of a requirements file on a Python; none is named twice or left open."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        assert [s.operator for s in requirement.specifier] == ["=="], line
        if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
            package = canonicalize_name(requirement.name)
            assert package not in found, package
            found[package] = str(requirement.specifier)[2:]
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_is_pinned_exactly_once_for_each_python(python):
    for name in REQUIREMENTS:
        found = pins(name, python)
        assert found and not {"tensorflow", "tensorflow-cpu"} & set(found)
        assert "torch" not in found or (name == "requirements-test.txt" and python == "3.11")
    jax = "0.10.2" if python == "3.11" else "0.12.0.1"
    assert {pins("requirements.txt", python)[name] for name in ("jax", "jaxlib")} == {jax}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_no_pinned_package_refuses_another_pin(python):
    """What pip would find on each Python, from the metadata of the versions installed here."""
    together = {**pins("requirements.txt", python), **pins("requirements-test.txt", python)}
    examined = 0
    for package, version in together.items():
        try:
            installed = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] != version:
            continue
        examined += 1
        for asked in map(Requirement, installed.requires or []):
            wanted = canonicalize_name(asked.name)
            environment = {
                "python_version": python,
                "python_full_version": f"{python}.0",
                "extra": "",
            }
            if wanted in together and (not asked.marker or asked.marker.evaluate(environment)):
                pinned = together[wanted]
                assert asked.specifier.contains(pinned, prereleases=True), f"{package}: {asked}"
    assert examined > 100


def test_ci_runs_the_test_script():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()
