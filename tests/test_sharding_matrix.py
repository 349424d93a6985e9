"""The same numbers on any mesh: every model family on eight devices against one, in float32."""

import functools

import jax
import numpy as np
import pytest

from bigjax.build.parts import key_data, traced_hyper
from bigjax.build.program import build_program
from bigjax.config.resolve import resolve
from bigjax.core import settings
from bigjax.core.rules import paths
from bigjax.data import pipeline
from bigjax.data.sources import Arrays
from bigjax.loop.train import train
from bigjax.mesh import sharding
from tests.small import small

ROWS, BATCH, STEPS = 128, 32, 20
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, ROWS)


def classes(*shape):
    """Examples whose label can be learned: noise around one mean per class."""
    means = RNG.standard_normal((4, *shape))
    return {"x": (means[LABELS] + RNG.standard_normal((ROWS, *shape))).astype(np.float32)}


TOKENS = RNG.integers(0, 16, (ROWS, 8)).astype(np.int32)
CLASSIFICATION = dict(type="classification", input="x")
FAMILIES = {
    "mlp": (dict(type="mlp", widths=(16, 8), outputs=4), CLASSIFICATION, classes(12)),
    "cnn": (
        dict(type="cnn", channels=(8, 8), outputs=4, batch_norm=True),
        CLASSIFICATION,
        classes(8, 8, 1),
    ),
    "rnn": (dict(type="rnn", widths=(16,), outputs=4), CLASSIFICATION, classes(3, 3)),
    "transformer": (
        dict(type="gpt2", vocab=16, layers=1, width=16, heads=4, context=8),
        dict(type="language_model"),
        {"tokens": TOKENS},
    ),
}
# Of the axes that only some models can use: layers stacked, dropout, grouped queries, windows, remat.
STACKED = dict(vocab=16, layers=2, width=16, heads=4, context=8, scan_layers=True)
GROUPED = dict(kv_heads=2, mlp_width=24, layer_kinds=("full", "local"), window=3, remat="full")
MODELS = {
    "dropping": (dict(type="gpt2", dropout=0.2, **STACKED), *FAMILIES["transformer"][1:]),
    "grouped": (dict(type="llama", **STACKED, **GROUPED), *FAMILIES["transformer"][1:]),
}
AXES = [
    ("transformer", dict(mesh=dict(data=2, sequence=4))),
    ("dropping", dict(mesh=dict(data=2, fsdp=2, pipeline=2))),
    *(
        pytest.param(family, case, marks=pytest.mark.slow)
        for family, case in (
            ("grouped", dict(mesh=dict(data=1, fsdp=2, tensor=2, sequence=2))),
            ("dropping", dict(mesh=dict(data=2, sequence=4), accumulate=2)),
            ("grouped", dict(mesh=dict(data=1, fsdp=2, sequence=4), sequence="gather")),
            ("grouped", dict(mesh=dict(data=1, fsdp=2, tensor=2, pipeline=2), accumulate=2)),
            ("grouped", dict(mesh=dict(data=1, dcn=2, fsdp=2, pipeline=2))),
            ("grouped", dict(mesh=dict(data=1, dcn=2, fsdp=2, sequence=2))),
        )
    ),
]
CASES = {
    "data 8": dict(mesh=dict(data=8)),
    "fsdp 8": dict(mesh=dict(data=1, fsdp=8)),
    "tensor 2": dict(mesh=dict(data=4, tensor=2)),
    "tensor 4": dict(mesh=dict(data=2, tensor=4)),
    "fsdp 4 x tensor 2": dict(mesh=dict(data=1, fsdp=4, tensor=2)),
    "data 2 x fsdp 2 x tensor 2": dict(mesh=dict(data=2, fsdp=2, tensor=2)),
    "accumulate 4": dict(mesh=dict(data=8), accumulate=4),
    "shard_map": dict(mesh=dict(data=8), mode="shard_map"),
}


def program_of(family, mesh, devices, accumulate=1, mode="jit", augment=(), sequence="ring"):
    """(program, config, source); the rule of all parameters is "tensor + fsdp"."""
    model, task, columns = (MODELS | FAMILIES)[family]  # other files add to the latter
    raw = dict(
        train=dict(steps=STEPS, batch_size=BATCH, accumulate=accumulate),
        data=dict(
            source=dict(type="npz", directory="unused"),
            splits=dict(train="train"),
            augment=augment,
        ),
        model=model,
        task=task,
        optimizer=dict(type="momentum", learning_rate=0.05),
        sharding=dict(rules=((".*", "tensor + fsdp"),), mode=mode, sequence=sequence),
    )
    config, source = resolve(raw), Arrays({**columns, "label": LABELS})
    sizes = settings.Mesh(**mesh)
    return (
        build_program(config, source, mesh=sharding.make_mesh(sizes, jax.devices()[:devices])),
        config,
        source,
    )


@functools.cache
def first_state(family):
    """From one device, for all: a compilation less a case; see the test of initialisation."""
    program, config, _ = program_of(family, mesh=dict(data=1), devices=1)
    return jax.device_get(program.init(key_data(0), traced_hyper(config))[0])


@functools.cache
def one_device(family, accumulate=1, steps=STEPS):
    return run(family, steps, mesh=dict(data=1), devices=1, accumulate=accumulate)


def start(family, **options):
    """(program, state before step 1, batches)."""
    program, _, source = program_of(family, **options)
    state = jax.device_put(first_state(family), jax.tree.map(lambda x: x.sharding, program.state))
    rows = sharding.batch_sharding(program.mesh)
    batches = pipeline.train_batches(
        source, batch_size=BATCH, seed=0, start_step=0, sharding=rows, workers=1
    )
    return program, state, batches


def run(family, steps=None, **options):
    """(losses of 20 or so many steps, gradients of the first step): momentum's first trace is the gradient."""
    program, state, batches = start(family, **options)
    losses, gradients = [], None
    for _ in range(steps or STEPS):
        state, metrics = program.train_step(state, next(batches), {})
        total, weight = jax.device_get(metrics["loss"])
        losses.append(float(total) / float(weight))
        if gradients is None:
            trace = jax.device_get(paths(state.opt_state))
            gradients = {path: leaf for path, leaf in trace.items() if "trace/" in path}
    batches.close()
    return np.array(losses), gradients


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_devices_give_the_numbers_of_one(family, case):
    # BatchNorm normalises within a microbatch, so accumulation there is compared with itself.
    within = CASES[case].get("accumulate", 1) if family == "cnn" else 1
    losses, _ = agree(run(family, devices=8, **CASES[case]), one_device(family, within, STEPS))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("family", "case"), AXES)
def test_split_lengths_and_stages_give_the_numbers_of_one_device(family, case):
    # Each microbatch drops others, so accumulation there is compared with itself.
    within = case.get("accumulate", 1) if family == "dropping" else 1
    steps = STEPS if family in FAMILIES else 3
    agree(run(family, steps, devices=8, **case), one_device(family, within, steps))


def agree(found, wanted):
    """Losses and gradients within the tolerance; returns what was found."""
    (losses, gradients), (expected_losses, expected) = found, wanted
    np.testing.assert_allclose(losses[:2], expected_losses[:2], rtol=1e-6)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert len(gradients) == len(expected) > 3
    whole = np.sqrt(sum(np.sum(np.square(g)) for g in expected.values()))
    for path, gradient in expected.items():
        error = np.linalg.norm(gradients[path] - gradient)
        # The second term is for the bias of the keys, whose gradient is zero but for rounding.
        assert error <= 1e-5 * np.linalg.norm(gradient) + 1e-8 * whole, path
    return found


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("mlp", 8),
        ("mlp", 16),
        ("transformer", 8),
        pytest.param("transformer", 16, marks=pytest.mark.slow),
    ],
)
def test_three_axes_give_the_numbers_of_one_device_at_any_batch_size(family, rows, monkeypatch):
    """XLA's own partitioning of the MLP is wrong at these sizes: see `mesh.sharding.gathering`."""
    found = {}
    monkeypatch.setattr(f"{__name__}.BATCH", rows)
    monkeypatch.setattr(f"{__name__}.STEPS", 1)
    for devices, mesh in ((1, dict(data=1)), (8, dict(data=2, fsdp=2, tensor=2))):
        found[devices] = run(family, mesh=mesh, devices=devices)
    np.testing.assert_allclose(found[8][0], found[1][0], rtol=1e-6)
    for path, gradient in found[1][1].items():
        error = np.linalg.norm(found[8][1][path] - gradient)
        assert error <= 1e-5 * np.linalg.norm(gradient) + 1e-7, path


@pytest.mark.parametrize("family", FAMILIES)
def test_initialisation_is_bitwise_equal_on_any_number_of_devices(family):
    states = {}
    for devices in (1, 2, 4, 8):
        program, config, _ = program_of(family, mesh=dict(data=1, fsdp=-1), devices=devices)
        state = program.init(key_data(3), traced_hyper(config))[0]
        states[devices] = jax.device_get(paths(state.params))
        assert devices == 1 or any(p.sharding.spec for p in jax.tree.leaves(state.params))
    for devices in (2, 4, 8):
        for path, leaf in states[1].items():
            np.testing.assert_array_equal(leaf, states[devices][path], err_msg=path)


def test_the_per_device_step_sees_masks_neighbours_and_statistics_of_the_whole_batch():
    """Padding on two devices only, mixup over the batch's order, BatchNorm's running statistics."""
    mixup = dict(type="mixup", alpha=1.0, num_classes=4, key="x")
    states, losses = {}, {}
    for mode in ("jit", "shard_map"):
        options = dict(mesh=dict(data=8), devices=8, mode=mode, augment=(mixup,))
        program, state, batches = start("cnn", **options)
        batch = next(batches)
        mask = np.ones(BATCH, np.float32)
        mask[[0, 1, 2, 3, 9]] = 0
        batch["mask"] = jax.device_put(mask, batch["mask"].sharding)
        state, metrics = program.train_step(state, batch, {})
        states[mode], losses[mode] = jax.device_get((state, metrics["loss"]))
        batches.close()
    assert losses["jit"][1] == losses["shard_map"][1] == BATCH - 5
    assert losses["shard_map"][0] == pytest.approx(float(losses["jit"][0]), rel=1e-6)
    for path, leaf in paths(states["jit"].collections).items():
        got = paths(states["shard_map"].collections)[path]
        np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-7, err_msg=path)


def test_the_loop_moves_nothing_between_host_and_devices_unasked(tmp_path, monkeypatch):
    """From the first batch to the last, an implicit transfer would be an error."""
    guarded = []

    def batches_under_guard(*args, **kwargs):
        batches = pipeline_batches(*args, **kwargs)
        with jax.transfer_guard("disallow"):
            for batch in batches:
                guarded.append(batch)
                yield batch

    pipeline_batches = pipeline.train_batches
    monkeypatch.setattr(pipeline, "train_batches", batches_under_guard)
    train(small(mesh=dict(data=2, fsdp=4)), tmp_path / "run")
    assert len(guarded) == 12
