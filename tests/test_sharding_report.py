"""The sharding report: bytes by hand, collectives against HLO made by hand, a golden report a preset.

Golden reports are written anew by `python -m tests.test_sharding_report --write`.
"""

import functools
import importlib
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigjax.build.assemble import open_sources
from bigjax.build.parts import abstract_batch
from bigjax.build.program import build_program
from bigjax.config import resolve as configs
from bigjax.data.sources import Arrays
from bigjax.loop import stages
from bigjax.mesh.sharding import make_mesh
from bigjax.plan.collectives import of_program, of_text
from bigjax.plan.sharding_report import amount, lowered_step, report, text
from bigjax.verbs import launch
from tests.collectives import by_kind

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "sharding"
# Those whose step compiles in seconds and whose data is at hand.
PRESETS = (
    "breast_cancer_mlp",
    "diabetes_regression",
    "digits_distill",
    "digits_rnn",
    "fashion_mnist_big_mlp",
    "fashion_mnist_cnn",
    "fashion_mnist_distill",
    "fashion_mnist_mlp_128_64",
    "fashion_mnist_mlp_500",
    "fashion_mnist_resnet18",
    "markov_transformer",
)
# NAME+AXIS is a preset on another mesh.
OTHER_MESHES = {
    "markov_transformer+sequence": ["mesh.fsdp=2", "mesh.tensor=2", "mesh.sequence=2"],
    "markov_transformer+pipeline": ["mesh.fsdp=4", "mesh.pipeline=2", "model.scan_layers=True"],
}
BATCH = 48
MIB = 2**20


def wide_config(**sections):
    """An MLP with kernels of 16 x 1024 (64 KiB), 1024 x 1024 (4 MiB) and 1024 x 3."""
    config = configs.plain(dict(seed=0))
    config.update(
        train=dict(steps=3, batch_size=16),
        data=dict(source=dict(type="npz", directory="/nowhere"), splits=dict(train="train")),
        model=dict(type="mlp", widths=(1024, 1024), outputs=3),
        task=dict(type="classification", input="x"),
        optimizer=dict(type="adam", learning_rate=1e-3),
        mesh=dict(data=1, fsdp=8),
    )
    return configs.resolve(config | sections, [])


def report_of(config):
    source = Arrays({"x": np.zeros((32, 16), np.float32), "label": np.zeros(32, np.int32)})
    program = build_program(config, source)
    return report(program, source.features, config.get("train.batch_size"))


def test_bytes_are_those_of_one_device():
    found = report_of(wide_config())
    rows = {row["path"]: row for row in found["parameters"]}
    hidden = rows["dense_1/kernel"]
    assert hidden["shape"] == [1024, 1024] and hidden["dtype"] == "float32"
    assert hidden["spec"] == ["fsdp"] and hidden["bytes_per_device"] == 4 * MIB // 8
    assert rows["dense_0/kernel"]["bytes_per_device"] == 4 * 16 * 1024  # too small to be split
    sizes = found["bytes_per_device"]
    params = 4 * (16 * 1024 + 1024 + 1024 * 1024 // 8 + 1024 + 1024 * 3 + 3)
    assert sizes["params"] == params
    # Adam: two moments that lie as their parameters do, and a count or two of 4 bytes.
    assert 2 * params <= sizes["optimizer"] <= 2 * params + 16
    assert sizes["activations"] > 0
    assert found["mesh"] == {"fsdp": 8} and found["devices"] == 8


@pytest.mark.parametrize("rule", ["fsdp:10000000", "tensor", (None, "tensor")])
def test_large_parameter_that_no_rule_splits_is_refused_by_name(rule):
    rules = ((".*kernel", rule), (".*", "replicate"))
    with pytest.raises(configs.UserError, match=r"dense_1/kernel \(1024, 1024\) of 4 MiB"):
        report_of(wide_config(sharding=dict(rules=rules)))


@pytest.mark.parametrize(
    "sections",
    [
        dict(sharding=dict(rules=((".*", "replicate"),))),
        dict(sharding=dict(rules=((".*", "tensor"),)), mesh=dict(data=8)),
    ],
)
def test_replication_is_no_fault_if_a_rule_says_so_or_no_axis_splits_parameters(sections):
    found = report_of(wide_config(**sections))
    assert all(row["spec"] == [] for row in found["parameters"])


def test_data_parallel_step_adds_up_every_gradient_once():
    found = report_of(wide_config(sharding=dict(rules=((".*", "replicate"),)), mesh=dict(data=8)))
    (reduced,) = found["collectives"]
    assert reduced["kind"] == "all-reduce"
    gradients = 4 * (16 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 3 + 3)
    assert gradients <= reduced["bytes"] <= gradients + 64  # the metrics' sums are a few bytes


def test_collectives_of_a_compiled_program_by_hand():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("x",), ()))

    @functools.partial(jax.jit, in_shardings=split, out_shardings=whole)
    def gather(a):
        return a * 2

    compiled = gather.lower(jax.ShapeDtypeStruct((64, 4), jnp.float32)).compile()
    assert by_kind(of_program(compiled, 8)) == [
        {"kind": "all-gather", "count": 1, "bytes": 64 * 4 * 4}
    ]


def test_collectives_in_a_loop_count_at_every_turn():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")
    )
    def looped(a):
        def turn(a, _):
            return jax.lax.ppermute(a, "x", [(i, (i + 1) % 8) for i in range(8)]) + 1, None

        return jax.lax.scan(turn, a, length=5)[0]

    compiled = jax.jit(looped).lower(jax.ShapeDtypeStruct((16, 4), jnp.bfloat16)).compile()
    (sent,) = by_kind(of_program(compiled, 8))
    assert sent["kind"] == "collective-permute" and sent["count"] == 5
    assert sent["bytes"] in (5 * 2 * 4 * 2, 5 * 2 * 4 * 4)  # a CPU may send bfloat16 as float32


def test_asynchronous_collectives_count_once_and_by_their_results():
    module = """HloModule m
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

ENTRY %main (p: bf16[4,8]) -> bf16[32,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %s = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%p), dimensions={0}
  %d = bf16[32,8]{1,0} all-gather-done(%s)
  %q = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %e = f32[4]{0} collective-permute-done(%q)
  %t = (f32[2,3]{1,0}, s8[5]{0}) all-reduce-start(%y, %z), to_apply=%sum
  ROOT %u = (f32[2,3]{1,0}, s8[5]{0}) all-reduce-done(%t)
}
"""
    assert by_kind(of_text(module, 4)) == [
        {"kind": "all-gather", "count": 1, "bytes": 32 * 8 * 2},
        {"kind": "all-reduce", "count": 1, "bytes": 2 * 3 * 4 + 5},
        {"kind": "collective-permute", "count": 1, "bytes": 16},
    ]


def test_a_compiler_that_does_not_show_its_program_is_told_of():
    class Silent:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: async-update")

    assert of_program(Silent(), 8) is None
    found = report_of(wide_config()) | {"collectives": None}
    assert "its collectives are unknown" in text(found)


def test_amounts_are_read_at_a_glance():
    assert [amount(n) for n in (0, 1023, 1024, 3 * MIB // 2, 5 * 2**30)] == [
        *("0 B", "1023 B", "1 KiB", "1.5 MiB", "5 GiB")
    ]


def test_verb_prints_tables_or_json_and_trains_nothing(capsys, tmp_path):
    get_config = importlib.import_module("experiments.diabetes_regression").get_config
    arguments = ["sharding", f"--workdir={tmp_path / 'run'}", "--config.train.batch_size=48"]
    assert launch.execute("experiments.diabetes_regression", get_config, arguments) == launch.OK
    shown = capsys.readouterr().out
    assert "8 devices: data 8" in shown and "head/kernel" in shown and "all-reduce" in shown
    assert (
        launch.execute("experiments.diabetes_regression", get_config, [*arguments, "--json"])
        == launch.OK
    )
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        *("mesh", "devices", "parameters", "pipeline", "bytes_per_device", "collectives")
    }
    assert not (tmp_path / "run").exists()


def golden_report(name):
    """The reports of a preset's stages; what the compiler's memory plan says is left out."""
    # A rule that splits the small parameters of these presets too.
    overrides = ["mesh.data=2", "mesh.fsdp=4", "sharding.rules=((r'.*', 'fsdp'),)"]
    if "+" in name:
        overrides = ["mesh.data=1", *OTHER_MESHES[name], "sharding.rules=((r'.*', 'tensor+fsdp'),)"]
    parts = []
    for stage, program, features in programs_of(name, overrides):
        made = report(program, features, BATCH)
        made["bytes_per_device"]["activations"] = 0
        parts.append(f"[{stage}]\n{text(made)}\n")
    return "\n".join(parts)


def programs_of(name, overrides, devices=None):
    """(stage, program, features of its data) of each stage of a preset."""
    preset = name.partition("+")[0]
    raw = importlib.import_module(f"experiments.{preset}").get_config()
    overrides = [*overrides, f"train.batch_size={BATCH}", "train.steps=1000"]
    if stages.is_pipeline(raw):
        found, _, _ = stages.resolve(raw, overrides)
    else:
        found = {name: configs.resolve(raw, overrides)}
    for stage, config in found.items():
        references = {
            path.removeprefix("method."): found[folder.removeprefix("../")]
            for path, folder in config.references.items()
            if path.startswith("method.")
        }
        source, mesh = source_of(config), make_mesh(config.section("mesh"), devices)
        yield stage, build_program(config, source, references, mesh), source.features


def source_of(config):
    """The preset's train split, or one of its form where its data would have to be fetched."""
    if config.get("data.source").get("name") != "fashion_mnist":
        return open_sources(config)["train"]
    pictures = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
    return Arrays({"image": pictures, "label": np.arange(64, dtype=np.int32) % 10})


LONG = ("digits_distill", "fashion_mnist_distill", "fashion_mnist_resnet18", *OTHER_MESHES)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in (*PRESETS, *OTHER_MESHES)],
)
def test_no_preset_changes_what_lies_where_or_what_is_sent_unseen(name):
    version, _, golden = (GOLDEN / f"{name}.txt").read_text().partition("\n")
    if version != f"jax {jax.__version__}":
        pytest.skip(f"another compiler may choose other collectives: the reports are of {version}")
    assert golden_report(name) == golden


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_copies_a_parameter_in_its_step(name):
    """An update in place of what is still to be read would cost a copy of it a step."""
    for stage, program, features in programs_of(name, [], jax.devices()[:1]):
        compiled = lowered_step(program, abstract_batch(program.mesh, features, BATCH)).compile()
        entry = compiled.as_text().partition("\nENTRY ")[2]
        assert "%state_params__" in entry  # what the compiler calls them
        # Of two axes or more: a vector's copy costs nothing.
        copied = re.findall(r"\[\d+,[\d,]*\]\S* copy\((?:\S+ )?(%state_params[^,)]*)", entry)
        assert not copied, stage


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for preset in (*PRESETS, *OTHER_MESHES):
        (GOLDEN / f"{preset}.txt").write_text(f"jax {jax.__version__}\n{golden_report(preset)}")
