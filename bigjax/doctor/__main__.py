"""python -m bigjax.doctor [--json] [--folder=DIR]   looks at this machine; exit 1 if something is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bigjax.config.flags import expanded
from bigjax.doctor import answers, families, finding, machine, versions


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table (or JSON) and returns the exit code: 0, or 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bigjax.doctor", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--folder", type=expanded, default=Path.cwd(), help="whose disk is measured (default: here)"
    )
    options = parser.parse_args(arguments)
    return examine(options.folder, as_json=options.json)


def examine(folder: Path, *, as_json: bool = False) -> int:
    """All checks, each line shown as it is known; returns the exit code."""
    findings = []
    for found in finding.run(
        [
            versions.known_faults,
            versions.driver,
            answers.known_answers,
            answers.random_streams,
            families.gradients,
            families.split_steps,
            families.determinism,
            machine.huge_pages,
            machine.compilation_cache,
            functools.update_wrapper(functools.partial(machine.disk, folder), machine.disk),
            machine.memory,
            machine.clock,
        ]
    ):
        findings.append(found)
        if not as_json:
            print(finding.line(found), flush=True)
    wrong = any(found.status == "wrong" for found in findings)
    if as_json:
        shown = [dataclasses.asdict(found) for found in findings]
        print(json.dumps({"ok": not wrong, "findings": shown}, indent=2))
    else:
        print(finding.verdict(findings))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
