"""The verb that makes a finished run smaller, and says what that costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from bigjax.core.errors import UserError
from bigjax.mesh import distributed
from bigjax.run.text import table
from bigjax.verbs.predict import asked_run


def shrink_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Applies each --chain to the run in the folder; prints the table of all models."""
    from bigjax.compress.chain import STEPS, Options, parsed, parsed_rule
    from bigjax.compress.shrink import FOLDER, shrink
    from bigjax.core.quantize import FORMATS

    if not options.chain:
        raise UserError(
            f"shrink needs --chain=STEP,STEP such as --chain=prune:0.9,int8; steps: {', '.join(STEPS)}"
        )
    if distributed.is_joined():
        raise UserError("shrink runs in one process")
    steps = [parsed(text) for text in options.chain]  # before the run is opened
    others = tuple(parsed_rule(text) for text in options.rule)
    formats = {word.partition(":")[0] for chain in steps for word, *_ in chain} & set(FORMATS)
    if others and not formats:
        raise UserError(f"--rule is for the steps {', '.join(FORMATS)}; no --chain has one")
    run = asked_run(raw, overrides, options, options.split and (options.split,))
    if not run.setup.evaluate.splits:
        raise UserError("shrink needs --split=NAME: config.evaluate.splits has none")
    split = run.setup.evaluate.splits[-1]
    found = shrink(run, options.chain, split, Options(options.keep, options.calibration, others))
    print(table(found))
    print(f"page: {run.workdir / FOLDER / 'shrink.html'}")
