"""An exported folder is enough: it answers as the run does, in every format, and runs nobody's code."""

import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

import bigjax
from bigjax.__main__ import main
from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.export import stablehlo, write
from bigjax.export.answer import live
from bigjax.export.open import open_exported
from bigjax.export.write import difference, parsed_format
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.pretrained.decoders import LLAMA as LLAMA_FAMILY
from bigjax.pretrained.export import published_tensors
from bigjax.pretrained.gguf_write import write_gguf
from bigjax.pretrained.load import open_checkpoint
from bigjax.verbs import launch
from tests import parity
from tests.small import small, small_config

FORMATS = ["safetensors", "stablehlo", "stablehlo:beside"]
LLAMA = dict(vocab=40, layers=2, width=32, heads=4, kv_heads=2, mlp_width=64, context=16)
WORDS = [
    "the cat sat",
    "a dog ran away",
    "the dog sat down",
    "a cat ran",
    "the owl flew",
    "a cat",
    "dogs",
    "owls",
]


def export(run, folder, form, *more):
    """The exit code of the verb."""
    words = ["export", f"--workdir={run}", f"--output={folder}", f"--format={form}", *more]
    return launch.execute("tiny", small_config, words)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on uint8-like pictures with a transform; (folder, the run opened, its exports by format)."""
    folder = tmp_path_factory.mktemp("digits")
    train(small("train.steps=4", evaluate=dict(splits=(), every="never")), folder / "run")
    for form in FORMATS:
        assert export(folder / "run", folder / form.replace(":", "_"), form) == 0
    return folder, open_run(folder / "run")


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def rows_of(run, count=5):
    source = run.setup.sources["train"]
    return source.read(np.arange(count))


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_answers_as_the_run(form, digits):
    folder, run = digits
    images = rows_of(run)["image"]
    found = bigjax.open_exported(folder / form.replace(":", "_")).predict({"image": images})
    expected = run.predict({"image": images})
    assert [line["class"] for line in found] == [line["class"] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_the_card_says_what_goes_in_and_out(digits):
    folder, run = digits
    card = json.loads((folder / "stablehlo" / "bigjax.json").read_text())
    shape, dtype = run.setup.sources["train"].features["image"]
    assert card["signature"]["inputs"] == {
        "image": {"shape": ["batch", *shape], "dtype": np.dtype(dtype).name}
    }  # the label and the mask are read by nobody
    assert card["signature"]["outputs"]["outputs"] == {"shape": ["batch", 10], "dtype": "float32"}
    assert card["preprocess"][0]["scale"] == 16.0
    assert 0 <= card["checked"]["largest_difference"] <= card["checked"]["allowed"] == 1e-5
    assert str(folder) not in json.dumps(card)
    for form in ("stablehlo", "stablehlo_beside"):  # nor does a program say where it was written
        program = (folder / form / "model.stablehlo").read_bytes()
        assert b".py" not in program and b"bigjax" not in program


ALONE = """
import json, sys
import jax, numpy as np
from jax import export

folder, rows = sys.argv[1:]
program = export.deserialize(bytearray(open(f"{folder}/model.stablehlo", "rb").read()))
data = open(f"{folder}/model.safetensors", "rb").read()
size = int.from_bytes(data[:8], "little")
weights = {
    name: np.frombuffer(data[8 + size :][slice(*one["data_offsets"])], np.float32).reshape(one["shape"])
    for name, one in json.loads(data[8 : 8 + size]).items()
}
found = program.call(weights, {"image": np.load(rows)})
assert not [name for name in sys.modules if name.split(".")[0] in ("bigjax", "flax", "safetensors")]
print(json.dumps(np.asarray(found["outputs"]).tolist()))
"""


def test_a_program_runs_where_there_is_jax_alone(digits, tmp_path):
    folder, run = digits
    rows = rows_of(run, 7)["image"]
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, "-c", ALONE, folder / "stablehlo_beside", tmp_path / "rows.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = run.model.apply(run.variables, rows.astype(np.float32) / 16.0, train=False)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


def test_the_command_line_asks_a_folder(digits, tmp_path, capsys):
    folder, run = digits
    np.savez(tmp_path / "rows.npz", image=rows_of(run)["image"])
    assert main(["predict", str(folder / "stablehlo"), f"--input={tmp_path / 'rows.npz'}"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = run.predict(tmp_path / "rows.npz")
    assert [line["class"] for line in lines] == [line["class"] for line in expected]
    for words, said in [
        (["predict"], "predict needs the folder"),
        (["predict", str(folder / "stablehlo")], "predict needs --input"),
        (["predict", str(tmp_path), "--input=x.npz"], "holds no bigjax.json"),
        (["predict", "x", "--inptu=x"], "did you mean '--input'"),
        (["predict", str(folder / "stablehlo"), "--input=x.npz"], "no such file"),
    ]:
        assert main(words) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("stablhlo", "did you mean 'stablehlo'"),
        ("stablehlo:insde", "did you mean 'inside'"),
        ("safetensors:q8_0", "has the choices none"),
    ],
)
def test_an_unknown_format_is_refused_with_the_nearest(form, said):
    with pytest.raises(UserError, match=said):
        parsed_format(form)


def test_what_answers_otherwise_is_not_kept(digits, tmp_path, monkeypatch, capsys):
    folder, _ = digits
    monkeypatch.setattr(
        "bigjax.export.stablehlo.read", lambda card: lambda rows: {"outputs": np.ones((3, 10)) * 9}
    )
    assert export(folder / "run", tmp_path / "out", "stablehlo") == 2
    assert "answers otherwise than the run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert export(folder / "run", folder / "stablehlo", "stablehlo") == 2
    assert "is there already" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_command(digits, tmp_path, monkeypatch, capsys):
    folder, _ = digits
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert export(folder / "run", tmp_path / "out", "stablehlo") == 2
    assert "pip install flatbuffers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_difference_is_of_the_largest_output_and_sees_what_is_no_number():
    expected = {"outputs": np.float32([[4.0, -8.0]]), "class": np.int32([1])}
    assert difference({"outputs": np.float32([[4.0, -8.4]])}, expected) == pytest.approx(0.05)
    assert not difference({"outputs": np.float32([[4.0, np.nan]])}, expected) <= 1.0
    assert difference({"outputs": np.float32([[4.0, -8.0]])}, expected) == 0.0


def test_equations_that_nobody_reads_are_left_out():
    def function(x, y, z):
        unused = jax.random.normal(jax.random.key(0), (3,)) + z
        return x * 2.0 if unused is not None else y

    found, used = live(jax.make_jaxpr(function)(1.0, 2.0, 3.0))
    assert [eqn.primitive.name for eqn in found.jaxpr.eqns] == ["mul"]
    assert used == [True, False, False]


def test_a_program_that_calls_out_is_refused(digits, tmp_path):
    def evil(x):
        return jax.ffi.ffi_call("xla_ffi_python_cpu_callback", jax.ShapeDtypeStruct((2,), x.dtype))(
            x
        )

    text = jax.jit(evil).lower(np.ones(2, np.float32)).as_text()
    assert stablehlo.called(text) == {"xla_ffi_python_cpu_callback"}
    assert stablehlo.called('%0 = stablehlo.custom_call @"Sh x"(%1) : f32') == {"Sh x"}
    assert stablehlo.called("%0 = custom_call something(%1)") == {"?"}
    assert not stablehlo.called(jax.jit(lambda x: x + 1).lower(1.0).as_text())
    # The same of a whole folder: its program is another's.
    stranger = copied(digits[0] / "stablehlo", tmp_path / "out")
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in stablehlo.called(text)]
    exported = jax.export.export(jax.jit(evil), disabled_checks=checks)(np.ones(2, np.float32))
    program = exported.serialize()
    (stranger / "model.stablehlo").write_bytes(program)
    card = json.loads((stranger / "bigjax.json").read_text())
    card["sha256"] = hashlib.sha256(program).hexdigest()
    (stranger / "bigjax.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="on the machine that runs it: refused"):
        open_exported(stranger)


@pytest.mark.parametrize("damage", ["cut", "noise", "other", "card", "shape", "code"])
def test_a_damaged_folder_is_one_line(damage, digits, tmp_path):
    folder = copied(digits[0] / "stablehlo", tmp_path / "out")
    program, card = folder / "model.stablehlo", folder / "bigjax.json"
    values = json.loads(card.read_text())
    if damage == "cut":
        program.write_bytes(program.read_bytes()[:-200])
    elif damage == "noise":
        program.write_bytes(np.random.default_rng(0).bytes(4000))
    elif damage == "other":
        function = jax.export.export(jax.jit(lambda x: x))(np.ones(2, np.float32))
        program.write_bytes(function.serialize())
    elif damage == "card":
        values.pop("signature")
    elif damage == "shape":
        values["features"]["image"] = ["x", "float32"]
    else:
        values["task"]["type"] = "os:system"
    card.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        open_exported(folder).predict({"image": np.zeros((1, 8, 8, 1), np.uint8)})
    assert "\n" not in str(error.value)


def run_of(folder, **sections):
    """A tiny run of one step; opened."""
    raw = dict(
        train=dict(steps=1, batch_size=8),
        optimizer=dict(type="sgd", learning_rate=0.1),
        evaluate=dict(every="never"),
        log=dict(tensorboard=False),
        **sections,
    )
    train(configs.resolve(raw), folder)
    return open_run(folder)


def write_csv(path, header, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def test_a_table_is_read_by_name_as_its_train_split_was(tmp_path, capsys):
    rows = [f"{size},{kind},{kind == 'b'}" for size in (1, 2.5, 4, 7) for kind in ("a", "b")]
    write_csv(tmp_path / "data" / "train.csv", "size,kind,label", rows)
    run = run_of(
        tmp_path / "run",
        data=dict(
            source=dict(type="csv", directory=str(tmp_path / "data")),
            splits=dict(train="train"),
            preprocess=(dict(type="standardize"),),
        ),
        model=dict(type="mlp", widths=(4,), outputs=2),
        task=dict(type="classification", input="features"),
    )
    new = tmp_path / "new.csv"
    write_csv(new, "kind,size", ["b,3", "c,x", "a,-1"])
    expected = run.predict(new)
    assert export(tmp_path / "run", tmp_path / "out", "stablehlo") == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "out"), f"--input={new}"]) == 0
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [(x["row"], x["name"]) for x in found] == [(x["row"], x["name"]) for x in expected]
    assert [x["row"] for x in found] == [0, 2] and "row 1: column 'size'" in said.err
    for one, other in zip(found, expected, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.slow
def test_a_text_is_read_by_the_tokenizer_that_goes_along(tmp_path):
    rows = [f"{text},{'dog' in text}" for text in WORDS]
    write_csv(tmp_path / "data" / "train.csv", "text,label", rows)
    run = run_of(
        tmp_path / "run",
        data=dict(
            source=dict(
                type="labelled_text",
                path=str(tmp_path / "data"),
                tokenizer="wordpiece-60",
                length=8,
                data_dir=str(tmp_path / "cache"),
            ),
            splits=dict(train="train"),
        ),
        model=dict(type="bert", layers=1, width=8, heads=2, context=8, head="sequence", outputs=2),
        task=dict(type="classification", input=("tokens", "segments", "types")),
    )
    texts = tmp_path / "new.txt"
    texts.write_text("the dog flew\na cat\n")
    expected = run.predict(texts)
    for form in ("safetensors", "stablehlo"):
        assert export(tmp_path / "run", tmp_path / form, form) == 0
        found = open_exported(tmp_path / form).predict(["the dog flew", "a cat"])
        for one, other in zip(found, expected, strict=True):
            assert one["name"] == other["name"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    (tmp_path / "stablehlo" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="there is no"):
        open_exported(tmp_path / "stablehlo")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A run of a small Llama; (folder, the run opened)."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "data").mkdir()
    tokens = np.random.default_rng(0).integers(0, 40, (16, 8)).astype(np.int32)
    np.savez(folder / "data" / "train.npz", tokens=tokens)
    run = run_of(
        folder / "run",
        data=dict(
            source=dict(type="npz", directory=str(folder / "data")), splits=dict(train="train")
        ),
        model=dict(type="llama", **LLAMA),
        task=dict(type="language_model"),
    )
    return folder, run


@pytest.mark.parametrize(("kind", "steps"), [("f16", 1024), ("q8_0", 127), ("q4_0", 8)])
def test_gguf_is_read_by_its_library_and_by_us(kind, steps, tmp_path):
    gguf = pytest.importorskip("gguf")
    values = configs._complete_section("model", dict(type="llama", **LLAMA))
    model, rng = parity.build(values), np.random.default_rng(0)
    init = lambda: model.init(jax.random.key(0), np.zeros((1, 8), np.int32), train=False)  # noqa: E731
    shapes = nn.unbox(jax.eval_shape(init))
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    write_gguf(tmp_path / "model.gguf", variables, values, kind)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert found["blk.1.ffn_up.weight"].tensor_type.name == kind.upper()
    assert found["token_embd.weight"].tensor_type.name in (kind.upper(), "Q8_0")
    assert found["output_norm.weight"].tensor_type.name == "F32"
    # The turning, by hand: rows 0 and 4 of a head of 8 (halves) are neighbours in llama.cpp.
    query = found["blk.0.attn_q.weight"]
    theirs = gguf.quants.dequantize(query.data, query.tensor_type)
    ours = variables["params"]["block_0"]["attention"]["query"]["kernel"]  # (D, N, H)
    assert np.corrcoef(theirs[8 + 1], ours[:, 1, 4])[0, 1] > 0.9
    # A value of a block of 32 is at most half a step off, a whole one where 4 bits end; a step is kept
    # in float16, off by up to 2 ** -11, 127 times of it.
    read, _ = open_checkpoint(str(tmp_path / "model.gguf"), "llama")
    for name, tensor in published_tensors(paths(variables), LLAMA_FAMILY.entries(values)).items():
        blocks = np.float64(tensor).reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / steps
        off = np.abs(read.read(name).reshape(-1, 32) - blocks)
        assert (off <= step * (1.01 if kind == "q4_0" else 0.57)).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_gguf_of_a_run_answers_as_the_run_does(kind, llama, tmp_path):
    folder, run = llama
    assert export(folder / "run", tmp_path / "out", f"gguf:{kind}") == 0
    card = json.loads((tmp_path / "out" / "bigjax.json").read_text())
    assert card["checked"]["largest_difference"] <= card["checked"]["allowed"]
    tokens = np.arange(8)[None]
    exact = run.model.apply(run.variables, tokens, train=False)
    (line,) = open_exported(tmp_path / "out").predict({"tokens": tokens})
    assert line["token"] in np.argsort(np.asarray(exact)[0, -1])[-(1 if kind == "f16" else 5) :]


def test_gguf_of_what_it_cannot_say_is_refused(digits, tmp_path, capsys):
    assert export(digits[0] / "run", tmp_path / "out", "gguf") == 2
    assert "can say the family llama alone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_program_writes_text_token_by_token(llama, tmp_path):
    folder, _ = llama
    more = "--config.task.generate={'max_new_tokens': 4}"
    assert export(folder / "run", tmp_path / "out", "stablehlo", more) == 0
    run = open_run(folder / "run", ["task.generate={'max_new_tokens': 4}"])
    tokens = np.arange(16).reshape(2, 8)[:, :6]
    tokens = np.pad(tokens, ((0, 0), (0, 2)))
    found = open_exported(tmp_path / "out").predict({"tokens": tokens})
    assert found == run.predict({"tokens": tokens})
    assert len(found[0]["tokens"]) == 4


def test_every_format_has_a_writer():
    assert set(write._WRITERS) == set(write.FORMATS) - {"peft"}  # which `adapters` writes


@pytest.mark.slow
def test_an_onnx_export_answers_as_the_run(digits):
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")
    folder, run = digits
    assert export(folder / "run", folder / "onnx", "onnx") == 0
    images = rows_of(run)["image"]
    found = bigjax.open_exported(folder / "onnx").predict({"image": images})
    expected = run.predict({"image": images})
    for one, other in zip(found, expected, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
