"""Every mesh axis that only some models can use keeps the promises of any mesh, or is refused by name.

Long but for the refusals; `tests/test_sharding_matrix.py` has a mesh of stages and one of a split length
among its quick ones.
"""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped, train
from bigjax.plan import sharding_report
from bigjax.run.writers import read_metrics
from tests.contracts.axes import AXES, MESHES, REFUSED_MESHES, SENT
from tests.contracts.runs import close, config_of, folder_of, setup_of, steps_of
from tests.contracts.test_promises import GOLDEN, WRITE

slow = pytest.mark.slow
every_axis = pytest.mark.parametrize("name", AXES)
every_mesh = pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param(name, mesh, id=f"{name}-{number}")
        for name, meshes in MESHES.items()
        for number, mesh in enumerate(meshes)
    ],
)


@functools.cache
def one_device(name):
    return steps_of(setup_of(name, mesh=dict(data=1), devices=1), 4)


@slow
@every_mesh
def test_any_mesh_gives_the_numbers_of_one_device_and_compiles_once(name, mesh):
    setup = setup_of(name, mesh=mesh)
    losses, state = steps_of(setup, 4)
    expected, wanted = one_device(name)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    close(state.params, wanted.params, 2e-5)
    assert setup.program.train_step._cache_size() == 1


@slow
@every_mesh
def test_what_lies_where_and_what_is_sent_over_which_axis_is_as_recorded(name, mesh):
    setup = setup_of(name, mesh=mesh)
    found = sharding_report.report(setup.program, setup.sources["train"].features, 32)
    sent = {(one["kind"], one["axes"]) for one in found["collectives"]}
    assert SENT[name] in sent
    assert all(axes != "?" for _, axes in sent)
    found["bytes_per_device"]["activations"] = 0
    text = sharding_report.text(found)
    golden = GOLDEN / f"axes-{name}-{'x'.join(axis for axis, n in mesh.items() if n > 1)}.txt"
    if os.environ.get(WRITE):
        golden.write_text(f"jax {jax.__version__}\n{text}\n")
    version, _, recorded = golden.read_text().partition("\n")
    if version == f"jax {jax.__version__}":
        assert re.sub(r"\s+", " ", text) == re.sub(r"\s+", " ", recorded.strip())


@slow
@every_axis
def test_a_resume_in_the_middle_is_bitwise(name):
    folder, asked = folder_of(name), iter([False] * 5)
    whole = train(config_of(name), folder / "whole")
    with pytest.raises(Stopped):
        train(config_of(name), folder / "resumed", stop=lambda: next(asked, True))
    again = train(config_of(name), folder / "resumed")
    assert again["fingerprint"] == whole["fingerprint"] and again["metrics"] == whole["metrics"]
    lines = [read_metrics(folder / run / "metrics.jsonl") for run in ("whole", "resumed")]
    assert lines[0] == lines[1]


@slow
@every_axis
def test_microbatches_add_up_to_the_batch_also_with_ragged_masks(name):
    def ragged(batch):
        gone = jnp.isin(jnp.arange(len(batch["mask"])), jnp.array([1, 2, 7, 20, 31]))
        return {**batch, "mask": jnp.where(gone, 0.0, batch["mask"])}

    # Each microbatch drops others, so they are added up without dropout.
    still = ("model.dropout=0.0",) if name == "pipeline" else ()
    one = setup_of(name, *still, mesh=dict(data=1), devices=1)
    losses, state = steps_of(one, 3, change=ragged)
    there, other = steps_of(
        setup_of(name, *still, "train.accumulate=2", mesh=MESHES[name][0]), 3, change=ragged
    )
    np.testing.assert_allclose(there, losses, rtol=1e-5)
    close(other.params, state.params, 2e-5)


@pytest.mark.parametrize(("name", "mesh", "said"), REFUSED_MESHES)
def test_what_cannot_use_an_axis_says_so_by_name(name, mesh, said):
    with pytest.raises(UserError, match=said):
        setup_of(name, mesh=mesh)
