"""A plan against hand counts, published figures worked by hand, and the program that a real run compiles."""

import dataclasses
import importlib.util
import math
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from bigjax.build.parts import abstract_batch
from bigjax.build.program import build_program
from bigjax.core.errors import UserError
from bigjax.data.sources import Arrays
from bigjax.plan import changes, sharding_report, topology, worker
from bigjax.plan.answer import answer, capacity, compile_or_refusal, memory
from bigjax.plan.chips import CHIPS, TARGETS
from bigjax.plan.collectives import axes_of_groups, by_axis, groups_of, sent
from bigjax.plan.roofline import roofline
from bigjax.verbs import launch
from bigjax.verbs.plan import searched
from scripts.benchmarks import plan_memory
from tests.small import small_config
from tests.test_sharding_report import wide_config

MIB = 2**20
REPLICATED = dict(sharding=dict(rules=((".*", "replicate"),)))


def plan_of(width=16, where="cpu:8", **sections):
    """The plan of an MLP of `width` -> 1024 -> 1024 -> 3, 16 rows, on simulated devices."""
    config = wide_config(**sections)
    source = Arrays({"x": np.zeros((32, width), np.float32), "label": np.zeros(32, np.int32)})
    program = build_program(config, source)
    wanted = topology.parsed(where) if isinstance(where, str) else where
    return answer(program, source.features, 16, 3, wanted, narrow=False)


def kernels(width=16):
    """Bytes of the parameters of that MLP."""
    return 4 * (width * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 3 + 3)


slow = pytest.mark.slow


def test_data_parallel_sends_each_gradient_once_over_data():
    (reduced,) = plan_of(mesh=dict(data=8), **REPLICATED)["collectives"]
    assert (reduced["kind"], reduced["axes"], reduced["across"]) == ("all-reduce", "data", 0)
    assert kernels() <= reduced["bytes"] <= kernels() + 64  # the metrics' sums are a few bytes
    assert reduced["inside"] == pytest.approx(2 * 7 / 8 * kernels(), rel=1e-4)


def test_fsdp_gathers_the_split_kernel_once_and_adds_up_its_gradient_over_fsdp():
    rows = {row["kind"]: row for row in plan_of(mesh=dict(data=1, fsdp=8))["collectives"]}
    assert {row["axes"] for row in rows.values()} == {"fsdp"}
    kernel, activations = 4 * 1024 * 1024, 4 * 16 * 1024
    # XLA gathers the activations for the gradient of the split kernel's input.
    assert rows["all-gather"]["bytes"] == kernel + activations
    # A CPU's compiler adds up the whole gradient on each device: no reduce-scatter.
    assert kernel < rows["all-reduce"]["bytes"] < kernel + 4 * 1024 * 24


def test_tensor_parallel_adds_up_what_its_row_split_kernels_give():
    rows = {row["kind"]: row for row in plan_of(mesh=dict(data=1, tensor=8))["collectives"]}
    assert {row["axes"] for row in rows.values()} == {"tensor"}
    # dense_0 is split by columns, dense_1 and the head by rows: 16 rows of 1024 and of 3 are added up.
    outputs = 4 * 16 * (1024 + 3)
    assert outputs <= rows["all-reduce"]["bytes"] <= outputs + 64
    # Back: the gradient of dense_1's output, which XLA splits, and a bias with its two moments.
    assert rows["all-gather"]["bytes"] == 4 * 16 * 1024 + 3 * 4 * 1024


def test_peak_is_that_counted_by_hand_and_the_shortfall_is_exact_to_the_byte():
    # 2048 -> 2048 -> 3. Each device holds the parameters, two moments, its gradient and the sum of all;
    # jax 0.12's compiler for CPUs keeps one buffer of the large kernel's size more.
    more = 0 if jax.__version__.startswith("0.10.") else 4 * 2048 * 2048
    params = 4 * (2048 * 2048 + 2048 + 2048 * 3 + 3)
    batch = 2 * (4 * 2048 + 4 * 4)  # two rows: x; label, mask, sample, epoch
    by_hand = 5 * params + batch + more
    model = dict(type="mlp", widths=(2048,), outputs=3)
    config = dict(model=model, mesh=dict(data=8), **REPLICATED)
    room = by_hand - 10 * MIB
    chip = dataclasses.replace(CHIPS["v5e"], memory=room)
    found = plan_of(2048, topology.Topology("v5e:2x4", "v5e", chip, 1, (2, 4)), **config)["memory"]
    assert found["peak"] == pytest.approx(by_hand, rel=1e-4)
    assert found["short"] == found["peak"] - room == pytest.approx(10 * MIB, abs=8192)
    fits = dataclasses.replace(chip, memory=found["peak"])
    fitting = topology.Topology("v5e:2x4", "v5e", fits, 1, (2, 4))
    assert plan_of(2048, fitting, **config)["memory"]["short"] == 0
    rows = {what: size for what, size, by in found["rows"] if by == "formula"}
    assert (rows["params"], rows["batch"]) == (params, batch)
    assert 2 * params <= rows["optimizer"] <= 2 * params + 16


def test_sparing_the_compiler_machine_code_changes_no_buffer_and_no_collective():
    config = wide_config(model=dict(type="mlp", widths=(8,), outputs=3), mesh=dict(data=8))
    source = Arrays({"x": np.zeros((32, 4), np.float32), "label": np.zeros(32, np.int32)})
    program = build_program(config, source)
    rows = abstract_batch(program.mesh, source.features, 16)
    lowered = sharding_report.lowered_step(program, rows)
    quick, _ = compile_or_refusal(lowered, topology.parsed("cpu:8"))
    full = lowered.compile()
    assert quick.as_text() == full.as_text()
    assert str(quick.memory_analysis()) == str(full.memory_analysis())


def test_a_compiler_that_refuses_for_memory_says_by_how_much():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 20.00G of 15.75G hbm. Exceeded hbm capacity by 4.25G."
    )

    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(message)

    v5e = topology.parsed("v5e:2x4")
    compiled, refusal = compile_or_refusal(Lowered(), v5e)
    found = memory(compiled, refusal, {"params": 1}, {}, v5e)
    assert compiled is None and found["short"] == 4.25 * 2**30
    message = "INTERNAL: Mosaic failed to compile TPU kernel"
    with pytest.raises(UserError, match="refuses this step: INTERNAL: Mosaic failed"):
        compile_or_refusal(Lowered(), v5e)


@slow
def test_the_predicted_peak_is_within_a_tenth_of_what_real_steps_take(tmp_path):
    row = plan_memory.compared("MLP, Adam", tmp_path)
    assert row["predicted_mib"] > row["measured_state_mib"] > 12
    assert row["predicted_over_measured"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        ("all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%s", [[0, 1], [2, 3]]),
        ("all-gather(%x), replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        ("all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
        ("all-gather(%x), replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("all-gather(%x), replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("all-gather(%x), replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("all-gather(%x), replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        (
            "all-gather(%x), replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x",
            [[0, 1], [2, 3]],
        ),
        ("collective-permute(%x), source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("all-reduce(%x), replica_groups={}, to_apply=%s", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_every_spelling(line, groups):
    assert groups_of(line, 4).tolist() == groups


def test_groups_are_named_by_the_axes_along_which_they_differ():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    for groups, axes in (
        ([[0, 1], [2, 3], [4, 5], [6, 7]], "tensor"),
        ([[0, 2], [1, 3], [4, 6], [5, 7]], "fsdp"),
        ([[0, 2, 4, 6], [1, 3, 5, 7]], "data x fsdp"),
    ):
        assert axes_of_groups(np.array(groups), mesh) == axes
    row = dict(kind="all-reduce", count=1, bytes=80, groups=np.arange(8).reshape(2, 4))
    places = {device: number // 4 for number, device in enumerate(mesh.devices.flat)}
    (found,) = by_axis([row], mesh, places.get)
    assert (found["axes"], found["inside"], found["across"]) == ("fsdp x tensor", 120, 0)
    # Two of each node: 80 bytes are added up in the node, then 40 go each way between the two.
    spread = {**row, "groups": np.array([[0, 1, 4, 5], [2, 3, 6, 7]])}
    (found,) = by_axis([spread], mesh, places.get)
    assert (found["axes"], found["inside"], found["across"]) == ("data x tensor", 80, 40)


@pytest.mark.parametrize(
    ("kind", "one_node", "two_nodes"),
    [
        # Four devices, 100 bytes of result on each; on two nodes two a node.
        ("all-reduce", (150, 0), (100, 50)),
        ("all-gather", (75, 0), (50, 25)),
        ("reduce-scatter", (300, 0), (200, 100)),
        ("all-to-all", (75, 0), (25, 50)),
        ("collective-permute", (100, 0), (0, 100)),
    ],
)
def test_bytes_sent_are_those_of_the_best_algorithms(kind, one_node, two_nodes):
    assert sent(kind, 100, 4) == one_node and sent(kind, 100, 4, nodes=2) == two_nodes


def test_roofline_by_hand():
    v5e = CHIPS["v5e"]  # 197 TFLOP/s, 819 GB/s, 200 GB/s, 3.125 GB/s
    rows = [dict(inside=2e9, across=0), dict(inside=0, across=3.125e8)]
    found = roofline(v5e, 4, flops=4 * 197e12 * 0.05, moved=8.19e9, collectives=rows, narrow=True)
    assert found["seconds"] == pytest.approx(dict(compute=0.05, memory=0.01, intra=0.01, cross=0.1))
    assert found["bound"] == "cross" and found["step_seconds"] == pytest.approx(0.1)
    wide = roofline(CHIPS["h200"], 1, flops=989.5e12, moved=1, collectives=None, narrow=False)
    assert wide["seconds"]["compute"] == pytest.approx(2.0)  # TF32 is half as fast


def test_every_chip_has_its_figures_and_every_gpu_its_description():
    for name, chip in CHIPS.items():
        assert chip.flops > 1e14 and chip.memory > 10 * 2**30 and chip.sources, name
        assert (chip.shape == 0) == (name in TARGETS) == (chip.node == 8), name


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("cpu:8", 8, (8,)),
        ("v5e:4x4", 16, (4, 4)),
        ("v5e:32", 32, (4, 8)),
        ("2xv5e:4x4", 32, (4, 4)),
        ("v5p:4x4x8", 128, (4, 4, 8)),
        ("v5p:16", 16, (2, 2, 4)),
        ("v4:4", 4, (2, 2, 1)),
        ("H200:16", 16, (16,)),
    ],
)
def test_topologies(name, size, shape):
    found = topology.parsed(name)
    assert (found.size, found.shape) == (size, shape)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v6:4x4", "did you mean 'v6e'"),
        ("h20:8", r"no chip 'h20' \(did you mean 'h200'\?\)"),
        ("v5e", "is no topology; write cpu:8, v5e:4x4"),
        ("v5p:4x4", "a slice of v5p has 3 dimensions, such as v5p:4x4x4"),
        ("h200:2x4", "takes a count, such as h200:8"),
        ("h200:12", "leaves a node of 8 in part; h200:8 or h200:16 would do"),
        ("cpu:0", "must have 1 to 16,384 devices"),
        ("v5e:99999999999999999999", "must have 1 to 16,384 devices"),
    ],
)
def test_what_is_no_topology_is_one_line(name, says):
    with pytest.raises(UserError, match=says):
        topology.parsed(name)


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:4x4", "libtpu"), ("h200:8", "jax-cuda13-pjrt")]
)
def test_a_missing_compiler_is_named_with_its_command(name, package, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"-m pip install --no-deps '{package}=="):
        topology.environment(topology.parsed(name), tmp_path)


def test_an_assembler_that_does_nothing_stands_in_for_a_cuda_toolkit(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "_has_cuda", lambda: True)
    flags = topology.environment(topology.parsed("h200:8"), tmp_path / "own")["XLA_FLAGS"].split()
    (named,) = (f.partition("=")[2] for f in flags if f.startswith("--xla_gpu_cuda_data_dir="))
    assert (Path(named) / "nvvm/libdevice/libdevice.10.bc").is_file()
    made = tmp_path / "code"
    command = [Path(named) / "bin/ptxas", "-v", "-o", made, "-arch=sm_90a", "kernel.ptx"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "release 13.0" in said and made.read_bytes() == b""


def test_a_gpu_offers_what_jax_takes_of_it(monkeypatch):
    h200 = topology.parsed("h200:8")
    assert capacity(h200)[0] == 0.75 * 151_397_597_184
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert capacity(h200)[0] == int(0.9 * 151_397_597_184)


def test_verb_compiles_in_another_process_and_leaves_no_run(capsys, tmp_path):
    def plan(*arguments):
        where = f"--workdir={tmp_path / 'run'}"
        return launch.execute("experiments.x", small_config, ["plan", where, *arguments])

    page = tmp_path / "plan.html"
    assert plan("--topology=cpu:2", f"--output={page}") == launch.OK
    shown = capsys.readouterr().out
    # 64 x 8 + 8 + 8 x 10 + 10 numbers of 4 bytes
    assert "cpu:2: 2 devices (data 2), 40 rows a step: fits" in shown and "2.38 KiB" in shown
    assert "all-reduce  data" in shown and "all-reduce" in page.read_text()
    assert plan("--topology=cpu:2", "--config.mesh.data=3") == launch.WRONG_INPUT
    assert "config.mesh: data 3 = 3 does not equal the 2 devices" in capsys.readouterr().err
    assert plan("--topology=cpu:2", "--price_per_device_hour=nan") == launch.WRONG_INPUT
    assert "must be a price" in capsys.readouterr().err
    assert plan() == launch.WRONG_INPUT
    assert "plan needs --topology" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_rule_shows_as_further_collectives():
    """The second of two kernels, split by columns like the first, has to have its input gathered."""
    mesh, wrong = (
        dict(data=1, tensor=8),
        (("dense_[01]/kernel", (None, "tensor")), (".*", "replicate")),
    )
    gathered = [
        next(row for row in plan["collectives"] if row["kind"] == "all-gather")
        for plan in (plan_of(mesh=mesh), plan_of(mesh=mesh, sharding=dict(rules=wrong)))
    ]
    assert gathered[1]["count"] > gathered[0]["count"]
    assert gathered[1]["bytes"] >= gathered[0]["bytes"] + 4 * 16 * 1024 / 2


def test_combinations_are_every_mesh_of_the_devices_at_the_same_batch_the_plainest_first():
    found = changes.combinations(wide_config(), {"fsdp": 8})  # data 1, fsdp 8
    flags = [change.overrides for change in found]
    assert len(set(flags)) == len(flags) == 10 * 4  # ordered triples whose product is 8; 1, 2, 4, 8
    assert flags[:2] == [(), ("train.accumulate=2",)]  # what the config says need not be said
    for overrides in flags:
        sizes = {"mesh.data": 1, "mesh.fsdp": 8, "mesh.tensor": 1, "train.accumulate": 1}
        sizes |= {key: int(value) for key, _, value in (text.partition("=") for text in overrides)}
        assert sizes.pop("train.accumulate") in (1, 2, 4, 8) and math.prod(sizes.values()) == 8
    assert all(change.same for change in found)


def test_suggestions_say_what_stays_the_same_and_scaling_keeps_the_rows_of_a_device():
    config = wide_config()
    found = {change.overrides: change.same for change in changes.suggestions(config, {"data": 8})}
    assert found["mesh.data=1", "mesh.fsdp=8"] and found["train.accumulate=2",]
    assert not found["train.batch_size=8",] and not found["precision.policy=bfloat16",]
    adapted = [text for (text, *_) in found if text.startswith("adapt=")]
    assert [text.count("quantize") for text in adapted] == [0, 1, 1]  # LoRA, on int8, on nf4
    for text in adapted:
        with_adapters = changes.applied(config, [text])
        quantized = [
            c.overrides for c in changes.suggestions(with_adapters, {}) if "adapt" in c.flags
        ]
        assert len(quantized) == (2 if "quantize" not in text else 0)
    decayed = changes.applied(
        config, ["optimizer.weight_decay_rules=(('.*bias', 0.0), ('.*', 1.0))"]
    )
    lora = next(c for c in changes.suggestions(decayed, {}) if c.overrides[0].startswith("adapt="))
    assert lora.overrides[1:] == ('optimizer.weight_decay_rules=((".*", 1.0),)',)
    assert lora.flags.startswith("""'--config.adapt=({"type": "lora", "rank": 16},)' '--config.""")
    assert not isinstance(changes.applied(decayed, lora.overrides), str)
    assert changes.scaled(config, {"fsdp": 4}, 2).overrides == (
        "mesh.fsdp=8",
        "train.batch_size=32",
    )
    with pytest.raises(UserError, match="no whole number"):
        changes.scaled(config, {"data": 4}, 1 / 3)
    assert "nothing of it" in changes.applied(config, ["train.batch_size=nothing of it"])


def test_search_ranks_what_fits_and_prints_the_best_as_flags():
    def run(wanted, cases, seconds, beat):
        assert seconds == 9 and beat == 2.5  # the step of the run as it is
        tried = [plan_like(4, 3.0), plan_like(0, 2.0), {"refused": "why"}, plan_like(0, 1.0)]
        return [*tried, {"left_out": "slower"}] + [None] * (len(cases) - 5)

    def plan_like(short, seconds):
        memory, roof = dict(short=short, peak=5), dict(step_seconds=seconds, bound="memory")
        return dict(memory=memory, roofline=roof, collectives=[], mesh={"data": 8})

    case = worker.Case(wide_config())
    title, rows = searched(case, plan_like(0, 2.5), topology.parsed("v5e:8"), 9, run)
    tried = changes.combinations(case.config, {"data": 8})[1:]  # the first is the run as it is
    assert title.startswith("Search: 5 of 39 combinations tried in 9 s, 1 of them without")
    assert tried[3].flags in title
    assert [row.get("step at best") for row in rows] == ["1 s", "2 s", "2.5 s", None]
    assert rows[3] == {"": tried[4].flags, "fits": "not compiled", "why": "slower"}


def test_what_cannot_fit_or_be_faster_is_not_compiled(monkeypatch):
    config = wide_config(mesh=dict(data=8), **REPLICATED)
    source = Arrays({"x": np.zeros((32, 16), np.float32), "label": np.zeros(32, np.int32)})
    program = build_program(config, source)

    def planned(chip, beat):
        where = topology.Topology("v5e:2x4", "v5e", chip, 1, (2, 4))
        return answer(program, source.features, 16, 3, where, narrow=False, beat=beat)

    # Parameters and Adam's two moments; its count of steps is a few bytes more.
    held = 3 * kernels()
    chip = dataclasses.replace(CHIPS["v5e"], memory=held + MIB, bandwidth=2 * held / 1e-3)
    monkeypatch.setattr("bigjax.plan.answer.compile_or_refusal", None)
    why = planned(dataclasses.replace(chip, memory=held), math.inf)["left_out"]
    assert why.startswith("does not fit: parameters and optimizer alone take 12.")
    why = planned(chip, 0.99e-3)["left_out"]
    assert why == "slower: memory alone takes 1 ms of a step, the fastest 0.99 ms in all"
    with pytest.raises(TypeError):  # it would be compiled
        planned(chip, 1.01e-3)


@slow
def test_search_compiles_until_its_time_is_up(capsys, tmp_path):
    arguments = ["plan", "--topology=cpu:2", "--search=60", f"--workdir={tmp_path / 'run'}"]
    assert launch.execute("experiments.x", small_config, arguments) == launch.OK
    assert "combinations tried in 60 s" in (said := capsys.readouterr().out) and "best: " in said


def test_shapes_stand_in_for_texts_that_are_not_here(tmp_path):
    from bigjax.config import resolve as configs
    from bigjax.plan.shapes import train_split
    from experiments.gpt2_124m import get_config

    there = [f"data.source.data_dir={tmp_path}"]
    source, is_there = train_split(configs.resolve(get_config(), there))
    assert not is_there and source.features["tokens"] == ((1024,), np.dtype(np.int32))
    epochs = configs.resolve(get_config(), [*there, "train.epochs=2"])
    with pytest.raises(UserError, match=r"give config\.train\.steps"):
        len(train_split(epochs)[0])
