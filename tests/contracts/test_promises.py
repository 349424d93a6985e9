"""Every method keeps every promise, or refuses it by name (see `methods.REFUSED`)."""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.config.names import NAMES
from bigjax.loop.evaluate import logged_evaluation
from bigjax.loop.open import open_run
from bigjax.loop.record import train_batches
from bigjax.loop.replay import replay
from bigjax.loop.together import train_together
from bigjax.loop.train import Stopped, train
from bigjax.plan import sharding_report
from bigjax.run.writers import read_metrics
from tests.contracts.methods import METHODS, REFUSED
from tests.contracts.runs import (
    SPLIT,
    close,
    config_of,
    folder_of,
    promised,
    setup_of,
    steps_of,
    whole,
)

WRITE = "BIGJAX_WRITE_GOLDEN"  # writes what was found in place of what was recorded
GOLDEN = Path(__file__).parent.parent / "golden" / "contracts"
# Of the adapters one always, and of distillation two; the others with `scripts/test --slow`.
LATER = (
    *(name for name in NAMES["adapter"] if name != "lora"),
    *(f"distill+{variant}" for variant in ("outputs", "examples", "layers", "written")),
)
# What compiles many programs: of three methods always.
OFTEN = ("supervised", "distill", "lora")


def slow_if(slow, name):
    return pytest.param(name, marks=pytest.mark.slow) if slow else name


every_method = pytest.mark.parametrize("name", [slow_if(n in LATER, n) for n in METHODS])
every_method_at_length = pytest.mark.parametrize(
    "name", [slow_if(n not in OFTEN, n) for n in METHODS]
)


def test_every_method_and_adapter_has_joined():
    joined = {name.partition("+")[0] for name in METHODS}
    assert {*NAMES["method"], *NAMES["adapter"]} == joined
    assert {name for name, _ in REFUSED} <= set(METHODS)


def test_every_objective_of_distillation_has_joined():
    methods = [changes.get("method", {}) for changes in METHODS.values()]
    joined = {one["type"] for method in methods for one in method.get("objectives", {}).values()}
    assert joined == set(NAMES["objective"])


@every_method
def test_a_resume_in_the_middle_is_bitwise(name, tmp_path):
    folder, result = whole(name)
    run, asked = folder_of(name) / "resumed", iter([False] * 5)
    with pytest.raises(Stopped):
        train(config_of(name), run, stop=lambda: next(asked, True))
    again = train(config_of(name), run)
    assert again["fingerprint"] == result["fingerprint"]
    assert again["metrics"] == result["metrics"]
    lines = [read_metrics(path / "metrics.jsonl") for path in (folder, run)]
    assert lines[0] == lines[1]


@every_method_at_length
def test_any_mesh_gives_the_numbers_of_one_device(name):
    losses, state = steps_of(setup_of(name, mesh=dict(data=1), devices=1), 4)
    for mesh in (dict(data=8), dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2)):
        promise = "x".join(axis for axis, size in mesh.items() if size > 1)
        with promised(name, promise):
            there, other = steps_of(setup_of(name, SPLIT, mesh=mesh), 4)
            np.testing.assert_allclose(there, losses, rtol=1e-5)
            close(other.params, state.params, 2e-5)


@every_method_at_length
def test_microbatches_add_up_to_the_batch_also_with_ragged_masks(name):
    def ragged(batch):
        gone = jnp.isin(jnp.arange(len(batch["mask"])), jnp.array([1, 2, 7, 20, 33]))
        return {**batch, "mask": jnp.where(gone, 0.0, batch["mask"])}

    def run(count):
        overrides = (f"train.accumulate={count}", "evaluate.batch_size=80")
        return steps_of(setup_of(name, *overrides, mesh=dict(data=1), devices=1), 3, change=ragged)

    losses, state = run(1)
    for count in (2, 4):
        with promised(name, "accumulate"):
            there, other = run(count)
            np.testing.assert_allclose(there, losses, rtol=1e-5)
            close(other.params, state.params, 1e-5)


@every_method
def test_other_traced_scalars_compile_nothing(name):
    config = config_of(name)
    changed = [f"{path}={config.get(path) * 0.9!r}" for path in config.traced]
    assert "optimizer.learning_rate" in config.traced
    setup, other = setup_of(name), setup_of(name, *changed, "seed=3")
    assert other.program is setup.program
    losses, _ = steps_of(setup, 2)
    compiled = setup.program.train_step._cache_size()
    others, _ = steps_of(other, 2)
    assert setup.program.train_step._cache_size() == compiled
    assert not np.array_equal(losses, others)  # and yet they are read


@every_method
def test_the_moving_average_is_that_of_the_trained_leaves(name):
    setup = setup_of(name)
    _, first = steps_of(setup, 0)
    expected = first.params
    for count in (1, 2):
        _, state = steps_of(setup, count)
        updates = np.prod(setup.program.method.updates)
        if updates == 1:  # of several updates a step the ones between are not seen from here
            expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, expected, state.params)
            close(state.ema, expected, 1e-5)
    with pytest.raises(AssertionError):
        close(state.ema, state.params, 1e-7)


@every_method_at_length
def test_bfloat16_computes_nearly_the_same_and_keeps_float32(name):
    losses, _ = steps_of(setup_of(name), 2)
    with promised(name, "bfloat16"):
        narrow, state = steps_of(setup_of(name, "precision.policy=bfloat16"), 2)
        np.testing.assert_allclose(narrow, losses, rtol=0.05, atol=0.02)
        assert all(x.dtype == np.float32 for x in jax.tree.leaves(state.params))


@every_method
def test_bad_numbers_are_not_applied(name):
    setup = setup_of(name)
    state, frozen = setup.start()
    path = jax.tree_util.tree_leaves_with_path(state.params)[0][0]
    bad = jax.tree_util.tree_map_with_path(
        lambda p, x: x.at[(0,) * x.ndim].set(jnp.nan) if p == path else x, state.params
    )
    before = jax.device_get((bad, state.opt_state))
    batch = next(train_batches(setup, folder_of(name), 0))
    after, metrics = setup.program.train_step(state.replace(params=bad), batch, frozen)
    assert float(metrics["bad"][0]) >= 1
    jax.tree.map(
        np.testing.assert_array_equal, before, jax.device_get((after.params, after.opt_state))
    )
    assert after.step == 1


@every_method
def test_a_run_is_replayed_through_the_same_loop(name):
    folder, _ = whole(name)
    setup = setup_of(name)
    assert replay(setup, folder, 0, None).startswith("equal: steps 1 to 8")
    assert replay(setup, folder, 4, None).startswith("equal: steps 5 to 8")


@every_method
def test_a_finished_run_is_evaluated_and_predicts(name):
    folder, _ = whole(name)
    with promised(name, "evaluate"):
        run = open_run(folder)
        logged = logged_evaluation(folder, 8)
        again = {f"eval/test/{k}": v for k, v in run.evaluate("test").items()}
        assert {k: logged[k] for k in again} == json.loads(json.dumps(again))
    with promised(name, "predict"):
        rows = [p["predicted"] for p in run.predictions(run.setup.sources["test"])]
        assert sum(len(next(iter(row.values()))) for row in rows) == len(run.setup.sources["test"])
    # What leaves the house is the whole model.
    abstract = run.setup.program.variables["params"]
    assert jax.tree.map(jnp.shape, run.variables["params"]) == jax.tree.map(jnp.shape, abstract)


@every_method_at_length
def test_many_runs_at_once_are_each_what_they_are_alone(name):
    rates = [f"optimizer.learning_rate={rate}" for rate in (0.01, 0.02)]
    configs = [config_of(name, rate, "mesh.data=-1") for rate in rates]
    together = [folder_of(name) / f"together{i}" for i in range(2)]
    with promised(name, "vectorize"):
        results, failures = train_together(configs, together, stop=lambda: False)
        assert not failures
        for i, config in enumerate(configs):
            alone = train(config, folder_of(name) / f"alone{i}")
            assert alone["fingerprint"] == results[i]["fingerprint"]
            assert alone["metrics"] == results[i]["metrics"]


@every_method_at_length
def test_what_lies_where_and_what_is_sent_is_as_recorded(name):
    with promised(name, "dataxfsdp"):
        own = METHODS[name].get("train", {}).get("ema_decay")  # else as recorded, without
        plain = (f"train.ema_decay={own}", "check.policy=stop")
        setup = setup_of(name, SPLIT, *plain, mesh=dict(data=2, fsdp=4))
        found = sharding_report.report(setup.program, setup.sources["train"].features, 40)
        found["bytes_per_device"]["activations"] = 0
        text = sharding_report.text(found)
        golden = GOLDEN / f"{name}.txt"
        if os.environ.get(WRITE):
            golden.write_text(f"jax {jax.__version__}\n{text}\n")
        assert golden.exists(), f"{golden} is missing; if it is meant, run this test with {WRITE}=1"
        version, _, recorded = golden.read_text().partition("\n")
        if version == f"jax {jax.__version__}":
            assert re.sub(r"\s+", " ", text) == re.sub(r"\s+", " ", recorded.strip())


@every_method_at_length
@pytest.mark.parametrize("adapter", [slow_if(a in LATER, a) for a in NAMES["adapter"]])
def test_every_method_runs_under_every_adapter(name, adapter):
    if name in NAMES["adapter"]:
        return
    with promised(name, adapter):
        adapt = METHODS[adapter]["adapt"]
        setup = setup_of(name, f"adapt={adapt!r}")
        losses, _ = steps_of(setup, 3)
        assert np.isfinite(losses).all()
        assert ("base" in setup.program.frozen) == (adapter in ("lora", "dora", "quantize"))
