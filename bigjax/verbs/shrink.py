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
    from bigjax.compress.chain import STEPS, Options, parsed
    from bigjax.compress.shrink import FOLDER, shrink

    if not options.chain:
        raise UserError(
            f"shrink needs --chain=STEP,STEP such as --chain=prune:0.9,int8; steps: {', '.join(STEPS)}"
        )
    if distributed.is_joined():
        raise UserError("shrink runs in one process")
    for text in options.chain:
        parsed(text)  # before the run is opened
    run = asked_run(raw, overrides, options, options.split and (options.split,))
    if not run.setup.evaluate.splits:
        raise UserError("shrink needs --split=NAME: config.evaluate.splits has none")
    split = run.setup.evaluate.splits[-1]
    found = shrink(run, options.chain, split, Options(options.keep, options.calibration))
    print(table(found, list(found[0])))
    print(f"page: {run.workdir / FOLDER / 'shrink.html'}")
