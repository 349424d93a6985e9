"""The verb that hands a run's weights on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bigjax.core.errors import UserError
from bigjax.export.adapters import export_adapters
from bigjax.export.write import Format, parsed_format, write_export
from bigjax.mesh import distributed
from bigjax.pretrained.families import family_of_model
from bigjax.verbs.predict import asked_run


def export_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Writes the run's newest weights as a folder that is enough by itself, see `bigjax.export`."""
    form = parsed_format(options.format)
    run = asked_run(raw, overrides, options)
    init, model = run.config.section("init"), run.setup.values["model"]
    family = options.family or (init and init.family) or _family(model, form)
    folder = options.output or options.workdir / "export"
    variables = jax.tree.map(distributed.whole, run.variables)
    if distributed.is_leader():
        if form.kind == "peft":
            off = export_adapters(run, variables, family, folder)
        else:
            card = write_export(run, variables, form, family, folder)
            off = card["checked"]["largest_difference"]
        size = sum(x.size for x in jax.tree.leaves(variables))
        print(
            f"{folder}: {form}, {family or 'names of our own'}, {size:,} numbers, {off:.2g} off the run"
        )


def _family(model: Any, form: Format) -> str | None:
    """The published layout that says a model; None, and why, where none does and the format needs none."""
    try:
        return family_of_model(model)
    except UserError as reason:
        if form.kind not in ("safetensors", "stablehlo", "onnx"):
            raise
        print(f"{reason}; so under names of our own")
        return None
