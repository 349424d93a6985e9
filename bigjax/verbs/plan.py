"""The verb plan: what a run will take on devices that need not be there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from bigjax.core.errors import UserError
from bigjax.plan import show, topology, worker
from bigjax.verbs.inspect import of_stage, references, resolved


def plan_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Compiles the run's step for `--topology` and prints what it takes; trains nothing.

    Writes the same to `plan.html` where --output names it.
    """
    if options.topology is None:
        raise UserError(f"plan needs --topology=...: {topology.FORMS}")
    wanted = topology.parsed(options.topology)
    found = resolved(raw, overrides, options)
    asked = of_stage(found, options)
    cases = [worker.Case(c, references(c, found, options)) for c in asked.values()]
    plans = worker.run(wanted, cases, price=options.price_per_device_hour)
    for plan in plans:
        if "refused" in plan:
            raise UserError(plan["refused"])
    if options.json:
        named = dict(zip(asked, plans, strict=True))
        print(json.dumps(named.get("", named), indent=2))
        return
    for name, plan in zip(asked, plans, strict=True):
        head, chip = show.headline(plan), wanted.chip
        tables, said = show.sections(plan, chip), show.notes(plan, chip)
        print(
            "\n\n".join([f"# stage {name}\n" * bool(name) + head, *(show.text(*t) for t in tables)])
        )
        print("\n" + "\n".join(said))
        if options.output is not None:
            path = (
                options.output.with_stem(f"{options.output.stem}_{name}")
                if name
                else options.output
            )
            show.write(path, f"Plan: {name or options.workdir.name}", head, tables, said)
