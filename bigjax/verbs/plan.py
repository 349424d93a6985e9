"""The verb plan: what a run will take on devices that need not be there."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from bigjax.config.resolve import Config
from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped
from bigjax.plan import changes, show, topology, worker
from bigjax.verbs.inspect import of_stage, references, resolved

Case = worker.Case
Run = Callable[..., list[dict[str, Any] | None]]  # `worker.run`


def plan_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Compiles the run's step for `--topology` and prints what it takes; trains nothing.

    --suggest, --scale and --search compile more of the kind and compare them; --output writes it all
    as a page.
    """
    if options.topology is None:
        raise UserError(f"plan needs --topology=...: {topology.FORMS}")
    wanted, sizes = topology.parsed(options.topology), _sizes(options.scale)
    price = options.price_per_device_hour
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"--price_per_device_hour={price}: must be a price, 0 or more")
    found = resolved(raw, overrides, options)
    asked = of_stage(found, options)
    if options.search is not None and not 0 < options.search < math.inf:
        raise UserError(f"--search={options.search}: must be seconds, more than 0")
    if len(asked) > 1 and (options.suggest or sizes or options.search):
        one = next(iter(asked))
        raise UserError(f"--suggest, --scale and --search look at one run: give --stage={one}")
    cases = [Case(config, *references(config, found, options)) for config in asked.values()]

    def check() -> None:
        if stop():
            raise Stopped("stopped on request")

    run = functools.partial(worker.run, check=check)
    plans = run(wanted, cases, price=price)
    for plan in plans:
        if "refused" in plan:
            raise UserError(plan["refused"])
    more: list[show.Section] = []
    if options.suggest:
        more.append(("Single changes", _suggested(cases[0], plans[0], wanted, run)))
    if sizes:
        more.append(
            ("As many rows on each device", _scaled(cases[0], plans[0], wanted, sizes, run))
        )
    if options.search:
        more.append(searched(cases[0], plans[0], wanted, options.search, run))
    if options.json:
        named = dict(zip(asked, plans, strict=True))
        print(json.dumps(named.get("", named) | dict(more), indent=2))
        return
    for name, plan in zip(asked, plans, strict=True):
        _show(name, plan, wanted, more, options)


def _show(
    name: str,
    plan: dict[str, Any],
    wanted: topology.Topology,
    more: Sequence[show.Section],
    options: argparse.Namespace,
) -> None:
    head, chip = show.headline(plan), wanted.chip
    tables, said = [*show.sections(plan, chip), *more], show.notes(plan, chip)
    print("\n\n".join([f"# stage {name}\n" * bool(name) + head, *(show.text(*t) for t in tables)]))
    print("\n" + "\n".join(said))
    if options.output is not None:
        page = options.output
        page = page.with_stem(f"{page.stem}_{name}") if name else page
        show.write(page, f"Plan: {name or options.workdir.name}", head, tables, said)


def _suggested(
    case: Case, plan: dict[str, Any], wanted: topology.Topology, run: Run
) -> list[dict[str, Any]]:
    """The plan and one for each single change, as rows."""
    found = changes.suggestions(case.config, plan["mesh"])
    plans = _plans(case, found, wanted, run)
    keeps = ["", *("same" if change.same else "others" for change in found)]
    rows = show.compared(["as it is", *(change.flags for change in found)], [plan, *plans])
    return [{**row, "numbers": kept} for row, kept in zip(rows, keeps, strict=True)]


def searched(
    case: Case, plan: dict[str, Any], wanted: topology.Topology, seconds: float, run: Run
) -> show.Section:
    """What was tried in so many seconds, the fastest that fits first; then what did not have to be compiled."""
    found = [
        change for change in changes.combinations(case.config, plan["mesh"]) if change.overrides
    ]
    made = [(change, changes.applied(case.config, change.overrides)) for change in found]
    possible = [(change.flags, one) for change, one in made if isinstance(one, Config)]
    cases = [Case(one, case.references, case.words) for _, one in possible]
    best = show.rank(plan)
    plans = run(wanted, cases, seconds=seconds, beat=best[0] if best else math.inf)
    pairs = zip((flags for flags, _ in possible), plans, strict=True)
    tried = [("as it is", plan), *(pair for pair in pairs if pair[1] is not None)]
    spared = [pair for pair in tried if "left_out" in pair[1]]
    fitting = [pair for pair in tried if show.rank(pair[1]) is not None]
    fitting.sort(key=lambda pair: show.rank(pair[1]))
    title = (
        f"Search: {len(tried) - 1} of {len(possible)} combinations tried in {seconds:g} s, "
        f"{len(spared)} of them without compiling; "
    )
    if not fitting:
        return title + "none fits", show.compared(*zip(*tried, strict=True))
    rows = show.compared(*zip(*fitting, *spared, strict=True))
    return f"{title}{len(fitting) - 1} fit; best: {fitting[0][0]}", rows


def _plans(
    case: Case, wished: Sequence[changes.Change], wanted: topology.Topology, run: Run
) -> list[dict[str, Any]]:
    """A plan for each change, or why there is none."""
    made = [changes.applied(case.config, change.overrides) for change in wished]
    cases = [Case(one, case.references, case.words) for one in made if isinstance(one, Config)]
    plans = iter(run(wanted, cases))
    return [next(plans) if isinstance(one, Config) else {"refused": one} for one in made]


def _scaled(
    case: Case,
    plan: dict[str, Any],
    wanted: topology.Topology,
    sizes: Sequence[int],
    run: Run,
) -> list[dict[str, Any]]:
    """The plan and one for each number of devices, as rows."""
    labels, plans = [wanted.name], [plan]
    for size in sizes:
        larger = wanted.of_size(size)
        change = changes.scaled(case.config, plan["mesh"], size / wanted.size)
        labels.append(f"{larger.name} {change.flags}")
        plans += _plans(case, [change], larger, run)
    return show.compared(labels, plans)


def _sizes(text: str | None) -> list[int]:
    """ "16,64" -> [16, 64]."""
    parts = text.split(",") if text else []
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise UserError(f"--scale={text}: write numbers of devices, such as --scale=16,64")
    return [int(part) for part in parts]
