"""A sweep run again from its `manifest.json`, and the comparison of the two.

`python -m bigjax.sweep reproduce DIR/manifest.json --workdir=NEW`. The configs are the recorded ones:
the experiment's file is not read. A run's folder does as well.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config import resolve as configs
from bigjax.config.flags import expanded, parsed
from bigjax.config.values import TRUST_ALL, check_trusted, fingerprint, flatten, plain
from bigjax.core.errors import UserError
from bigjax.run import code
from bigjax.run.files import read_json, workdir_lock
from bigjax.run.manifest import differences
from bigjax.run.text import table
from bigjax.sweep import drive
from bigjax.sweep.describe import Sweep
from bigjax.sweep.executors import Local
from bigjax.sweep.record import FORMAT, new_start, outcome, record
from bigjax.sweep.trials import FOLDER, Trial, beside
from bigjax.verbs.launch import FAILED, OK, Stop

EQUAL, WITHIN, DIFFERENT, LEFT_OUT = "equal", "within tolerance", "different", "not run"
RELATIVE = 1e-3  # tolerance of the final metrics
ENDED = ("done", "failed")  # what is run again: where pruning stops a trial depends on the others
ROW = ("name", "status", "point", "seed", "needs", "in_table", "config", "config_fingerprint")


def main(arguments: Sequence[str]) -> int:
    """Runs what the command line names again and prints the comparison; returns the exit code.

    Raises:
      UserError: a wrong command line, no readable manifest, or a folder that is in use.
      Stopped: on request; the same command goes on.
    """
    options, overrides = _parse(arguments)
    folder, old = read(options.manifest)
    trials = recorded_trials(old, overrides, options.trust)
    recorded = old["starts"][-1]["how"] if old["starts"] else {}
    how = {
        name: given if (given := getattr(options, name)) is not None else recorded.get(name)
        for name in ("workers", "devices", "vectorize")
    }
    check_workdir(options.workdir, folder, trials)
    with (
        workdir_lock(options.workdir),
        Local(how["workers"], how["devices"] or 1) as executor,
    ):
        plan = drive.Plan(executor, options.workdir, Stop(), how["vectorize"])
        new = run(old, trials, plan, new_start(how))
    rows, verdicts = verdict_rows(old, new, options.rtol)
    print(table(rows))
    counts = ", ".join(f"{verdicts[v]} {v}" for v in (EQUAL, WITHIN, DIFFERENT, LEFT_OUT))
    print(
        f"\n{len(rows)} trials: {counts}\n{EQUAL}: parameters, losses and final metrics, bit for bit"
        f"; {WITHIN}: every final scalar metric within {options.rtol:g} relative"
    )
    found = changes(old, new, folder)
    nothing = "changed: nothing in code, versions, devices, flags, data, config"
    print("\n  ".join(["changed:", *found]) if found else nothing)
    return FAILED if verdicts[DIFFERENT] else OK


def read(path: Path) -> tuple[Path, dict[str, Any]]:
    """(the folder, the sweep's manifest) of a manifest or folder of a sweep, or of a single run.

    Raises:
      UserError: it is not there, or not the manifest of a sweep or run.
    """
    path = path / "manifest.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text())
        if "resumes" in found:
            found = {"sweep": None, "starts": [], "trials": list(_runs(path.resolve().parent))}
        elif found["format"] != FORMAT:
            raise UserError(f"{path}: format {found['format']!r}, not {FORMAT}")
        for row in found["trials"]:
            if missing := [key for key in ROW if key not in row]:
                raise UserError(f"{path}: a trial without {', '.join(missing)}")
            if Path(row["name"]).name != row["name"]:
                raise UserError(f"{path}: '{row['name']}' is no name of a trial")
            if row["status"] in ENDED:
                flatten(row["environment"]), row["losses"]
            if row["status"] == "done":
                row["fingerprint"], row["metrics"].keys()
        if found["sweep"]:
            _sweep(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the manifest of a sweep or run ({type(error).__name__}: {error})"
        ) from None
    if not any(row["status"] in ENDED for row in found["trials"]):
        raise UserError(f"{path}: no trial of it was run to an end")
    return path.resolve().parent, found


def recorded_trials(
    recorded: Mapping[str, Any], overrides: Sequence[str] = (), trust: bool = False
) -> list[Trial]:
    """The trials that ended, from their recorded configs, and "KEY=VALUE" changes to all of them.

    Raises:
      UserError: today's code refuses a config, or it would import what the user has not named.
    """
    trusted = [TRUST_ALL] * trust
    trials = []
    for row in recorded["trials"]:
        if row["status"] not in ENDED:
            continue
        try:
            check_trusted(Path(row["name"]), row["config"], trusted)
            config = configs.resolve(row["config"], overrides)
        except UserError as error:
            raise UserError(f"trial {row['name']}: {error}") from None
        needs = tuple(row["needs"])
        trials.append(Trial(row["name"], config, row["point"], row["seed"], needs, row["in_table"]))
    return trials


def check_workdir(workdir: Path, recorded: Path, trials: Sequence[Trial]) -> None:
    """Refuses a folder in which other runs would be taken for these.

    Raises:
      UserError: see above.
    """
    if workdir.resolve() == recorded:
        raise UserError(f"--workdir={workdir} is what is to be reproduced: choose a new folder")
    for trial in trials:
        path = trial.folder(workdir) / "config.json"
        if path.exists() and plain(read_json(path)) != trial.config.values:
            raise UserError(f"{path.parent} is of another config: choose a new --workdir")


def run(
    recorded: Mapping[str, Any], trials: Sequence[Trial], plan: drive.Plan, start: dict[str, Any]
) -> dict[str, Any]:
    """Runs the trials and writes the new sweep's manifest and table; returns the manifest."""
    try:
        drive.run_trials(trials, plan)
    finally:
        new = record(recorded["sweep"], trials, plan.workdir, start)
    if recorded["sweep"]:
        drive.conclude(_sweep(recorded), trials, plan.workdir)
    return new


def verdict_rows(
    old: Mapping[str, Any], new: Mapping[str, Any], rtol: float = RELATIVE
) -> tuple[list[dict[str, str]], Counter[str]]:
    """(a line of the table for every trial, how many have which verdict)."""
    again, rows = {row["name"]: row for row in new["trials"]}, []
    for row in old["trials"]:
        word, why = LEFT_OUT, f"was {row['status']}"
        if row["status"] in ENDED:
            word, why = verdict(row, again[row["name"]], rtol)
        rows.append({"trial": row["name"], "result": word, "first difference": why})
    return rows, Counter(row["result"] for row in rows)


def verdict(old: Mapping[str, Any], new: Mapping[str, Any], rtol: float) -> tuple[str, str]:
    """(equal, within tolerance or different; what differs first) of a trial run twice.

    Within tolerance are final scalar metrics with |a - b| <= rtol * max(|a|, |b|), all of them.
    """
    if old["status"] != new["status"]:
        reason = f": {new['reason']}" if "reason" in new else ""
        return DIFFERENT, f"was {old['status']}, is {new['status']}{reason}"
    before, after = old.get("metrics", {}), new.get("metrics", {})
    others = ("fingerprint", "losses")
    found = differences(before, after)
    found += differences(*({name: side.get(name) for name in others} for side in (old, new)))
    if not found:
        return EQUAL, ""
    if old["status"] == "failed":
        return DIFFERENT, "fails again, after other losses"
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if not isinstance(a, list) and not _close(a, b, rtol):
            return DIFFERENT, f"{name}: {a} -> {b}"
    return WITHIN, found[0]


def _close(a: Any, b: Any, rtol: float) -> bool:
    """Whether two scalar metrics are the same, or there and within tolerance; "NaN" is itself."""
    return a == b or (None not in (a, b) and math.isclose(float(a), float(b), rel_tol=rtol))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> list[str]:
    """Lines "key: then -> now (in how many trials)" for what the trials were made of.

    Args:
      folder: of the recorded sweep; where its runs are still there they tell what was edited.
    """
    again, found = {row["name"]: row for row in new["trials"]}, Counter()
    rows = [row for row in old["trials"] if row["status"] in ENDED]
    for row in rows:
        now = again[row["name"]]
        lines = _edited(row, folder)
        lines += differences({"config": row["config"]}, {"config": now["config"]})
        if "environment" in now:
            lines += differences(row["environment"], now["environment"])
        if "start" in row and "start" in now:
            starts = old["starts"][row["start"]], new["starts"][now["start"]]
            lines += differences(*map(_packages, starts))
        found.update(list(dict.fromkeys(lines)))
    return [f"{line} ({n} of {len(rows)} trials)" for line, n in found.items()]


def _edited(row: Mapping[str, Any], folder: Path) -> list[str]:
    """Where a recorded config is not the one that was run, by its fingerprint: what was edited."""
    if fingerprint(row["config"]) == row["config_fingerprint"]:
        return []
    flat = flatten(row["config"])
    config = read_json(folder / FOLDER / row["name"] / "config.json")
    if config is not None:
        was = flatten(config)
    else:
        was = {**flat, **{key: value for key, value in row["point"].items() if key in flat}}
    lines = differences({"config": was}, {"config": flat})
    lines = lines or ["config: not the one that was run, by its fingerprint"]
    return [f"{line} (edited in the manifest)" for line in lines]


def _packages(start: Mapping[str, Any]) -> dict[str, Any]:
    """A start's packages but those that every run names itself, and its uncommitted changes."""
    others = {n: v for n, v in start["packages"].items() if n not in code.PACKAGES}
    return {"packages": others, "code": {"diff_sha256": start["code"]["diff_sha256"]}}


def _sweep(recorded: Mapping[str, Any]) -> Sweep:
    """The recorded sweep, its points as they are: nothing is drawn again."""
    return Sweep(**{**recorded["sweep"], "search": None})


def _runs(folder: Path) -> list[dict[str, Any]]:
    """A run's folder as the trial of a sweep, after the runs beside it that it needs."""
    path = folder / "config.json"
    config = configs.load(path)
    needed = [_runs((folder / other).resolve()) for other in beside(config).values()]
    row = {
        "name": folder.name,
        "point": {},
        "seed": config.seed,
        "needs": [other["name"] for rows in needed for other in rows],
        "in_table": True,
        "config": json.loads(path.read_text()),
    }
    return [*(other for rows in needed for other in rows), {**row, **outcome(folder)}]


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m bigjax.sweep reproduce",
        allow_abbrev=False,
        exit_on_error=False,
        epilog="--config.KEY=VALUE changes every trial, e.g. where the data lies",
    )
    parser.add_argument("manifest", type=Path, help="of a sweep; or the folder of a sweep or run")
    parser.add_argument("--workdir", type=expanded, required=True, help="a new folder")
    parser.add_argument("--rtol", type=float, default=RELATIVE, help="of final metrics, relative")
    parser.add_argument("--trust", action="store_true", help="run what code the configs name")
    for name in ("workers", "devices", "vectorize"):
        parser.add_argument(f"--{name}", type=int, help="as for a sweep; default: as recorded")
    return parsed(parser, arguments)
