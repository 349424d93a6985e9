"""The command line: verbs, flags, exit codes, signals, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigjax import pipeline
from bigjax.config import resolve as configs
from bigjax.sweep import flags as sweep_flags
from bigjax.sweep import reproduce
from bigjax.verbs import launch
from tests.small import small_config

ROOT = Path(__file__).parent.parent


def run(*arguments, get_config=small_config):
    return launch.execute("experiments.small", get_config, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "run"
    assert run("--workdir", folder) == 0
    return folder


def test_training_ends_in_a_table_and_the_place_of_the_report(tmp_path, capsys):
    assert run(f"--workdir={tmp_path / 'run'}", "--config.train.steps=2") == 0
    out = capsys.readouterr().out
    assert "eval/test/accuracy" in out
    assert str(tmp_path / "run" / "report.html") in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evalute"], ["evalute", "did you mean 'evaluate'"]),
        (["--wrkdir=x"], ["--wrkdir", "did you mean '--workdir'"]),
        (["--conifg.train.steps=2"], ["--conifg.train.steps", "did you mean"]),
        (["--config.train.stps=2"], ["train.stps", "did you mean 'steps'"]),
        (["--config.train.steps"], ["--config.KEY=VALUE"]),
        (["predict", "--workdir={run}"], ["--input"]),
        (["predict", "--workdir={run}", "--input=/none.npz"], ["/none.npz", "no such file"]),
        (["predict", "--workdir={run}", "--input={run}/config.json"], [".npz, .csv"]),
        (["evaluate", "--workdir={run}", "--split=tst"], ["did you mean 'test'"]),
        (["evaluate", "--workdir={run}/none"], ["holds no run"]),
        (["--workdir={run}", "--config.model.widths=(3,)"], ["model.widths: (8,) -> (3,)"]),
        (["--config.train.batch_size=12", "--workdir={run}x"], ["8 or 16 would"]),
        (["--config.mesh.data=3", "--workdir={run}x"], ["8 devices"]),
        (["--config.data.source.name=digit", "--workdir={run}x"], ["digit"]),
        (["--config.data.splits.test=tst", "--workdir={run}x"], ["tst"]),
        (["--config.model.type=cnn", "--workdir={run}x"], ["widths"]),
        (["--lr=3"], ["--lr", "did you mean '--config.optimizer.learning_rate'"]),
        (["--batch-size=3"], ["did you mean '--config.train.batch_size'"]),
        (["--learning_rat=3"], ["did you mean '--config.optimizer.learning_rate'"]),
        (
            ["--steps=2", "--workdir={run}x"],
            ["goes with replay", "did you mean '--config.train.steps'"],
        ),
        (["config", "--output=x"], ["--output goes with predict, export, plan; not with config"]),
        (["--stage=teacher"], ["--stage=teacher", "not a pipeline"]),
        (["--workdir={run}/config.json"], ["config.json", "is a file"]),
        (["--workdir={run}/config.json/run"], ["config.json"]),
        (["predict", "--workdir={run}", "--input={run}", "--output={run}/no/x"], ["no folder"]),
        (["--config.train.epochs=1e999", "--workdir={run}x"], ["train.epochs", "finite"]),
        (["--config.train.epochs=1e300", "--workdir={run}x"], ["more than a run can count"]),
        (["--config.train.steps=1" + "0" * 40, "--workdir={run}x"], ["train.steps", "64"]),
        (["--config.evaluate.batch_size=0", "--workdir={run}x"], ["evaluate.batch_size"]),
        (["--config.evaluate.batch_size=12", "--workdir={run}x"], ["8 or 16 would"]),
        (["evaluate", "--config.evaluate.batch_size=-4", "--workdir={run}"], ["more than 0"]),
        (["--config.data.source.name='a\\x00'", "--workdir={run}x"], ["data.source.name"]),
    ],
)
def test_wrong_input_is_one_clear_line_and_code_2(trained, capsys, arguments, words):
    assert run(*[a.format(run=trained) for a in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = [text for text in captured.err.splitlines() if text.startswith("error: ")]
    assert captured.err.count("error: ") == 1
    for word in words:
        assert word in line
    assert "Traceback" not in captured.err
    assert not Path(f"{trained}x").exists()


def test_config_prints_every_value_with_its_origin(capsys):
    assert run("config", "--config.optimizer.b1=0.8") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["optimizer.b1"].endswith("command line")
    assert lines["optimizer.type"].endswith("experiment")
    assert lines["optimizer.b2"].endswith("default")
    assert len(lines["fingerprint"].split()[1]) == 64


def test_the_word_none_is_a_word_where_the_key_takes_one():
    raw = small_config(
        model=dict(type="gpt2", vocab=9, layers=1, width=8, heads=2, context=4),
        task=dict(type="language_model"),
    )
    found = configs.resolve(raw, ["model.remat=none", "model.mlp_width=none"])
    assert found.get("model.remat") == "none" and found.get("model.mlp_width") is None


def test_a_tilde_is_the_home_folder(trained, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(trained.parent))
    assert run("checkpoints", "--workdir=~/run") == 0
    assert str(trained) in capsys.readouterr().out


def two_stages():
    small = small_config(
        train=dict(steps=2, batch_size=40), evaluate=dict(splits=("test",), every="end")
    )
    taught = small.copy_and_resolve_references()
    taught.distill = dict(teacher="../teacher", temperature=2.0, alpha=0.5)
    return pipeline(dict(teacher=small, student=taught), table=("eval/test/accuracy",))


def test_a_stage_of_a_pipeline_is_named(tmp_path, capsys):
    folder = f"--workdir={tmp_path / 'run'}"
    for verb in ("evaluate", "predict", "export", "replay"):
        assert run(verb, folder, get_config=two_stages) == 2
        assert "--stage=teacher (or student)" in capsys.readouterr().err
    assert run("evaluate", folder, "--stage=teachr", get_config=two_stages) == 2
    assert "did you mean 'teacher'" in capsys.readouterr().err
    assert run("evaluate", folder, "--stage=seed1/teacher", get_config=two_stages) == 2
    assert "seed0" in capsys.readouterr().err
    assert run("config", "--stage=student", get_config=two_stages) == 0
    out = capsys.readouterr().out
    assert "# stage student" in out and "# stage teacher" not in out
    assert run("sharding", "--stage=student", "--json", get_config=two_stages) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["student"]
    assert not (tmp_path / "run").exists()
    assert run(folder, get_config=two_stages) == 0
    capsys.readouterr()
    assert run("evaluate", folder, "--stage=student", get_config=two_stages) == 0
    metrics = json.loads((tmp_path / "run/seed0/student/result.json").read_text())["metrics"]
    assert f"{metrics['eval/test/loss']:.4g}" in capsys.readouterr().out


def test_fresh_sets_the_old_run_aside_and_deletes_nothing(tmp_path, capsys):
    folder, short = f"--workdir={tmp_path / 'run'}", "--config.train.steps=2"
    assert run(folder, short, "--name=first", "--tag=a", "--tag=b", "--notes=by hand") == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    labels = [manifest[key] for key in ("name", "tags", "notes")]
    assert labels == ["first", ["a", "b"], "by hand"]
    assert run(folder, "--config.train.steps=3") == 2
    err = capsys.readouterr().err
    assert "--fresh" in err and "past its end --allow_changed=train.steps" in err
    assert run(folder, "--fresh", "--config.train.stps=3") == 2  # nothing moves
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    capsys.readouterr()
    assert run(folder, "--fresh", "--config.train.steps=3") == 0
    (aside,) = [path for path in tmp_path.iterdir() if path.name != "run"]
    assert str(aside) in capsys.readouterr().out
    assert json.loads((aside / "result.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "run/result.json").read_text())["step"] == 3
    assert run(folder, "--config.train.steps=3") == 0  # finished: says how to go on
    assert "--allow_changed=train.steps" in capsys.readouterr().err
    assert run("replay", folder, "--from=0", "--steps=5") == 0
    out = capsys.readouterr().out
    assert "steps 1 to 3 (of 5 asked for)" in out and "logged steps" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiments.digits_distil"], "did you mean digits_distill"),
        (["experiments", "digits_rn"], "did you mean digits_rnn"),
        (["experiments", "digits_rnn"], "write experiments.digits_rnn"),
        (["experiments.zzz"], "the list: python -m experiments"),
    ],
)
def test_a_misspelt_experiment_names_the_nearest(words, said):
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_evaluate_repeats_the_figures_of_the_run(trained, capsys):
    assert run("evaluate", "--workdir", trained) == 0
    out = capsys.readouterr().out
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert f"{metrics['eval/test/loss']:.4g}" in out
    assert f" {metrics['eval/test/errors']:.4g}" in out


def test_predict_reports_bad_rows_and_goes_on(trained, tmp_path, capsys):
    from sklearn.datasets import load_digits

    images = load_digits().images[:90].reshape(-1, 64)
    lines = [",".join(str(int(x)) for x in row) for row in images]
    lines.insert(2, "1,2,three")
    lines.insert(5, "1,2")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    output = tmp_path / "out.jsonl"
    code = run(
        "predict", "--workdir", trained, "--input", tmp_path / "rows.csv", "--output", output
    )
    assert code == 0
    errors = capsys.readouterr().err
    assert "row 2: column 3: 'three' is not a number" in errors
    assert "row 5: has shape (2,)" in errors
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["row"] for row in rows] == [i for i in range(92) if i not in (2, 5)]
    assert all(0 <= row["class"] < 10 and 0 < row["probability"] <= 1 for row in rows)

    np.savez(tmp_path / "rows.npz", image=images.reshape(-1, 8, 8, 1).astype(np.uint8))
    again = tmp_path / "again.jsonl"
    run("predict", "--workdir", trained, "--input", tmp_path / "rows.npz", "--output", again)
    same = [json.loads(line) for line in again.read_text().splitlines()]
    assert [r["class"] for r in same] == [r["class"] for r in rows]


def test_predict_reads_a_folder_of_pictures(trained, tmp_path, capsys):
    from PIL import Image

    for name in ("a.png", "b.jpg"):
        Image.fromarray(np.full((20, 20), 128, np.uint8)).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    assert run("predict", "--workdir", trained, "--input", tmp_path) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["row"] for line in captured.out.splitlines()] == ["a.png", "b.jpg"]
    assert "c.png" in captured.err


def test_listing_names_every_experiment():
    done = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    files = {f.stem for f in (ROOT / "experiments").glob("*.py") if not f.stem.startswith("_")}
    assert files <= names


def start(folder, *arguments):
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.digits_distill", f"--workdir={folder}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75_and_the_run_goes_on(tmp_path, number):
    arguments = ("--config.seeds=1", "--config.train.steps=1500", "--config.log.every=1")
    process = start(tmp_path / "run", *arguments)
    for line in process.stderr:
        if line.startswith("step 5/"):
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    steps = [
        int(p.name)
        for p in (tmp_path / "run/seed0/teacher/checkpoints").iterdir()
        if p.name.isdigit()
    ]
    assert len(steps) == 1
    process = start(tmp_path / "run", *arguments)
    for line in process.stderr:
        if "resume" in line:
            break
    process.kill()
    process.communicate()
    assert f"step {steps[0]}" in line


def test_a_closed_terminal_asks_to_stop_and_nohup_forbids_it():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for as_started, asked in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
            signal.signal(signal.SIGHUP, as_started)
            stop = launch.Stop()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() == asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_wrong_config_is_refused_before_a_device_is_touched():
    code = (
        "import sys; sys.argv = ['x', '--config.model.widhts=3'];"
        "from bigjax import launch; from tests.small import small_config;"
        "code = launch.execute('experiments.x', small_config, sys.argv[1:]);"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized();"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("parse", [sweep_flags.parse, reproduce._parse])
def test_a_tilde_is_the_home_folder_of_a_sweep_too(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options, _ = parse(["experiments.x", "--workdir=~/sweep"])
    assert options.workdir == Path("/home/me/sweep")
