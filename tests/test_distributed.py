"""Many real processes: the same numbers as one, each reads its own rows, and they end together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.core.order import sample_ids
from bigjax.core.rules import paths
from bigjax.loop.open import open_run
from bigjax.mesh import distributed

ROOT = Path(__file__).resolve().parent.parent
LOCAL = [ROOT / "scripts/launch/local", "--processes=2", "--devices_per_process=4"]
MODULE = "tests.many_processes"


def run(folder, command, mishap=None):
    """Runs the driver; its run lies in folder/run, its reads in folder."""
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"BIGJAX_READS": str(folder), "PYTHONPATH": str(ROOT)}
    if mishap:
        environment["BIGJAX_MISHAP"] = mishap
    done = subprocess.run(
        [*command, f"--workdir={folder / 'run'}"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    ended = time.time()
    mishap_file = folder / "mishap"
    seconds = ended - float(mishap_file.read_text()) if mishap_file.exists() else None
    return done, seconds


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    done, _ = run(folder, [sys.executable, "-m", MODULE, "--simulate_devices=8"])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done, _ = run(folder, [*LOCAL, MODULE])
    assert done.returncode == 0, done.stdout
    (folder / "output.txt").write_text(done.stdout)
    return folder


def metrics_of(folder):
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_of_four_devices_train_as_one_of_eight(one, two, tmp_path, monkeypatch):
    ours, theirs = metrics_of(two), metrics_of(one)
    assert [list(line) for line in ours] == [list(line) for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        for name in expected:
            np.testing.assert_allclose(line[name], expected[name], rtol=1e-6, atol=1e-7)
    monkeypatch.setenv("BIGJAX_READS", str(tmp_path))
    params = [paths(open_run(f / "run", trust=True).state.params) for f in (two, one)]
    assert params[0].keys() == params[1].keys()
    for path in params[0]:
        np.testing.assert_allclose(params[0][path], params[1][path], rtol=0, atol=1e-6)


def test_each_process_reads_only_its_own_rows_of_every_step(two):
    positions = np.arange(20 * 48).reshape(20, 48)
    ids, _ = sample_ids(3, positions, 1000)
    for process in (0, 1):
        own = ids[:, process * 24 : (process + 1) * 24].tolist()
        lines = (two / f"train-{process}.jsonl").read_text().splitlines()
        reads = [json.loads(line) for line in lines]
        assert reads[:20] == own  # then the reader runs ahead
        assert {len(read) for read in reads} == {24}


def test_evaluation_counts_every_example_once(two):
    result = json.loads((two / "run/result.json").read_text())
    assert np.sum(result["metrics"]["eval/test/confusion_matrix"]) == 797
    read = [
        {i for line in (two / f"test-{p}.jsonl").read_text().splitlines() for i in json.loads(line)}
        for p in (0, 1)
    ]
    assert read[0] | read[1] == set(range(797))
    assert read[0] & read[1] <= {796}  # padding repeats the last


def test_only_process_0_talks_and_writes(two):
    lines = (two / "output.txt").read_text().splitlines()
    assert sum("eval/test/accuracy" in line and line.startswith("[0] step") for line in lines) == 2
    said = [line for line in lines if line.startswith("[1]")]
    assert said == []
    manifest = json.loads((two / "run/manifest.json").read_text())
    assert manifest["devices"]["processes"] == 2


@pytest.mark.slow
def test_two_processes_predict_what_one_does(tmp_path, one, two):
    images = np.random.default_rng(0).integers(0, 17, (5, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "in.npz", image=images)
    found = []
    for number, (folder, command) in enumerate(
        ((two, [*LOCAL, MODULE]), (one, [sys.executable, "-m", MODULE, "--simulate_devices=8"]))
    ):
        files = [f"--input={tmp_path / 'in.npz'}", f"--output={tmp_path / str(number)}"]
        done, _ = run(folder, [*command, "predict", *files])
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (tmp_path / str(number)).read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    assert len(found[0]) == 5
    assert [line["class"] for line in found[0]] == [line["class"] for line in found[1]]


def test_wrong_input_on_one_process_ends_all_with_its_message_and_2(tmp_path):
    done, _ = run(tmp_path, [*LOCAL, MODULE], "wrong_input 1")
    assert done.returncode == 2
    assert "[1] error: no data on this machine" in done.stdout
    assert "[0] error: process 1 of 2: no data on this machine; process 0 ends" in done.stdout
    assert "Traceback" not in done.stdout
    assert done.stderr.count("exit code 2") == 2


def test_death_of_a_process_ends_the_others_within_30_seconds(tmp_path):
    done, seconds = run(tmp_path, [*LOCAL, MODULE], "kill 1")
    print(f"\nended {seconds:.1f} s after the death")
    assert seconds < 30
    assert done.returncode == 1
    assert "process 1 was killed by SIGKILL" in done.stderr
    assert "[0] error: process 1 of 2: died; process 0 ends" in done.stdout
    assert "process 0: exit code 1" in done.stderr


@pytest.mark.slow
def test_death_of_process_0_ends_the_others_within_30_seconds(tmp_path):
    done, seconds = run(tmp_path, [*LOCAL, MODULE], "kill 0")
    print(f"\nended {seconds:.1f} s after the death")
    assert seconds < 30
    assert done.returncode == 1
    assert "[1] error: process 0 of 2: died" in done.stdout
    assert "process 1: exit code 1" in done.stderr


@pytest.mark.slow
def test_exception_on_one_process_ends_all_with_its_message_and_1(tmp_path):
    done, seconds = run(tmp_path, [*LOCAL, MODULE], "raise 1")
    print(f"\nended {seconds:.1f} s after the exception")
    assert seconds < 30
    assert done.returncode == 1
    assert "RuntimeError: the disk fell off; process 0 ends" in done.stdout
    assert "[1] Traceback" in done.stdout and "[0] Traceback" not in done.stdout
    assert done.stderr.count("exit code 1") == 2


def test_sigterm_on_one_process_stops_all_at_one_step_and_the_run_goes_on(tmp_path, two):
    # Long enough that the agreement (a second or so) comes before the end.
    command = [*LOCAL, MODULE, "--config.train.steps=100000", "--config.evaluate.every=end"]
    command += ["--config.checkpoint.every=end"]
    done, _ = run(tmp_path, command, "stop 1")
    assert done.returncode == 75, done.stdout
    stopped = [line for line in done.stdout.splitlines() if "stopped on request" in line]
    steps = {line.split("after step ")[1].split(",")[0] for line in stopped}
    assert len(stopped) == 2 and len(steps) == 1
    assert [p.name for p in (tmp_path / "run/checkpoints").glob("*")] == list(steps)


def test_processes_set_a_corrupted_checkpoint_aside_and_go_on_from_the_same_one(tmp_path, two):
    workdir = tmp_path / "run"
    shutil.copytree(two / "run", workdir)
    (workdir / "result.json").unlink()
    newest = workdir / "checkpoints" / "20"
    data = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    done, _ = run(tmp_path, [*LOCAL, MODULE])
    assert done.returncode == 0, done.stdout
    assert "resumed at step 10 of 20" in done.stdout
    assert list((workdir / "checkpoints" / "bad").glob("20-*/why.txt"))
    fingerprints = {
        json.loads((folder / "run/result.json").read_text())["fingerprint"]
        for folder in (tmp_path, two)
    }
    assert len(fingerprints) == 1


@pytest.mark.slow
def test_bad_numbers_rewind_and_then_end_all_processes_with_one_message(tmp_path):
    checks = ("--config.check.policy=rewind", "--config.check.max_rewinds=1")
    divergence = ("--config.optimizer.type=sgd", "--config.optimizer.learning_rate=1e30")
    done, _ = run(tmp_path, [*LOCAL, MODULE, *checks, *divergence])
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("going back to the newest checkpoint") == 2  # each process, once
    assert "after 1 rewind" in done.stdout
    assert done.stderr.count("exit code 1") == 2


def test_a_lone_process_neither_waits_nor_joins(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "1",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_NODELIST": "here",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "OMPI_COMM_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert not distributed.is_joined() and distributed.is_leader()
    assert distributed.agree(True) and not distributed.agree(False)


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "x"}, None),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "tpu,cpu"}, "Cloud TPU"),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
        ({}, None),
    ],
)
def test_clusters_are_told_from_interactive_shells(monkeypatch, environment, cluster):
    for name in [n for n in os.environ if n.startswith(("SLURM", "OMPI", "KUBERNETES", "TPU"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.detected_cluster() == cluster


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", 2, None), "give --process_id too"),
        ((None, None, 1), "give --coordinator and --processes too"),
        (("host", 2, 0), "must be HOST:PORT"),
        (("host:1", 2, 2), "must lie in 0..1"),
        (("host:1", 0, 0), "--processes=0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        distributed.initialize(*flags)


@pytest.mark.slow
def test_ctrl_c_reaches_every_process(tmp_path):
    environment = {**os.environ, "BIGJAX_READS": str(tmp_path), "XLA_FLAGS": ""}
    command = [*LOCAL, MODULE, f"--workdir={tmp_path / 'run'}", "--config.train.steps=100000"]
    with subprocess.Popen(
        [*command, "--config.evaluate.every=end"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        for line in launcher.stdout:
            if "step 5/" in line:
                launcher.send_signal(signal.SIGINT)
                break
        output = launcher.stdout.read()
    assert launcher.returncode == 75, output
    assert output.count("stopped on request") == 2
