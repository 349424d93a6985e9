"""Published checkpoints: every format reads the same, and everything wrong is one line."""

import json
import struct
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.core.rules import map_with_path, paths
from bigjax.core.settings import Init
from bigjax.models.mlp import MLP
from bigjax.pretrained import families
from bigjax.pretrained.entry import Entry
from bigjax.pretrained.export import fill_published, published_tensors
from bigjax.pretrained.load import read_published
from bigjax.pretrained.reader import open_published
from bigjax.verbs import launch

MODEL = dict(type="mlp", widths=(4,), outputs=3, activation="relu", dropout=0.0, batch_norm=False)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """A family "toy": an MLP of two layers that torch wrote, one matrix for kernel and bias."""
    module = types.ModuleType("bigjax.pretrained.toy")
    module.TYPE = "mlp"
    module.PREFIXES = ("model.",)
    module.model_values = lambda c: dict(widths=(c["hidden"],), outputs=c["classes"])
    module.published_config = lambda m: dict(
        model_type="toy", hidden=m["widths"][0], classes=m["outputs"]
    )
    module.entries = lambda m: [
        Entry("fc1.weight", ("params/dense_0/kernel",), "o i -> i o"),
        Entry("fc1.bias", ("params/dense_0/bias",)),
        Entry("fc2.weight", ("params/head/kernel",), "o i -> i o"),
        Entry("fc2.bias", ("params/head/bias",)),
    ]
    monkeypatch.setitem(sys.modules, "bigjax.pretrained.toy", module)
    monkeypatch.setitem(families.FAMILIES, "toy", ("toy", ("toy",)))
    return module


def tensors(prefix=""):
    numbers = np.random.default_rng(0)
    shapes = {"fc1.weight": (4, 5), "fc1.bias": (4,), "fc2.weight": (3, 4), "fc2.bias": (3,)}
    return {prefix + k: numbers.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def write(folder, values, config=None):
    folder.mkdir(exist_ok=True)
    save_file(values, folder / "model.safetensors")
    config = {"model_type": "toy", "hidden": 4, "classes": 3} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def scratch(**model):
    values = {**MODEL, **model}
    module = MLP(**{key: value for key, value in values.items() if key != "type"})
    return module, module.init(jax.random.key(0), jnp.ones((1, 5)), train=False)


def read(folder, variables=None, **init):
    variables = scratch()[1] if variables is None else variables
    settings = Init(source=str(folder), family="toy", **init)
    leaves = paths(variables)
    return read_published(settings, MODEL, leaves, lambda names: {n: leaves[n] for n in names})


def test_a_folder_loads_as_torch_computes_it(tmp_path):
    torch = pytest.importorskip("torch")
    values = tensors()
    found = read(write(tmp_path / "w", values))
    module, variables = scratch()
    variables = map_with_path(lambda path, _: found[path], variables)
    x = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    hidden = torch.nn.functional.linear(
        torch.tensor(x), *(torch.tensor(values[f"fc1.{n}"]) for n in ("weight", "bias"))
    ).relu()
    expected = torch.nn.functional.linear(
        hidden, *(torch.tensor(values[f"fc2.{n}"]) for n in ("weight", "bias"))
    )
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, atol=1e-6)


def test_shards_a_prefix_torch_and_bfloat16_give_the_same_leaves(tmp_path):
    torch = pytest.importorskip("torch")
    values = tensors()
    expected = read(write(tmp_path / "one", values))
    sharded = write(tmp_path / "sharded", tensors())
    (sharded / "model.safetensors").unlink()
    names = list(values)
    index = {name: f"part-{i // 2}.safetensors" for i, name in enumerate(names)}
    for file in set(index.values()):
        save_file({n: values[n] for n in names if index[n] == file}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    prefixed = write(tmp_path / "prefixed", tensors("model."))
    (tmp_path / "torch").mkdir()
    torch.save({n: torch.tensor(v) for n, v in values.items()}, tmp_path / "torch" / "w.pth")
    for folder in (sharded, prefixed, tmp_path / "torch"):
        for path, leaf in read(folder).items():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=f"{folder} {path}")
    narrow = {n: v.astype(jnp.bfloat16) for n, v in values.items()}
    for path, leaf in read(write(tmp_path / "narrow", narrow)).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, np.asarray(expected[path].astype(jnp.bfloat16)))


def test_leaves_come_in_the_sharding_they_are_wanted_in(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = NamedSharding(mesh, PartitionSpec(None, "data"))
    variables = map_with_path(
        lambda _, x: jax.device_put(x, spec) if x.ndim == 2 else x, scratch()[1]
    )
    found = read(write(tmp_path / "w", tensors()), variables)
    assert found["params/head/kernel"].sharding == spec


@pytest.mark.parametrize("start", (0, 8, 32))
def test_what_was_read_stays_when_its_file_is_written_over(tmp_path, toy, start):
    toy.entries = lambda model: [Entry("w", ("params/w",))]
    values = np.arange(4096, dtype=np.float32)
    header = json.dumps({"w": dict(dtype="F32", shape=[4096], data_offsets=[0, values.nbytes])})
    at = 256 + start  # where the numbers begin, past a multiple of 64
    header = header.ljust(at - 8).encode()
    file = write(tmp_path / "w", tensors()) / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    found = read(tmp_path / "w", {"params": {"w": jax.device_put(values)}})["params/w"]
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(bytes(values.nbytes))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", (np.float32, jnp.bfloat16))
def test_stacked_layers_are_turned_and_shared_out(tmp_path, toy, dtype):
    toy.entries = lambda model: [
        Entry(f"h.{i}.w", (f"params/block_{i}/w",), "(n h) d -> d n h", {"h": 2}) for i in range(3)
    ]
    layers = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(dtype)
    folder = write(tmp_path / "w", {f"h.{i}.w": layer for i, layer in enumerate(layers)})
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    layout = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    wanted = jax.ShapeDtypeStruct((3, 8, 3, 2), np.float32, sharding=layout)
    found = read(folder, {"params": {"blocks": {"w": wanted}}})["params/blocks/w"]
    assert found.sharding == layout
    expected = layers.astype(np.float32).transpose(0, 2, 1).reshape(3, 8, 3, 2)
    np.testing.assert_array_equal(found, expected)


def test_stacked_layers_are_read_and_written_layer_by_layer(toy):
    entries = [Entry(f"h.{i}.w", (f"params/block_{i}/w",), "o i -> i o") for i in range(3)]
    stack = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    written = published_tensors({"params/blocks/w": stack}, entries)
    np.testing.assert_array_equal(written["h.2.w"], stack[2].T)


SIZES = st.integers(1, 4)


@given(n=SIZES, h=SIZES, d=SIZES, k=st.integers(2, 3))
def test_saving_undoes_loading(n, h, d, k):
    tensor = np.arange(d * k * n * h).reshape(d, k * n * h)
    entry = Entry(
        "qkv", tuple(map(str, range(k))), "d (n h) -> d n h", {"n": n, "h": h}, (1,) * k, axis=1
    )
    parts = entry.load(tensor)
    assert parts[0].shape == (d, n, h)
    assert parts[k - 1][d - 1, n - 1, h - 1] == tensor[-1, -1]
    np.testing.assert_array_equal(entry.save(parts), tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("fc2.bias"),
            "params/head/bias needs 'fc2.bias', which the checkpoint lacks",
        ),
        (lambda t: t.update(extra=np.ones(2, np.float32)), "published 'extra' is read by nothing"),
        (
            lambda t: t.update({"fc2.weight": np.ones((7, 4), np.float32)}),
            "has shape (4, 3), 'fc2.weight' gives (4, 7)",
        ),
        (
            lambda t: t.update({"fc1.bias": np.ones((4, 1), np.float32)}),
            "params/dense_0/bias has shape (4,), 'fc1.bias' gives (4, 1)",
        ),
    ],
)
def test_what_is_missing_unused_or_misshaped_is_named(tmp_path, change, message):
    values = tensors()
    change(values)
    with pytest.raises(UserError) as error:
        read(write(tmp_path / "w", values))
    assert message in str(error.value)


def test_rules_unused_and_resize_allow_what_they_name(tmp_path):
    values = {**tensors(), "pooler.weight": np.ones((2, 2), np.float32)}
    values["fc2.weight"] = values["fc2.weight"][:2]
    values["fc2.bias"] = values["fc2.bias"][:2]
    folder = write(tmp_path / "w", values)
    ours = paths(scratch()[1])
    found = read(folder, unused=("pooler.*",), resize=("params/head/.*",))
    np.testing.assert_array_equal(found["params/head/kernel"][:, :2], values["fc2.weight"].T)
    np.testing.assert_array_equal(
        found["params/head/kernel"][:, 2], ours["params/head/kernel"][:, 2]
    )
    body = {path: leaf for path, leaf in scratch()[1]["params"].items() if path != "head"}
    found = read(folder, {"params": body}, unused=("pooler.*",))
    assert set(found) == {"params/dense_0/kernel", "params/dense_0/bias"}


class Bomb:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_torch_file_that_holds_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"fc1.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="not a torch state dict"):
        read(tmp_path / "bomb.pth")


def test_a_file_that_is_damaged_or_of_another_kind_is_one_line(tmp_path, capsys):
    folder = write(tmp_path / "w", tensors())
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-3], whole[:20], b"", b"\xff" * 100):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="not a readable safetensors file"):
            read(folder)
    file.write_bytes(whole)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="says it is 'bert', not 'toy'"):
        read(folder)
    (tmp_path / "w.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(UserError, match="GGUF"):
        read(tmp_path / "w.gguf")
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no file or folder 'nowhere'"):
        read("nowhere")


def test_a_gguf_header_cannot_promise_more_than_its_file_holds(tmp_path):
    """An array of 2^60 numbers in a file of 49 bytes: once read for ever."""
    pytest.importorskip("gguf")  # not what is timed
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<II", 9, 4)  # an array of uint32
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<Q", 2**60)
    (tmp_path / "w.gguf").write_bytes(header)
    started = time.perf_counter()
    with pytest.raises(UserError, match="GGUF") as caught:
        read(tmp_path / "w.gguf")
    assert time.perf_counter() - started < 5
    assert "\n" not in str(caught.value)


def test_a_quantized_tensor_without_numbers_is_empty(tmp_path):
    name = struct.pack("<Q", 5) + b"small"
    shape = struct.pack("<IQQIQ", 2, 0, 2, 8, 0)  # two rows of none, Q8_0
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + name + shape
    (tmp_path / "w.gguf").write_bytes(header + bytes(64))
    assert open_published(str(tmp_path / "w.gguf")).read("small").shape == (2, 0)


def test_numbers_of_eight_bits_that_numpy_does_not_know_are_one_line(tmp_path):
    folder = write(tmp_path / "w", tensors())
    header, end = {}, 0
    for name, value in tensors().items():
        start, end = end, end + value.size
        header[name] = dict(dtype="F8_E4M3", shape=value.shape, data_offsets=(start, end))
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(end)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="F8_E4M3") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_an_index_cannot_point_outside_its_folder(tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    save_file(tensors(), tmp_path / "outside.safetensors")
    index = {"weight_map": {"fc1.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is not a file name"):
        open_published(str(folder))


def test_gguf_tensors_read_in_our_axis_order(tmp_path):
    import gguf

    values = np.arange(64 * 2, dtype=np.float32).reshape(2, 64)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(3)
    writer.add_tensor("plain", values)
    quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("small", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    published = open_published(str(tmp_path / "m.gguf"))
    assert published.config["llama.block_count"] == 3
    assert published.shapes == {"plain": (2, 64), "small": (2, 64)}
    np.testing.assert_array_equal(published.read("plain"), values)
    # Q8_0: 32 numbers share a scale of max / 127, each rounded to the nearest step.
    np.testing.assert_allclose(published.read("small"), values, atol=127 / 127 / 2 + 0.01)


def raw_config(folder, data, **model):
    return ConfigDict(
        dict(
            train=dict(steps=2, batch_size=8),
            data=dict(
                source=dict(type="npz", directory=str(data)),
                splits=dict(train="train"),
            ),
            model=dict(type="mlp", **model),
            task=dict(type="classification", input="image"),
            optimizer=dict(type="sgd", learning_rate=0.0),
            init=dict(source=str(folder), family="toy"),
            log=dict(tensorboard=False),
        )
    )


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    numbers = np.random.default_rng(2)
    image = numbers.normal(size=(8, 5)).astype(np.float32)
    np.savez(folder / "train.npz", image=image, label=np.arange(8, dtype=np.int32) % 3)
    return folder


def test_the_model_is_derived_and_a_contradiction_is_refused(tmp_path, data):
    folder = write(tmp_path / "w", tensors())
    config = configs.resolve(raw_config(folder, data))
    assert config.get("model.widths") == (4,)
    with pytest.raises(UserError, match=r"go into 'mlp', not 'cnn'"):
        configs.resolve(raw_config(folder, data), ["model.type=cnn"])
    given = raw_config(folder, data, widths=(6,), outputs=3)
    code = launch.execute("x", lambda: given, [f"--workdir={tmp_path / 'run'}"])
    assert code == 2


def test_export_after_training_at_rate_zero_gives_the_published_bytes(tmp_path, data, capsys):
    folder = write(tmp_path / "w", tensors())
    raw = raw_config(folder, data)
    run = f"--workdir={tmp_path / 'run'}"
    assert launch.execute("x", lambda: raw, [run]) == 0
    out = tmp_path / "exported"
    arguments = ["export", run, f"--output={out}", "--format=safetensors"]
    assert launch.execute("x", lambda: raw, arguments) == 0
    again = open_published(str(out))
    for name, value in tensors().items():
        np.testing.assert_array_equal(again.read(name), value)
    assert again.config == {"model_type": "toy", "hidden": 4, "classes": 3}
    assert launch.execute("x", lambda: raw, arguments) == 2  # never over what is there
    assert "is there already" in capsys.readouterr().err


def test_export_names_leaves_that_have_no_published_name(tmp_path, toy):
    variables = {"params": {"other": {"kernel": np.ones((2, 2))}}}
    toy.entries = lambda m: []
    with pytest.raises(UserError, match="no published name for params/other/kernel"):
        fill_published(tmp_path, variables, MODEL, "toy")
    assert not list(tmp_path.iterdir())


def test_predict_without_a_run_uses_the_published_weights(tmp_path, data, capsys):
    raw = raw_config(write(tmp_path / "w", tensors()), data)
    arguments = ["predict", f"--workdir={tmp_path / 'r'}", f"--input={data / 'train.npz'}"]
    assert launch.execute("x", lambda: raw, arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    module, variables = scratch()
    found = read(tmp_path / "w")
    variables = map_with_path(lambda path, _: found[path], variables)
    logits = module.apply(variables, np.load(data / "train.npz")["image"], train=False)
    assert [line["class"] for line in lines] == np.argmax(logits, axis=-1).tolist()
    assert not (tmp_path / "r").exists()
