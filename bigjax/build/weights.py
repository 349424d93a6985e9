"""Weights from other runs: a teacher's, or those that `config.init` starts from.

Which leaves come from where is said by rules; what is missing or of another shape is an error that
names it. Reads run folders through `checkpoint`, and writes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from bigjax.build.parts import key_data, traced_hyper
from bigjax.build.program import Program
from bigjax.config.resolve import Config, load
from bigjax.core.errors import UserError
from bigjax.core.rules import map_with_path, match_rules, paths
from bigjax.core.state import TrainState
from bigjax.run.checkpoint import has_checkpoints, restore_leaves


def initial_state(config: Config, program: Program, workdir: Path) -> TrainState:
    """The state before step 1: from scratch, or with weights from the run that `config.init` names."""
    state = program.init(key_data(config.seed), traced_hyper(config))
    init = config.section("init")
    if init is None:
        return state
    variables = {"params": state.params, **state.collections}
    wanted = _source_paths(init.rules, variables)
    leaves = {path: paths(variables)[target] for target, path in wanted.items()}
    if init.family is None:
        values = read_leaves(run_folder(workdir, init.source, "config.init.source"), leaves)
    else:
        from bigjax.pretrained.load import read_published

        values = read_published(init, config.get("model"), leaves)
    variables = map_with_path(
        lambda path, leaf: values[wanted[path]] if path in wanted else leaf, variables
    )
    return program.init_from(variables, state.rng, state.hyper)


def check_init(config: Config, workdir: Path) -> None:
    """Looks at what `config.init` names before a device is touched, unless the run has begun.

    Raises:
      UserError: there is no such run or checkpoint, its files are damaged, or it is another model's.
    """
    init = config.section("init")
    if init is None or has_checkpoints(workdir):
        return
    if init.family is None:
        run_folder(workdir, init.source, "config.init.source")
    else:
        from bigjax.pretrained.load import check_published

        check_published(init, config.get("model"))


def _source_paths(rules: Any, variables: Any) -> dict[str, str]:
    """Path in this run's variables -> path in the source's, for every leaf that a rule takes over.

    Rules see paths without their collection: "head/kernel" of "params/head/kernel".
    """
    names = {path: path.partition("/")[2] for path in paths(variables)}
    short = dict.fromkeys(names.values(), 0)
    matched = match_rules([(p, (p, t)) for p, t in rules], short, what="config.init.rules")
    found = {}
    for path, name in names.items():
        pattern, template = matched[name]
        if template is not None:
            collection = path.partition("/")[0]
            found[path] = f"{collection}/{re.fullmatch(pattern, name).expand(template)}"
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
