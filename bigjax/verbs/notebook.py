"""The Python API, for a script or a notebook: what the command line does, in one line each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from bigjax.config.resolve import resolve
from bigjax.core.errors import UserError
from bigjax.export import open as exports
from bigjax.export.open import Exported
from bigjax.loop import open as opened
from bigjax.loop import train as loop
from bigjax.loop.open import Opened

LINEN = ("parent", "name")  # fields that every Linen module has


def train(
    config: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    workdir: str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_changed: Sequence[str] = (),
    label: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[int, dict[str, Any], Any], Any]] = (),
) -> Opened:
    """Trains a run in its folder, or goes on with the one that is there; returns it opened.

    Args:
      config: an experiment's config: a ConfigDict, a dict, or its `get_config`. Its model may be a Linen module of
        yours, `dict(model=Net(width=8), ...)`, whose fields are plain values.
      workdir: the run's folder.
      overrides: "KEY=VALUE", as after `--config.`.
      allow_changed: config keys that may differ from the run's in the folder.
      label: kept in `manifest.json`: dict(name=..., tags=[...], notes=...).
      callbacks: functions of (step, metrics, state), called after every evaluation.

    Raises:
      UserError: the input is wrong; the message is the line that the command line prints.
      BadNumbers, CheckpointError: see `bigjax.loop.train.train`.
    """
    folder = Path(os.path.expanduser(workdir))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"workdir: {folder} is a file, not a folder")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise UserError("callbacks: give a list of functions of (step, metrics, state)")
    raw = by_name(config)
    loop.train(
        resolve(raw, overrides),
        folder,
        allow_changed=allow_changed,
        label=label,
        callbacks=callbacks,
    )
    return opened.open_run(folder, raw=raw)


def by_name(config: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A config, or what `get_config` gives, with a Linen module as the section that names it.

    Raises:
      UserError: it is no config; the module's class cannot be imported by name.
    """
    config = config() if callable(config) else config
    try:
        raw = dict(config.items())
    except AttributeError:
        what = type(config).__name__
        raise UserError(f"config: a ConfigDict or a dict is needed, not {what}") from None
    model = raw.get("model")
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise UserError(f"config.model: give an instance, {model.__name__}(...), not the class")
    if isinstance(model, nn.Module):
        own = [f.name for f in dataclasses.fields(model) if f.init and f.name not in LINEN]
        if "<locals>" in type(model).__qualname__:
            raise UserError(f"config.model: define {type(model).__name__} outside of a function")
        name = f"{type(model).__module__}:{type(model).__qualname__}"
        raw["model"] = {"type": name, **{key: getattr(model, key) for key in own}}
    return raw


def open_run(workdir: str | Path, *, overrides: Sequence[str] = (), trust: bool = False) -> Opened:
    """The run in a folder, at its newest good checkpoint.

    trust: the folder may name code outside bigjax, which is then imported.

    Raises:
      UserError: the folder holds no run, or no checkpoint.
    """
    return opened.open_run(Path(os.path.expanduser(workdir)), overrides, trust=trust)


def open_exported(folder: str | Path, *, trust: bool = False) -> Exported:
    """What `export` wrote into a folder; `.predict(rows)` asks it.

    trust: the folder may name code outside bigjax, which is then imported.

    Raises:
      UserError: the folder holds no export, or a damaged one.
    """
    return exports.open_exported(Path(os.path.expanduser(folder)), trust)
