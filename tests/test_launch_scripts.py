"""The launch scripts: what they would run, word for word, and a real job through SLURM.

Golden outputs are written anew by `python -m tests.test_launch_scripts --write`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "launch"
EXPERIMENT = ["experiments.digits_rnn", "--config.train.steps=7", "--config.mesh.fsdp=(1, 2)"]
COMMANDS = {
    "local": ["--processes=2", "--devices_per_process=4"],
    "slurm": ["--nodes=2", "--gpus=8", "--time=04:00:00", "--partition=big"],
    "kubernetes": ["--image=registry/bigjax:1", "--claim=runs", "--processes=4", "--gpus=8"],
    "tpu_vm": [
        *("--name=my-tpu", "--zone=us-west4-a", "--type=v5litepod-16"),
        *("--version=v2-alpha-tpuv5-lite", "--stages=create,copy,install,run,collect,delete"),
    ],
}


def start(script, *arguments, **environment):
    return subprocess.run(
        [ROOT / "scripts" / "launch" / script, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )


def dry_run(script):
    done = start(script, *COMMANDS[script], "--dry_run", *EXPERIMENT)
    assert done.returncode == 0, done.stderr
    python = ROOT / ".venv" / "bin" / "python"
    python = str(python) if python.exists() else sys.executable
    return done.stdout.replace(python, "PYTHON").replace(str(ROOT), "ROOT")


@pytest.mark.parametrize("script", COMMANDS)
def test_dry_run_prints_the_exact_commands(script):
    assert dry_run(script) == (GOLDEN / f"{script}.txt").read_text()


def test_kubernetes_manifest_is_a_service_and_an_indexed_job_that_find_each_other():
    manifest = dry_run("kubernetes").split("\nkubectl")[0]
    service, job = yaml.safe_load_all(manifest)
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"]
    command = pod["containers"][0]["command"]
    assert f"--coordinator={job['metadata']['name']}-0.{pod['subdomain']}:8476" in command
    assert EXPERIMENT[-1] in command  # quotes and blanks survive


def test_slurm_script_is_bash_that_passes_the_arguments_on(tmp_path):
    script = dry_run("slurm").partition("\n")[2].rpartition("\nsbatch")[0]
    fake = tmp_path / "srun"
    fake.write_text(
        f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[1:]))\n", "utf-8"
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script.replace("cd ROOT", "cd /")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)[-3:] == EXPERIMENT


def test_a_missing_program_is_one_line_and_exit_2(tmp_path):
    (tmp_path / "python3").symlink_to(sys.executable)
    done = start("tpu_vm", *COMMANDS["tpu_vm"], *EXPERIMENT, PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: no program 'gcloud' on this machine\n"


def test_local_gives_the_exit_code_of_wrong_input():
    done = start("local", "--processes=1", "experiments.digits_rnn", "--config.train.stps=1")
    assert done.returncode == 2
    assert "[0] error: config.train.stps" in done.stdout


@pytest.mark.slow
def test_slurm_runs_a_real_job_of_two_tasks(tmp_path):
    cluster = ROOT / "scripts" / "dev" / "local_slurm"
    if os.geteuid() != 0 or not (shutil.which("apt-get") or shutil.which("slurmctld")):
        pytest.skip("starting SLURM needs root and Debian's packages")
    started = subprocess.run([cluster, "start"], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"SLURM does not start here: {started.stderr}")
    try:
        name, run = "digits_rnn", tmp_path / "run"
        done = start(
            *("slurm", "--tasks=2", "--wait", f"experiments.{name}", f"--workdir={run}"),
            "--config.train.steps=3",
            SLURM_CONF="/tmp/bigjax_slurm/slurm.conf",
            XLA_FLAGS="",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((run / "result.json").read_text())["step"] == 3
        assert json.loads((run / "manifest.json").read_text())["devices"]["processes"] == 2
    finally:
        subprocess.run([cluster, "stop"], check=True)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for script in COMMANDS:
        (GOLDEN / f"{script}.txt").write_text(dry_run(script))
