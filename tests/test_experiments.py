"""Every experiment: its final config as committed text, and two steps of it.

A new file under experiments/ is found by itself. When a config changes on purpose, write the texts
anew with `python -m tests.test_experiments --write` and commit the difference.
"""

import gzip
import hashlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bigjax.config import resolve as configs
from bigjax.loop import stages
from bigjax.verbs import launch
from scripts import fetch
from scripts.fetch import fashion_mnist
from tests import stand_ins

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "configs"
NAMES = sorted(
    file.stem for file in (ROOT / "experiments").glob("*.py") if not file.stem.startswith("_")
)
WRITE = "python -m tests.test_experiments --write"


# Every model of an experiment in two steps' time: what its config says of size, said smaller.
TINY = {
    "layers": 1,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "mlp_width": 64,
    "channels": 8,
    "widths": 8,
}
# What keeps the data of full size small enough.
DECODER = [
    "data.source.path=brown",
    "data.source.tokenizer=smollm2",
    "data.source.length=32",
    "train.accumulate=1",
    "model.vocab=400",
    "model.context=32",
]
SMALLER: dict[str, list[str]] = {
    "gpt2_124m": DECODER,
    "gpt2_350m": DECODER,
    "llama_1b": DECODER,
    "llama_7b": DECODER,
    "llama_70b": DECODER,
    "brown_gpt_distill": ["data.splits.train=train"],
    "cartpole_ppo": ["stages.ppo.method.rollout=8"],
    "fashion_mnist_dp": ["method.lot=2"],
    "digits_federated": [
        f"stages.{stage}.method.{field}"
        for stage in ("fedsgd", "fedavg")
        for field in ("rows=1", "clients=1000", "concentration=None", "local_batch=None")
    ],
    "fashion_mnist_flow": [
        "stages.flow.evaluators.samples.per_class=2",
        "stages.flow.evaluators.samples.steps=1",
    ],
    "imagenet_vit_s16": ["data.workers=1"],
    "minilm_to_tiny": [f"stages.student_{how}.init.layers=(1,)" for how in ("alone", "distilled")],
    "sentiment_distilbert": [
        "stages.student_distilled.method.objectives.cosine.layers=((0, 1),)",
        *(
            f"stages.student_{how}.{field}"
            for how in ("alone", "distilled")
            for field in ("init.layers=(0,)", "model.vocab=247", "model.context=64")
        ),
    ],
    "markov_transformer": ["data.source.examples=64"],
    "markov_mixture": ["data.source.examples=64", "data.sources.rare.examples=64"],
}


def get_config(name):
    return importlib.import_module(f"experiments.{name}").get_config()


# Their weights' stand-ins are written by torch.
BY_TORCH = ("emoji_finetune_efficientnet", "emoji_resnet_to_conv", "minilm_search", "minilm_to_tiny", "sentiment_bert",
            "sentiment_distilbert", "smollm2_chat", "smollm2_finetune", "smollm2_lora", "smollm2_qlora", "sentiment_finetune")  # fmt: skip


def without_torch(name):
    return [
        pytest.mark.skipif(
            name in BY_TORCH and not stand_ins.HAS_TORCH, reason="torch writes its weights"
        )
    ]


def final_config(name):
    """Every final value of an experiment, one a line, as text."""
    raw = get_config(name)
    if not stages.is_pipeline(raw):
        return lines(configs.resolve(raw))
    found, seeds, columns = stages.resolve(raw, [])
    parts = [f"seeds = {seeds!r}\ntable = {columns!r}\n"]
    parts += [f"[{stage}]\n{lines(config)}" for stage, config in found.items()]
    return "\n".join(parts)


def lines(config):
    values = configs.flatten(config.values)
    derived = {path for path, origin in config.origins.items() if origin == "checkpoint"}
    return "".join(
        f"{path} = {'(from the checkpoint)' if path in derived else repr(value)}\n"
        for path, value in values.items()
    )


@pytest.mark.parametrize("name", [pytest.param(name, marks=without_torch(name)) for name in NAMES])
def test_no_final_config_changes_unseen(name, data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    golden = GOLDEN / f"{name}.txt"
    assert golden.exists(), f"{golden} is missing; write it with: {WRITE}"
    assert final_config(name) == golden.read_text(), f"if this is meant: {WRITE}"


def test_every_golden_config_has_its_experiment():
    assert sorted(file.stem for file in GOLDEN.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_gives_command_and_hardware(name):
    text = importlib.import_module(f"experiments.{name}").__doc__
    assert f"scripts/run experiments.{name}" in text
    assert "CPU core" in text or "GPU" in text or "TPU" in text


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data dir with a Fashion-MNIST of 64 + 64 random pictures, and all else made as small."""
    folder, idx = tmp_path_factory.mktemp("tfds"), tmp_path_factory.mktemp("idx")
    generator = np.random.default_rng(0)
    digests = {}
    for name in fashion_mnist.FASHION_MNIST_FILES:
        shape = (64, 28, 28) if "images" in name else (64,)
        values = generator.integers(0, 256 if "images" in name else 10, shape).astype(np.uint8)
        sizes = np.array(shape, ">i4").tobytes()
        content = bytes([0, 0, 8, len(shape)]) + sizes + values.tobytes()
        (idx / name).write_bytes(gzip.compress(content))
        digests[name] = hashlib.sha256(content).hexdigest()
    stand_ins.write_all(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "FASHION_MNIST_FILES", digests)
        fetch.fetch_fashion_mnist(str(idx), str(folder))
    return folder


# Of many stages, or what another one runs with other sizes or data: by hand, with --slow.
LONG = (
    "brown_bert",
    "brown_gpt_distill",
    "brown_gpt_int4",
    "distil_prune_quantize",
    "digits_omitted_class",
    "emoji_finetune_efficientnet",
    "emoji_resnet_to_conv",
    "fashion_mnist_cnn",
    "fashion_mnist_distill",
    "fashion_mnist_distill_methods",
    "fashion_mnist_flow",
    "fashion_mnist_prune",
    "fashion_mnist_resnet18",
    "gpt2_124m",
    "gpt2_350m",
    "imagenet_vit_s16",
    "kjv_es_translate",
    "llama_1b",
    "llama_7b",
    "llama_70b",
    "markov_transformer",
    "minilm_to_tiny",
    "mnist1d_consistent_teacher",
    "sentiment_bert",
    "sentiment_distilbert",
    "sentiment_finetune",
    "smollm2_qlora",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in LONG) + without_torch(name))
        for name in NAMES
    ],
)
def test_every_experiment_runs_two_steps(name, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert (
        launch.execute(f"experiments.{name}", lambda: get_config(name), short(name, tmp_path)) == 0
    )
    assert "report.html" in capsys.readouterr().out


def short(name, folder):
    """Arguments that make an experiment two steps long, with 16 examples to evaluate."""
    raw = configs.plain(get_config(name))
    stages = raw.get("stages", {"": raw})
    runs = stages.values()
    splits = {s: split for run in runs for s, split in run["data"]["splits"].items()}
    small = [
        f"data.splits.{s}={split.split('[')[0]}[:16]" for s, split in splits.items() if s != "train"
    ]
    if re.search(r"\[:?\d+:?\]", splits["train"]):  # thousands of examples, of which there are 64
        small.append(f"data.splits.train={splits['train'].split('[')[0]}")
    small += [
        "train.steps=2",
        "train.batch_size=8",
        "evaluate.batch_size=8",
        "log.tensorboard=False",
    ]
    small += ["optimizer.schedule.warmup_steps=0"]
    small += ["seeds=1"] if "stages" in raw else []
    for stage, run in stages.items():
        where = f"stages.{stage}." if stage else ""
        small += [
            f"{where}model.{key}={(TINY[key],) * len(size) if isinstance(size, tuple) else TINY[key]}"
            for key, size in run["model"].items()
            if key in TINY
        ]
        tokenizer = run["data"]["source"].get("tokenizer", "")
        if re.search(r"-\d+", tokenizer):  # trained, on the little there is
            small.append(f"{where}data.source.tokenizer={re.sub(r'-[0-9]+', '-300', tokenizer)}")
            small.append(f"{where}model.vocab=300")
        if any("end" in part for part in run.get("adapt", ())):
            at_once = tuple({**part, "begin": 0, "end": 0} for part in run["adapt"])
            small.append(f"{where}adapt={at_once!r}")
    small += SMALLER.get(name, [])
    return [f"--workdir={folder / 'run'}", *(f"--config.{text}" for text in small)]


TRAIN = """
import sys
from bigjax.verbs import launch
from experiments.breast_cancer_mlp import get_config
arguments = ["--config.train.steps=2", "--config.train.batch_size=8", f"--workdir={sys.argv[1]}"]
code = launch.execute("experiments.breast_cancer_mlp", get_config, arguments)
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_a_training_run_imports_neither_tensorflow_nor_torch(tmp_path):
    """A stand-in for TensorFlow lies on the path, so that an import is seen where it is absent."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow is imported')")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "tensorboard").exists()


def test_what_an_experiment_imports_takes_little_processor_time():
    code = "import time; import bigjax.verbs.launch; print(time.process_time())"
    times = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stdout)
        for _ in range(2)
    ]
    assert min(times) < 3.0  # scripts/benchmarks/import_time.py measures it against 1.5 s


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {WRITE}")
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for file in GOLDEN.glob("*.txt"):
        file.unlink()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TFDS_DATA_DIR"] = folder
        stand_ins.write_all(Path(folder))
        for name in NAMES:
            (GOLDEN / f"{name}.txt").write_text(final_config(name))
    print(f"wrote {len(NAMES)} configs under {GOLDEN.relative_to(ROOT)}")
