"""The resume contract: what a run that goes on promises, given what has changed since it was stopped.

Config keys and data that change what is computed are refused unless allowed by name. Other code,
versions or flags are listed, and the promise is weakened: a researcher commits many times a day, and
is told rather than stopped. Reads and writes `config.json` and `manifest.json`, nothing else.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigjax.config import resolve as configs
from bigjax.config.resolve import Config
from bigjax.core.errors import UserError
from bigjax.run.files import plain, write_json

log = logging.getLogger("bigjax")

BITWISE = "bitwise: the run goes on as if it had never stopped"
OTHER_MESH = (
    "state bitwise after restore, sample ids identical, "
    "first loss within 1e-6 relative, step 20 within 1e-5 (float32)"
)
OTHER_DEVICES = "state bitwise after restore, sample ids identical, losses within rounding"
UNLESS = "; as far as what changed computes the same"
NOT_THE_SAME = "state bitwise after restore; from there on another run, as allowed"


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
      run: the run's id, made at its first start; its checkpoints carry it.
      about: what `manifest.describe` says of this start.
      changed: "key: old -> new" lines against the start before; None at the first start.
      contract: what holds if a checkpoint is restored.
    """

    run: str
    about: dict[str, Any]
    changed: list[str] | None
    contract: str


def check_config(config: Config, workdir: Path, allowed: Sequence[str] = ()) -> list[str]:
    """Lines "key: old -> new" for the config keys that differ from the run's in the folder.

    Raises:
      UserError: a key that changes what is computed differs, and is not under one of `allowed`.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    old = configs.load(path)
    changed = configs.difference(old, config, ignore=(*configs.FREE_ON_RESUME, *allowed))
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config; changed: {'; '.join(changed)}. "
            "Use the old values, another --workdir, or --allow_changed=KEY"
        )
    return configs.difference(old, config)


def begin(
    workdir: Path, about: dict[str, Any], config_changes: list[str], allowed: Sequence[str] = ()
) -> Session:
    """Compares this start with the one before it; writes nothing.

    Args:
      about: what `manifest.describe` says of this start.
      config_changes: from `check_config`.

    Raises:
      UserError: the data changed and `allowed` has no "data".
    """
    about, path = plain(about), workdir / "manifest.json"
    if not path.exists():
        return Session(_new_id(), about, None, BITWISE)
    first = json.loads(path.read_text())
    before = {**first, **(first["resumes"][-1] if first["resumes"] else {})}
    changed, refused = list(config_changes), []
    for part in ("data", "code", "versions", "flags"):
        old, new = _flat(part, before[part]), _flat(part, about[part])
        lines = [
            f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}"
            for key in sorted(
                old.keys() & new.keys() if part == "data" else old.keys() | new.keys()
            )
            if old.get(key) != new.get(key)
        ]
        changed += lines
        refused += lines if part == "data" and not _covers(allowed, "data") else []
    if refused:
        raise UserError(f"{workdir}: the data is not the run's: {'; '.join(refused)}")
    broken = [c for c in config_changes if not _covers(configs.FREE_ON_RESUME, c.split(":")[0])]
    contract = _contract(before["devices"], about["devices"])
    if broken or any(line.startswith("data.") for line in changed):
        contract = NOT_THE_SAME
    elif any(line.startswith(("code.source", "versions.", "flags.")) for line in changed):
        contract += UNLESS
    return Session(first["run"], about, changed, contract)


def record(workdir: Path, config: Config, session: Session, step: int) -> None:
    """Writes `config.json`, and this start into `manifest.json`: the first as it is, others below it."""
    path = workdir / "manifest.json"
    if session.changed is None:
        write_json(path, {"run": session.run, **session.about, "resumes": []})
    else:
        first = json.loads(path.read_text())
        contract = {"step": step, "contract": session.contract, "changed": session.changed}
        first["resumes"].append({**contract, **session.about})
        write_json(path, first)
    write_json(workdir / "config.json", config.values)


def announce(session: Session) -> None:
    """Logs the contract of this resume, and every change since the start before."""
    log.info("contract: %s", session.contract)
    for line in session.changed or ():
        log.warning("changed: %s", line)


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


def _flat(name: str, part: dict[str, Any]) -> dict[str, Any]:
    flat = configs.flatten({name: part}) if part else {}
    if xla := flat.get("flags.XLA_FLAGS"):  # the number of simulated devices is the mesh's affair
        others = [flag for flag in xla.split() if "host_platform_device_count" not in flag]
        flat["flags.XLA_FLAGS"] = " ".join(others) or None
    return {key: value for key, value in flat.items() if value is not None}


def _short(value: Any) -> str:
    """A value for a line of text; of a hash, the first digits tell enough."""
    text = "(absent)" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def _new_id() -> str:
    """A random id, the same on every process."""
    number = np.frombuffer(secrets.token_bytes(8), np.uint32)
    if jax.process_count() > 1:
        number = multihost_utils.broadcast_one_to_all(number)
    return np.asarray(number).tobytes().hex()
