"""What a run was made of, and the resume contract: what a run that goes on promises, given what changed.

`manifest.json` holds code revision, versions, devices, flags and data of every start. Config keys and
data that change what is computed are refused unless allowed by name. Other code, versions or flags
are listed, and the promise is weakened: a researcher commits many times a day, and is told rather
than stopped. Reads and writes `config.json` and `manifest.json`, nothing else.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigjax.config import resolve as configs
from bigjax.config.config import Config
from bigjax.core.errors import UserError
from bigjax.run.code import code_revision, versions
from bigjax.run.files import RUN_ID, plain, read_json, write_json
from bigjax.run.public import command, shown

log = logging.getLogger("bigjax")

FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION")

BITWISE = "bitwise: the run goes on as if it had never stopped"
OTHER_MESH = (
    "state bitwise after restore, sample ids identical, "
    "first loss within 1e-6 relative, step 20 within 1e-5 (float32)"
)
OTHER_DEVICES = "state bitwise after restore, sample ids identical, losses within rounding"
UNLESS = "; as far as what changed computes the same"
NOT_THE_SAME = "state bitwise after restore; from there on another run, as allowed"
LOST = "state bitwise after restore; manifest.json was lost, so nobody knows what else changed"

# Keys that say where, how often and how fast, never what: free to change between resumes.
FREE_ON_RESUME = (
    "mesh",
    "sharding.rules",
    "sharding.logical",
    "sharding.offload_optimizer",
    "log",
    "check",
    "checkpoint",
    "evaluate",
    "evaluators",
    "data.source.data_dir",
    "data.workers",
)
LENGTHS = {"train.steps", "train.epochs", "train.examples"}

_ABSENT = "(absent)"


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
      run: the run's id, made at its first start; its checkpoints carry it.
      about: what `describe` says of this start.
      changed: "key: old -> new" lines against the start before; None where none is known.
      contract: what holds if a checkpoint is restored.
    """

    run: str
    about: dict[str, Any]
    changed: list[str] | None
    contract: str


def describe(config: Config, mesh: Any, sources: dict[str, Any]) -> dict[str, Any]:
    """What a start that happens now is made of.

    Args:
      config: the run's `Config`.
      mesh: the run's mesh.
      sources: split name -> data source.
    """
    devices = mesh.devices.flatten()
    return {
        "command": command(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.seed,
        "config_fingerprint": config.fingerprint,
        "code": code_revision(),
        "versions": versions(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        },
        "flags": {name: shown(name, os.environ[name]) for name in FLAGS if name in os.environ},
        "data": {
            split: {"examples": len(source), "fingerprint": source.fingerprint()}
            for split, source in sources.items()
        },
        "class_names": sources["train"].class_names,
        "fitted": getattr(sources["train"], "fitted", None),
        "tokenizer": getattr(getattr(sources["train"], "tokenizer", None), "fingerprint", None),
    }


def check_config(config: Config, workdir: Path, allowed: Sequence[str] = ()) -> list[str]:
    """Lines "key: old -> new" for the config keys that differ from the run's in the folder.

    Raises:
      UserError: a key that changes what is computed differs, and is not under one of `allowed`; or
        the folder's config is lost, and this is not the one its checkpoints were made with.
    """
    path = workdir / "config.json"
    if not path.exists():
        saved = _newest_save(workdir)
        if saved and saved["config_fingerprint"] != config.fingerprint and "config" not in allowed:
            raise UserError(
                f"{path} is lost, and this config is not the one of the checkpoints there (by its "
                "fingerprint): use that one, another --workdir, or --allow_changed=config"
            )
        return []
    old = configs.load(path, trusted=config.trusted)
    free = (*FREE_ON_RESUME, *allowed)
    if changed := differences(old.values, config.values, ignore=free):
        keys = [line.partition(":")[0] for line in changed]
        allow = " ".join(f"--allow_changed={key}" for key in keys[:3]) + " ..." * (len(keys) > 3)
        what = "to go on past its end" if set(keys) <= LENGTHS else "to go on with the new ones"
        raise UserError(
            f"{workdir} holds a run of another config; changed: {'; '.join(changed)}. "
            f"Use the old values, another --workdir, --fresh (sets the old run aside), or {what} {allow}"
        )
    return differences(old.values, config.values)


def begin(
    workdir: Path, about: dict[str, Any], config_changes: list[str], allowed: Sequence[str] = ()
) -> Session:
    """Compares this start with the one before it; writes nothing.

    Where `manifest.json` is lost or damaged, the run keeps the id that its checkpoints carry.

    Args:
      about: what `describe` says of this start.
      config_changes: from `check_config`.

    Raises:
      UserError: the data changed and `allowed` has no "data".
    """
    about, first = plain(about), read_manifest(workdir)
    if first is None:
        if saved := _newest_save(workdir):
            log.warning("%s is lost: made anew", workdir / "manifest.json")
            return Session(saved["run"], about, None, LOST)
        return Session(_new_id(), about, None, BITWISE)
    before = newest_start(first)
    data = _changed("data", before, about)
    data = [line for line in data if _ABSENT not in line]  # a split more or less is no change
    others = [
        line for part in ("code", "versions", "flags") for line in _changed(part, before, about)
    ]
    if data and not _covers(allowed, "data"):
        raise UserError(f"{workdir}: the data is not the run's: {'; '.join(data)}")
    broken = [c for c in config_changes if not _covers(FREE_ON_RESUME, c.split(":")[0])]
    contract = _contract(before["devices"], about["devices"])
    if broken or data:
        contract = NOT_THE_SAME
    elif any(line.startswith(("code.source", "versions.", "flags.")) for line in others):
        contract += UNLESS
    return Session(first["run"], about, [*config_changes, *data, *others], contract)


def read_manifest(workdir: Path) -> dict[str, Any] | None:
    """The run's `manifest.json`; None if it is not there or, with a warning, damaged."""
    path = workdir / "manifest.json"
    found = read_json(path)
    if found is None:
        return None
    resumes = found.get("resumes")
    starts = [found, *(resumes if isinstance(resumes, list) else [None])]
    if not RUN_ID.fullmatch(str(found.get("run"))) or not all(map(_is_start, starts)):
        log.warning("%s is damaged and counts as lost (it is no run's manifest)", path)
        return None
    return found


def newest_start(first: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of the newest start; what a start does not say is as it was before."""
    return {**first, **(first["resumes"][-1] if first["resumes"] else {})}


def known_of(workdir: Path) -> dict[str, Any]:
    """What a run's folder says of its newest start; next to nothing without a good `manifest.json`."""
    return newest_start(read_manifest(workdir) or {"resumes": []})


def check_fitted(workdir: Path, source: Any) -> None:
    """Refuses a train split by which a run's predictions would be read wrongly.

    Raises:
      UserError: its class names, or what else a source fits to it, are not those of the run.
    """
    known = known_of(workdir)
    for part in ("class_names", "fitted"):
        old, new = known.get(part), plain(getattr(source, part, None))
        if old is not None and old != new:
            raise UserError(
                f"{workdir}: the train split is not the run's: what is fitted to it ({part}) differs; "
                "bring the data back as it was, or train anew"
            )


def _is_start(about: Any) -> bool:
    """Whether this can be what `describe` said of a start."""
    parts = ("code", "versions", "flags", "data", "devices")
    if not isinstance(about, dict) or not all(isinstance(about.get(p), dict) for p in parts):
        return False
    devices, flags = about["devices"], about["flags"]
    return (
        {"platform", "kind", "processes"} <= devices.keys()
        and isinstance(devices.get("mesh"), dict)
        and isinstance(devices["processes"], int)
        and all(isinstance(flag, str) for flag in flags.values())
    )


def check_frozen(workdir: Path, now: Mapping[str, str], allowed: Sequence[str] = ()) -> None:
    """Refuses to go on with another teacher, or whatever else a run reads and does not train.

    Args:
      now: name -> fingerprint. What is under one of `allowed`, such as "method.teacher", may differ.

    Raises:
      UserError: one is not what the run's newest start had.
    """
    known = known_of(workdir).get("frozen") or {}
    for name, fingerprint in now.items():
        then = known.get(name, fingerprint)
        if then != fingerprint and not _covers(allowed, f"method.{name}"):
            raise UserError(
                f"{workdir}: '{name}' is not the one that this run began with: contents {then[:12]} "
                f"then, {fingerprint[:12]} now; bring it back, use another --workdir, or go on with "
                f"the new one: --allow_changed=method.{name}"
            )


def record(
    workdir: Path, config: Config, session: Session, step: int, frozen: Mapping[str, str]
) -> None:
    """Writes `config.json`, and this start into `manifest.json`: the first as it is, others below it.

    frozen: name -> fingerprint of what is read, and neither trained nor saved.
    """
    path = workdir / "manifest.json"
    bound = {"frozen": dict(frozen)} if frozen else {}
    if session.changed is None:
        if path.exists():  # damaged
            path.replace(path.with_name("manifest.json.damaged"))
        write_json(path, {"run": session.run, **session.about, **bound, "resumes": []})
    else:
        first = read_manifest(workdir)
        contract = {"step": step, "contract": session.contract, "changed": session.changed}
        first["resumes"].append({**contract, **session.about, **bound})
        write_json(path, first)
    write_json(workdir / "config.json", config.values)


def announce(session: Session) -> None:
    """Logs the contract of this resume, and every change since the start before."""
    log.info("contract: %s", session.contract)
    for line in session.changed or ():
        log.warning("changed: %s", line)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()
) -> list[str]:
    """Lines "key: old -> new", by dotted keys, for all that differs between two nested dicts.

    Args:
      ignore: keys that may differ, with all below them.
    """
    before, after = (
        {key: value for key, value in configs.flatten(side).items() if value != {}}
        for side in (old, new)
    )
    return [
        f"{key}: {shown(key, before.get(key, _ABSENT))} -> {shown(key, after.get(key, _ABSENT))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, _ABSENT) != after.get(key, _ABSENT) and not _covers(ignore, key)
    ]


def _changed(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences in one part of a manifest."""
    return differences({part: _comparable(part, old)}, {part: _comparable(part, new)})


def _comparable(part: str, about: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in about[part].items() if value is not None}
    if part == "flags" and "XLA_FLAGS" in values:  # simulated devices are the mesh's affair
        flags = values.pop("XLA_FLAGS").split()
        others = [flag for flag in flags if "host_platform_device_count" not in flag]
        values |= {"XLA_FLAGS": " ".join(others)} if others else {}
    return values


def _contract(old: dict[str, Any], new: dict[str, Any]) -> str:
    if old == new:
        return f"same mesh; {BITWISE}"
    if (old["platform"], old["kind"]) != (new["platform"], new["kind"]):
        return f"{new['kind']} instead of {old['kind']}; {OTHER_DEVICES}"
    return f"{_mesh(new)} instead of {_mesh(old)}; {OTHER_MESH}"


def _mesh(devices: dict[str, Any]) -> str:
    axes = " x ".join(f"{axis} {size}" for axis, size in devices["mesh"].items()) or "one device"
    return f"{axes} in {devices['processes']} processes" if devices["processes"] > 1 else axes


def _covers(allowed: Sequence[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _newest_save(workdir: Path) -> dict[str, Any] | None:
    """What the newest checkpoint says of the run; None if there is none with a true manifest."""
    from bigjax.run.checkpoint import newest_manifest  # brings TensorStore, hardly needed

    return newest_manifest(workdir)


def _new_id() -> str:
    """A random id, the same on every process."""
    number = np.frombuffer(secrets.token_bytes(8), np.uint32)
    if jax.process_count() > 1:
        number = multihost_utils.broadcast_one_to_all(number)
    return np.asarray(number).tobytes().hex()
