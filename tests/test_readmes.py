"""What the READMEs say runs as it is written there: every command, every verb, every block of Python.

A command is a line of code, or a word of it, that begins as in `COMMAND`. Each stands in one of the tables
below: run in the suite, run with --slow, run by another test, or not run here, and why.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import bigjax
from bigjax.core.rules import paths
from bigjax.verbs import launch
from experiments import breast_cancer_mlp, fashion_mnist_mlp_128_64

ROOT = Path(__file__).parent.parent
READMES = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"),
                 ROOT / "bigjax/run/checkpoint/README.md"]
    if "." not in path.relative_to(ROOT).parts[0] or path.parent == ROOT
)  # fmt: skip
COMMAND = r"(?:[A-Z_]+=\S+ )?(?:scripts/\w|\.venv/bin/python|python -m )"
SHORT = ("--config.train.steps=2", "--config.optimizer.schedule.warmup_steps=0")
TWO_STEPS = ("--config.train.steps=2", "--config.log.tensorboard=False")
EXPERIMENT = "breast_cancer_mlp"  # for NAME

# command -> what is added to it, to be short and to write into {tmp} alone. What stands in capitals in it is
# replaced by WORDS.
WORDS = {"NAME": EXPERIMENT, "ARGS": "config", "VERB": "config", "COLUMN": "step"}
FAST = {
    "scripts/run": "",
    "python -m experiments.NAME config": "",
    "python -m experiments runs DIR": "",
}
SLOW = {
    "scripts/run experiments.digits_distill": "--config.seeds=1 --config.train.steps=2",
    "scripts/run experiments.NAME ARGS": "",
    'python -m experiments.NAME --config.optimizer.learning_rate=0.1 --config.model.widths="(256, 128)"': (
        "--config.train.steps=2"
    ),
    "python -m experiments runs DIR --sort=COLUMN": "",
    "python -m experiments.NAME VERB": "",
    "scripts/run bigjax.sweep experiments.sweeps.digits_learning_rate --vectorize": (
        "--config.train.steps=2"
    ),
    "scripts/run bigjax.sweep experiments.digits_rnn --grid config.optimizer.learning_rate=1e-3,3e-3 --seeds=2": (
        "--config.train.steps=2"
    ),
    "python -m bigjax.sweep experiments.diabetes_regression --grid optimizer.learning_rate=1e-3,3e-4 --seeds=5": (
        "--config.train.steps=2"
    ),
    "scripts/run bigjax.doctor": "",
    "scripts/run experiments.NAME doctor": "",
    "XLA_FLAGS=--xla_force_host_platform_device_count=8 scripts/run bigjax.doctor": "",
    "scripts/faults --kind=bitflip,truncate,delete,swap,stale": "--times=1",
    "python -m experiments.gpt2_124m plan --topology=cpu:8": "",
    "python -m experiments.gpt2_124m sharding --simulate_devices=8 --config.mesh.fsdp=8": "",
    "python -m experiments.markov_transformer sharding --simulate_devices=8 --config.mesh.fsdp=4": "",
    "scripts/launch/local --processes=2 --devices_per_process=4 experiments.markov_transformer": (
        " ".join(SHORT)
    ),
}
# These exit with 1: on eight devices the doctor finds XLA's partitioner wrong, as its README says.
FINDS = ("XLA_FLAGS=--xla_force_host_platform_device_count=8 scripts/run bigjax.doctor",)
ELSEWHERE = {
    "scripts/verify [NAME...]": "test_figures.py",
    "scripts/run bigjax new mine --source=table": "test_notebook.py",
    ".venv/bin/python mine.py": "test_notebook.py",
    "python -m bigjax new NAME": "test_notebook.py",
    "python -m experiments.NAME [VERB] [--workdir=DIR] [--config.KEY=VALUE ...]": "the verbs, below",
    'python -m experiments.NAME --config.model.widhts="(256, 128)"': "the last test below",
    "python -m experiments.NAME export --workdir=RUN --output=FOLDER --format=safetensors": "verbs",
    "python -m experiments.NAME export --workdir=RUN --output=FOLDER --format=stablehlo": "test_exported.py",
    "python -m bigjax predict FOLDER --input=FILE": "test_exported.py",
    "python -m bigjax.sweep experiments.sweeps.digits_learning_rate --vectorize": "as the root's",
    "scripts/run bigjax.sweep reproduce DIR/manifest.json --workdir=NEW": "sweep/test_reproduce.py",
    "python -m bigjax.sweep reproduce runs/sweeps/digits_learning_rate --workdir=NEW": (
        "sweep/test_reproduce.py"
    ),
    "python -m experiments table > experiments/README.md": "test_figures.py",
    "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=+reduce python -m bigjax.doctor": (
        "test_compilers.py"
    ),
    "XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m bigjax.doctor": "SLOW, above",
    "scripts/run bigjax.doctor [--json] [--folder=DIR]": "SLOW, above",
}
PLAN = "needs libtpu or a CUDA plugin; tests/test_plan.py has them where they are"
NOT_HERE = {
    "python -m experiments.gpt2_124m plan --topology=h200:8 --config.mesh.fsdp=8 --config.mesh.data=1": PLAN,
    "python -m experiments.gpt2_124m plan --topology=v5e:16 --scale=64,256": PLAN,
    "python -m experiments.gpt2_124m plan --topology=v5e:16 --search=300": PLAN,
    "python -m experiments.gpt2_124m plan --topology=v5e:16 --suggest": PLAN,
    "python -m experiments.llama_70b plan --topology=h200:16 --config.train.batch_size=16 --scale=64,256,1024": PLAN,
    "python -m experiments.gpt2_124m plan --topology=v5e:4x4 --price_per_device_hour=1.2 --output=plan.html": PLAN,
    "scripts/test": "it is what runs this",
    "scripts/test --slow": "it is what runs this",
    "scripts/fetch_data NAME": "needs a network; tests/data runs each recipe on stand-ins",
    "scripts/fetch_data whisper_tiny_en": "needs a network, for 73 MB",
}


def commands():
    """Every command of the READMEs, as written, without what is said beside it."""
    found = {}
    for readme in READMES:
        for line in readme.read_text().splitlines():
            whole = re.match(rf"\s*({COMMAND}.*)", line)
            words = [whole[1]] if whole else re.findall(rf"`({COMMAND}[^`]*)`", line)
            for text in words:
                text = re.split(r"\s{2,}|\s+#", text)[0].strip()
                if " " in text or whole:  # else the mere name of a script
                    found[text] = readme
    return found


def run(command, extra, tmp_path):
    """Runs a command in the repository; python is this one, and scripts/run is what it runs."""
    text = re.sub(r" \[.*?\]", "", command)
    for word, value in {**WORDS, "DIR": str(tmp_path)}.items():
        text = re.sub(rf"\b{word}\b", value, text)
    words = shlex.split(f"{text} {extra}")
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    if "XLA_FLAGS" in words[0]:
        environment["XLA_FLAGS"] = words.pop(0).partition("=")[2]
    if words[0] == "scripts/run":
        words = ["python", "-m", *(words[1:] or ["experiments"])]
    if words[0] in ("python", ".venv/bin/python"):
        words[0] = sys.executable
    if {"train", "scripts/launch/local", "bigjax.sweep"} & {*words} or "train.steps" in extra:
        words.append(f"--workdir={tmp_path / 'run'}")
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550
    )


def test_every_command_is_run_or_said_not_to_be():
    known = [*FAST, *SLOW, *ELSEWHERE, *NOT_HERE]
    found = commands()
    assert sorted(set(found) - set(known)) == [], "in a README, and in no table here"
    assert sorted(set(known) - set(found)) == [], "in a table here, and in no README"
    files = [name for name in ELSEWHERE.values() if name.endswith(".py")]
    assert [name for name in files if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize(
    "command", [*FAST, *(pytest.param(text, marks=pytest.mark.slow) for text in SLOW)]
)
def test_the_command_runs_as_written(command, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")  # so that there is a run to list
    done = run(command, {**FAST, **SLOW}[command], tmp_path)
    assert done.returncode == (1 if command in FINDS else 0), done.stdout + done.stderr
    assert done.stdout.strip()
    assert "Gloo" not in done.stdout


# The verbs of the root README's table -> how they are called here.
VERBS = {
    "train": [],
    "evaluate [--split=NAME]": ["--split=test"],
    "predict --input=FILE [--output=FILE]": ["--input={tmp}/rows.csv", "--output={tmp}/out.jsonl"],
    "export [--output=FOLDER] [--family=NAME] [--format=stablehlo]": ["--output={tmp}/exported"],
    "shrink --chain=prune:0.9,int8": ["--chain=int8"],
    "config": [],
    "sharding [--simulate_devices=8] [--json]": ["--json"],
    "checkpoints [--verify]": ["--verify"],
    "replay --from=STEP [--steps=N]": ["--from=0", "--steps=2"],
    "doctor [--json]": None,  # a minute: SLOW has it
}


def test_every_verb_of_the_readme_works(tmp_path, capsys):
    section = (ROOT / "README.md").read_text().partition("## The command line\n")[2]
    assert re.findall(r"^\| `([^`]+)` \|", section.partition("\n## ")[0], re.MULTILINE) == [*VERBS]
    np.savetxt(tmp_path / "rows.csv", np.ones((3, 30)), delimiter=",")
    base = [f"--workdir={tmp_path / 'run'}", *TWO_STEPS, "--config.train.batch_size=8"]
    for verb, given in VERBS.items():
        if given is not None:
            words = [verb.split()[0], *base, *(text.format(tmp=tmp_path) for text in given)]
            code = launch.execute(f"experiments.{EXPERIMENT}", breast_cancer_mlp.get_config, words)
            assert code == 0, (verb, capsys.readouterr().err)
    exported = load_file(tmp_path / "exported" / "model.safetensors")  # under our own names
    leaves = paths(bigjax.open_run(tmp_path / "run").variables)
    assert exported.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(exported[path], leaf)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def blocks():
    """(README, code) for each block of Python."""
    for readme in READMES:
        for code in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
            yield pytest.param(code, id=f"{readme.parent.name}:{code.split()[0]}")


@pytest.mark.parametrize("code", list(blocks()))
def test_a_block_of_python_is_python_and_a_whole_one_runs(code):
    tree = ast.parse(code.replace(", ...)", ")"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    if imports and all(isinstance(n, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef
                                  | ast.If) for n in tree.body):  # fmt: skip
        exec(compile(tree, "README.md", "exec"), {"__name__": "readme"})


def test_the_experiment_of_the_readme_is_the_one_in_its_file(capsys):
    text = (ROOT / "README.md").read_text()
    code = text.partition("line by line\n")[2].partition("```python\n")[2].partition("```")[0]
    names = {"__name__": "readme"}
    exec(code, names)
    get_config = names["get_config"]
    assert get_config() == fashion_mnist_mlp_128_64.get_config()
    (line,) = re.findall(r"^    (error: .*), \.\.\.$", text, re.MULTILINE)
    assert launch.execute("experiments.x", get_config, ["--config.model.widhts=(256, 128)"]) == 2
    assert capsys.readouterr().err.startswith(line)
