"""Runs of the contract suite: a tiny config for each method and axis, and steps of it on any mesh."""

import contextlib
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax.build.assemble import assemble
from bigjax.config.resolve import resolve
from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.loop.record import train_batches
from bigjax.loop.train import train
from bigjax.mesh.sharding import make_mesh
from tests.contracts.axes import AXES
from tests.contracts.methods import METHODS, REFUSED
from tests.small import small_config

SPLIT = "sharding.rules=((r'.*', 'tensor + fsdp'),)"
TINY = METHODS | AXES
# Most promises are held to one program of a method: with a moving average, and passing over bad steps.
AVERAGED_AND_SKIPPING = ("train.ema_decay=0.9", "check.policy=skip")
ROOT = Path(tempfile.mkdtemp(prefix="bigjax-contracts-"))


def config_of(name, *overrides):
    """8 steps of 40 digits (or what the method learns from) into a tiny model, no dropout."""
    model = dict(type="mlp", widths=(8,), outputs=10)
    raw = small_config(**{"model": model, **TINY[name]})
    steps = ["train.steps=8", "log.tensorboard=False", "log.every=1", "checkpoint.every=4"]
    ours = AVERAGED_AND_SKIPPING if name in METHODS else ()
    return resolve(raw, [*steps, "evaluate.every=4", *ours, *overrides])


@functools.cache
def folder_of(name):
    """The method's folder, with a teacher beside its runs where it needs one."""
    folder = ROOT / name
    if "teacher" in TINY[name].get("method", {}):
        train(config_of(name, "seed=7", "method=None"), folder / "teacher")
    return folder


@functools.cache
def whole(name):
    """(folder, result) of the method's whole run over 8 devices."""
    folder = folder_of(name) / "whole"
    return folder, train(config_of(name), folder)


def setup_of(name, *overrides, mesh=None, devices=8):
    sizes = settings.Mesh(**(mesh or dict(data=-1)))
    grid = make_mesh(sizes, jax.devices()[:devices])
    return assemble(config_of(name, *overrides), folder_of(name) / "setup", mesh=grid)


def steps_of(setup, count, *, change=lambda batch: batch):
    """(losses, last state on the host) of the first steps of a run."""
    state, frozen = setup.start()
    losses = []
    with contextlib.closing(train_batches(setup, ROOT, 0)) as batches:
        for _, batch in zip(range(count), batches, strict=False):
            state, metrics = setup.program.train_step(state, change(batch), frozen)
            losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    return np.array(losses), jax.device_get(state)


def promised(name, promise):
    """A context in which the promise is kept, or refused by name as `REFUSED` says."""
    message = REFUSED.get((name, promise))
    if message is None:
        return contextlib.nullcontext()
    return pytest.raises(UserError, match=message)


def close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
