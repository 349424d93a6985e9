"""The verb that hands a run's weights on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bigjax.core.errors import UserError
from bigjax.mesh import distributed
from bigjax.pretrained.export import export_folder, export_own
from bigjax.pretrained.families import family_of_model
from bigjax.verbs.predict import asked_run


def export_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Writes the run's newest weights as a folder that `transformers` loads, if their layout is published."""
    if options.format != "safetensors":
        raise UserError(f"--format={options.format}: export writes safetensors")
    run = asked_run(raw, overrides, options)
    init, model = run.config.section("init"), run.setup.values["model"]
    family = options.family or (init and init.family) or family_of_model(model)
    folder = options.output or options.workdir / "export"
    variables = jax.tree.map(distributed.whole, run.variables)
    if distributed.is_leader():
        source, preprocess = run.setup.sources["train"], run.config.make("data.preprocess")
        if family is None:
            data = {"preprocess": run.config.get("data.preprocess")}
            export_own(variables, model, folder, data | {"class_names": source.class_names})
        else:
            export_folder(variables, model, family, folder, source, preprocess)
        print(
            f"{folder}: {family or 'names of our own'}, {sum(x.size for x in jax.tree.leaves(variables)):,} numbers"
        )
