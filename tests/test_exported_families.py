"""Every family through the verb: exported, checked against its run, and asked by `python -m bigjax predict`.

The verb itself refuses what answers otherwise than the run by 1e-5 (`bigjax.export.write`); the runs have random
weights, untrained. ONNX needs jax2onnx, onnx and onnxruntime.
"""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from bigjax.__main__ import main
from bigjax.build.assemble import assemble
from bigjax.compress import folder
from bigjax.compress.chain import Changed
from bigjax.config.resolve import resolve
from bigjax.core.rules import map_with_path
from bigjax.pretrained.families import open_family
from bigjax.verbs import launch

RNG = np.random.default_rng(0)
ROWS = 8  # one for each of the devices that the tests simulate
SEGMENTS = (np.arange(8) < np.int32([8, 5, 8, 3, 8, 7, 8, 2])[:, None]).astype(np.int32)
COLUMNS = dict(
    image=RNG.integers(0, 256, (ROWS, 32, 32, 3)).astype(np.uint8),
    sequence=RNG.normal(size=(ROWS, 8, 4)).astype(np.float32),
    audio=RNG.normal(size=(ROWS, 16, 4)).astype(np.float32),
    tokens=RNG.integers(1, 40, (ROWS, 8)).astype(np.int32),
    tags=RNG.integers(0, 3, (ROWS, 8)).astype(np.int32),
    segments=SEGMENTS,
    label=np.arange(ROWS).astype(np.int32) % 3,
)
COLUMNS |= dict(source=COLUMNS["tokens"], source_segments=SEGMENTS)
COLUMNS |= dict(target=COLUMNS["tokens"][:, ::-1].copy(), target_segments=SEGMENTS)
TEXT = dict(vocab=40, layers=2, width=16, heads=2)
READ = dict(input=("tokens", "segments"))
PICTURE = dict(task=dict(type="classification"), preprocess=(dict(type="normalize", scale=255.0),))
OF_TEXT = dict(task=dict(type="classification", **READ))
ENCODER = dict(type="bert", **TEXT, context=8, head="sequence", outputs=3)
WRITES = dict(task=dict(type="language_model", **READ))
VIT = dict(type="vit", image=32, patch=16, layers=2, width=16, heads=2, outputs=3)


def encoder(name):
    """A BERT with the choices of a family."""
    family = open_family(name)
    choices = dict(family.choices)
    if choices.get("positions") == "rotary":
        choices |= dict(layer_kinds=("full", "local"), window=3)
    if name == "albert":  # whose layout always has a map behind its tables
        choices |= dict(embedding_width=8)
    return dict(model={**ENCODER, **choices}, **OF_TEXT)


FAMILIES = {
    "mlp": dict(model=dict(type="mlp", widths=(8,), outputs=3), **PICTURE),
    "cnn": dict(model=dict(type="cnn", channels=(4, 8), outputs=3, batch_norm=True), **PICTURE),
    "rnn": dict(
        model=dict(type="rnn", widths=(8,), outputs=3),
        task=dict(type="classification", input="sequence"),
    ),
    "resnet": dict(model=dict(type="resnet", layers=(1, 1), width=8, outputs=3), **PICTURE),
    "bottleneck": dict(
        model=dict(type="resnet", layers=(1, 1), width=8, outputs=3, block="bottleneck"), **PICTURE
    ),
    "vgg": dict(model=dict(type="vgg", layers=(1, 1), width=8, dense=(8,), outputs=3), **PICTURE),
    "mobilenet_v2": dict(model=dict(type="mobilenet_v2", width=0.25, outputs=3), **PICTURE),
    "efficientnet": dict(model=dict(type="efficientnet", width=0.25, outputs=3), **PICTURE),
    "efficientnet_lite": dict(
        model=dict(type="efficientnet_lite", width=0.25, outputs=3), **PICTURE
    ),
    "vit": dict(model=VIT, **PICTURE),
    "vit_mean": dict(model=VIT | dict(pool="mean", positions="sincos"), **PICTURE),
    "vit_map": dict(model=VIT | dict(pool="map"), **PICTURE),
    "deit": dict(model=VIT | dict(distillation=True), **PICTURE),
    "bert": dict(model=ENCODER, **OF_TEXT),
    "bert_mlm": dict(
        model=dict(type="bert", **TEXT, context=8, head="mlm"), task=dict(type="masked_lm", **READ)
    ),
    "bert_tags": dict(
        model=ENCODER | dict(head="tokens"), task=dict(type="token_tagging", labels="tags", **READ)
    ),
    "roberta": encoder("roberta"),
    "distilbert": encoder("distilbert"),
    "electra": encoder("electra"),
    "albert": encoder("albert"),
    "modernbert": encoder("modernbert"),
    "gpt2": dict(model=dict(type="gpt2", **TEXT, context=8), **WRITES),
    "llama": dict(model=dict(type="llama", **TEXT, context=8, kv_heads=1, mlp_width=24), **WRITES),
    "t5": dict(model=dict(type="t5", **TEXT), task=dict(type="seq2seq")),
    "clip": dict(
        model=dict(
            type="two_towers",
            image=32,
            patch=16,
            image_layers=1,
            image_width=16,
            image_heads=2,
            vocab=40,
            context=8,
            text_layers=1,
            text_width=16,
            text_heads=2,
            embedding=8,
        ),
        task=dict(type="image_text"),
        preprocess=PICTURE["preprocess"],
    ),
    "whisper": dict(
        model=dict(type="whisper", **TEXT, mel=4, frames=8, context=16),
        task=dict(type="seq2seq", input=("audio", None, "target", "target_segments")),
    ),
    "dit": dict(
        model=dict(type="dit", image=32, patch=16, classes=3, layers=1, width=16, heads=2),
        task=dict(type="velocity_field"),
        method=dict(type="flow_matching"),
        preprocess=PICTURE["preprocess"],
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    np.savez(folder / "train.npz", **COLUMNS)
    return folder


def number(path, leaf):
    """Random weights of about the size that trained ones have; variances are positive."""
    if not np.issubdtype(leaf.dtype, np.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    drawn = RNG.normal(size=leaf.shape) * (0.2 if leaf.ndim > 1 else 0.1)
    return (np.abs(drawn) + 0.5 if path.endswith(("var", "scale")) else drawn).astype(leaf.dtype)


def random_run(name, data, path):
    """A run's folder with random weights; returns its raw config."""
    family = FAMILIES[name]
    raw = dict(
        train=dict(steps=1, batch_size=ROWS),
        data=dict(
            source=dict(type="npz", directory=str(data)),
            splits=dict(train="train"),
            preprocess=family.get("preprocess", ()),
        ),
        model=family["model"],
        task=family["task"],
        optimizer=dict(type="sgd", learning_rate=0.1),
        evaluate=dict(splits=(), every="never"),
        log=dict(tensorboard=False),
        **({"method": family["method"]} if "method" in family else {}),
    )
    config = resolve(raw)
    abstract = nn.unbox(assemble(config, path).program.variables)
    folder.write(Changed(config, map_with_path(number, abstract), {}), path, step=1)
    return raw


FORMS = ("onnx", "stablehlo", "safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_leaves_the_house_and_is_asked(name, data, tmp_path, capsys):
    raw = random_run(name, data, tmp_path / "run")
    lines = {}
    for form in FORMS:
        if form == "onnx":
            pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")
        out = tmp_path / form
        words = ["export", f"--workdir={tmp_path / 'run'}", f"--output={out}", f"--format={form}"]
        assert launch.execute("tiny", lambda: raw, words) == 0, capsys.readouterr().err
        assert json.loads((out / "bigjax.json").read_text())["checked"]["allowed"] == 1e-5
        if form == "onnx" and name in ("gpt2", "llama", "t5", "whisper"):
            continue  # their forward pass alone
        asked = [
            "predict",
            str(out),
            f"--input={data / 'train.npz'}",
            f"--output={tmp_path / 'said'}",
        ]
        if name == "dit":  # its outputs are a field, of noise and time
            assert main(asked) == 2
            assert "a velocity field predicts nothing of an example" in capsys.readouterr().err
            continue
        assert main(asked) == 0, capsys.readouterr().err
        lines[form] = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
        assert len(lines[form]) == ROWS
    for found in lines.values():
        assert [set(line) for line in found] == [set(line) for line in lines["safetensors"]]
        for one, other in zip(found, lines["safetensors"], strict=True):
            for key, value in one.items():
                expected = other[key]
                if isinstance(value, float):
                    expected = pytest.approx(expected, abs=1e-4)
                assert jax.tree.structure(value) == jax.tree.structure(other[key])
                if isinstance(value, str | int | float):
                    assert value == expected, (key, value, other[key])
