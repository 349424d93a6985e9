"""Weights from other runs: a teacher's, or those that `config.init` starts from.

Which leaves come from where is said by rules; what is missing or of another shape is an error that
names it. Reads run folders through `checkpoint`, and writes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from bigjax.checkpoint import restore_leaves
from bigjax.config import Config, load
from bigjax.errors import UserError
from bigjax.parts import key_data, traced_hyper
from bigjax.program import Program
from bigjax.rules import map_with_path, match_rules, paths
from bigjax.state import TrainState


def initial_state(config: Config, program: Program, workdir: Path) -> TrainState:
    """The state before step 1: from scratch, or with weights from the run that `config.init` names."""
    state = program.init(key_data(config.seed), traced_hyper(config))
    init = config.section("init")
    if init is None:
        return state
    folder = run_folder(workdir, init.source, "config.init.source")
    variables = {"params": state.params, **state.collections}
    wanted = _source_paths(init.rules, state)
    values = read_leaves(
        folder, {path: paths(variables)[target] for target, path in wanted.items()}
    )
    variables = map_with_path(
        lambda path, leaf: values[wanted[path]] if path in wanted else leaf, variables
    )
    return program.init_from(variables, state.rng, state.hyper)


def _source_paths(rules: Any, state: TrainState) -> dict[str, str]:
    """Path in this run's variables -> path in the source's, for every leaf that a rule takes over."""
    found = {}
    for collection, tree in {"params": state.params, **state.collections}.items():
        matched = match_rules([(p, (p, t)) for p, t in rules], tree, what="config.init.rules")
        for path, (pattern, template) in matched.items():
            if template is not None:
                source = re.fullmatch(pattern, path).expand(template)
                found[f"{collection}/{path}"] = f"{collection}/{source}"
    return found


def with_hyper(state: TrainState, config: Config) -> TrainState:
    """The state with this config's traced scalars, where a resume allows other ones than it saved."""
    place = lambda old, new: jax.device_put(new, old.sharding)  # noqa: E731
    return state.replace(hyper=jax.tree.map(place, state.hyper, traced_hyper(config)))


def run_folder(workdir: Path, path: str, where: str) -> Path:
    """The folder of another run; a path that starts with "." is seen from this run's own folder.

    Raises:
      UserError: there is no run.
    """
    folder = (workdir / path).resolve() if path.startswith(".") else Path(path)
    if not (folder / "config.json").exists():
        raise UserError(f"{where}: {folder} holds no run (no config.json)")
    return folder


def load_teacher(config: Config, program: Program, workdir: Path) -> Any:
    """The teacher's variables from its run's newest checkpoint; None without distillation."""
    if program.teacher is None:
        return None
    folder = run_folder(workdir, config.get("distill.teacher"), "config.distill.teacher")
    return read_variables(folder, program.teacher)


def teacher_config(config: Config, workdir: Path) -> Config | None:
    """The config of the run that `config.distill` names; None without distillation."""
    if config.values["distill"] is None:
        return None
    folder = run_folder(workdir, config.get("distill.teacher"), "config.distill.teacher")
    return load(folder / "config.json")


def read_variables(folder: Path, abstract: Any) -> Any:
    """A run's Linen variables from its newest checkpoint, laid out as `abstract` says."""
    leaves = read_leaves(folder, paths(abstract))
    return map_with_path(lambda path, _: leaves[path], abstract)


def read_leaves(folder: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """Some arrays of a run's newest checkpoint: path in its variables -> array.

    The parameters are the moving average where the run kept one.

    Args:
      folder: the run's folder.
      wanted: path such as "params/dense_0/kernel" -> array or ShapeDtypeStruct that says the
        shape, dtype and sharding to come in.

    Raises:
      UserError: the run lacks a leaf, or has it in another shape.
    """
    params = "ema" if load(folder / "config.json").get("train.ema_decay") else "params"

    def in_state(path: str) -> str:
        collection, _, rest = path.partition("/")
        return f"{params}/{rest}" if collection == "params" else f"collections/{path}"

    restored = restore_leaves(folder, {in_state(path): leaf for path, leaf in wanted.items()})
    return {path: restored[in_state(path)] for path in wanted}
