"""Weights from elsewhere: a teacher's, or those that `config.init` starts from.

Which leaves come from where is said by rules; what is missing or of another shape is an error that
names it. Reads run folders through `run.checkpoint`, and writes nothing.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.parts import key_data, split_key, traced_hyper
from bigjax.build.program import Program, from_leaves
from bigjax.config.config import Config
from bigjax.core.adapt import BASE, MODEL, OwnLeaves
from bigjax.core.errors import UserError
from bigjax.core.rules import match_rules, paths
from bigjax.core.state import TrainState, params_fingerprint
from bigjax.methods.lora import LoRA
from bigjax.pretrained.load import BLOCK, check_published, read_published
from bigjax.pretrained.peft_train import begun
from bigjax.run.checkpoint import has_checkpoints, newest_manifest, restore_leaves
from bigjax.run.files import read_json
from bigjax.run.manifest import read_manifest

BASE_FILE = "base.npz"  # a base that belongs to the run's folder alone, as shrinking leaves it


def initial_state(config: Config, program: Program, workdir: Path) -> tuple[TrainState, Any]:
    """(the state before step 1, base): from scratch, or with the weights that `config.init` names.

    Nothing is made twice: a leaf is read, or it is drawn from scratch.
    """
    rng, hyper, init = key_data(config.seed), traced_hyper(config), config.section("init")
    if init is None:
        return program.init(rng, hyper)
    leaves = paths(program.variables)
    wanted = _source_paths(init, leaves)
    asked = {path: leaves[target] for target, path in wanted.items()}
    back = {path: target for target, path in wanted.items()}

    def scratch(names: list[str]) -> dict[str, jax.Array]:
        made = program.scratch(rng, [back[name] for name in names])
        return {name: made[back[name]] for name in names}

    if init.family is None:
        values = read_leaves(run_folder(workdir, init.source, "config.init.source"), asked)
    else:
        values = read_published(init, config.get("model"), asked, scratch)
    found = {target: values[path] for target, path in wanted.items()}
    found |= program.scratch(rng, leaves.keys() - found.keys())
    variables = from_leaves(program.variables, found)
    own = _adapters(config, program) if init.adapters == "train" else {}
    return program.init_from(variables, np.asarray(split_key(rng)[1]), hyper, own)


def _adapters(config: Config, program: Program) -> dict[str, Any]:
    """The leaves of the run's LoRA or DoRA, by its NAME, as the adapters have them that it goes on with."""
    part = next((part for part in config.make("adapt") if isinstance(part, LoRA)), None)
    if part is None:
        raise UserError("config.init.adapters: 'train' needs a config.adapt of type lora or dora")
    wanted = program.state.params[part.NAME]
    return {part.NAME: begun(config.section("init"), config.get("model"), part, wanted)}


def base_again(config: Config, program: Program, workdir: Path) -> Any:
    """The base of a run that has begun: it is in no checkpoint, but in a file of its own or made again.

    Raises:
      UserError: it is not the one that the run's adapters were trained on.
    """
    file = workdir / BASE_FILE
    base = (
        read_base(file, program.frozen[BASE])
        if file.exists()
        else initial_state(config, program, workdir)[1]
    )
    known = read_manifest(workdir) or {}
    then = known.get("frozen", {}).get(BASE, known.get("base"))  # "base" in runs of before
    now = params_fingerprint(base)
    if then not in (None, now):
        raise UserError(
            f"{workdir}: its adapters were trained on another base: {then[:12]} then, {now[:12]} "
            "now; config.init must name what it named when the run began"
        )
    return base


def read_base(file: Path, abstract: Any) -> Any:
    """A base from its file, laid out as `abstract` says.

    Raises:
      UserError: the file cannot be read, or lacks a leaf.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {path: arrays[path] for path in paths(abstract)}
        found = {p: found[p].view(like.dtype) for p, like in paths(abstract).items()}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: cannot be read as this run's base ({error})") from None
    for path, like in paths(abstract).items():
        if found[path].shape != like.shape:
            raise UserError(f"{file}: {path} is {found[path].shape}, the run's {like.shape}")
    leaves = {p: jax.device_put(found[p], like.sharding) for p, like in paths(abstract).items()}
    return from_leaves(abstract, leaves)


def contents(frozen: Mapping[str, Any]) -> dict[str, str]:
    """name -> sha256 of the contents of the variables that a run reads and does not train."""
    return {name: params_fingerprint(tree) for name, tree in frozen.items()}


def check_init(config: Config, workdir: Path) -> None:
    """Looks at what `config.init` names before a device is touched, unless the run has begun.

    Raises:
      UserError: there is no such run or checkpoint, its files are damaged, or it is another model's.
    """
    init = config.section("init")
    if init is None or (has_checkpoints(workdir) and not config.get("adapt")):
        return
    if init.layers:
        _check_layers(init, config.get("model"))
    if init.family is None:
        run_folder(workdir, init.source, "config.init.source")
    else:
        check_published(init, config.get("model"))


def _check_layers(init: Any, model: Mapping[str, Any]) -> None:
    if model.get("layers") != len(init.layers):
        raise UserError(
            f"config.init.layers: chooses {len(init.layers)} blocks; config.model.layers is "
            f"{model.get('layers', 'no key of this model')}"
        )
    if init.family is None and model.get("scan_layers"):
        raise UserError(
            "config.init.layers: of a run's folder only without config.model.scan_layers, whose blocks "
            "are one array"
        )


def _source_paths(init: Any, leaves: Mapping[str, Any]) -> dict[str, str]:
    """Path in this run's variables -> path in the source's, for every leaf that a rule takes over.

    Rules see paths without their collection: "head/kernel" of "params/head/kernel".
    """
    names = {path: path.partition("/")[2] for path in leaves}
    short = dict.fromkeys(names.values(), 0)
    matched = match_rules([(p, (p, t)) for p, t in init.rules], short, what="config.init.rules")

    def chosen(block: re.Match[str]) -> str:
        return f"block_{init.layers[int(block[1])]}/" if init.layers else block[0]

    found = {}
    for path, name in names.items():
        pattern, template = matched[name]
        if template is not None:
            collection = path.partition("/")[0]
            theirs = re.fullmatch(pattern, name).expand(template)
            theirs = BLOCK.sub(chosen, theirs)
            found[path] = f"{collection}/{theirs}"
    return found


def with_hyper(state: TrainState, hyper: Mapping[str, np.ndarray]) -> TrainState:
    """The state with these traced scalars, where a resume allows other ones than it saved."""
    place = lambda old, new: jax.device_put(new, old.sharding)  # noqa: E731
    return state.replace(hyper=jax.tree.map(place, state.hyper, dict(hyper)))


def seen_from(workdir: Path, path: str) -> Path:
    """A folder that a config names; a path that starts with "." is seen from the run's own folder."""
    return (workdir / path).resolve() if path.startswith(".") else Path(os.path.expanduser(path))


def run_folder(workdir: Path, path: str, where: str) -> Path:
    """The folder of another run, see `seen_from`.

    Raises:
      UserError: there is no run.
    """
    folder = seen_from(workdir, path)
    if not (folder / "config.json").exists():
        raise UserError(f"{where}: {folder} holds no run (no config.json)")
    return folder


def read_variables(folder: Path, abstract: Any) -> Any:
    """A run's Linen variables from its newest checkpoint, laid out as `abstract` says."""
    return from_leaves(abstract, read_leaves(folder, paths(abstract)))


def read_leaves(folder: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """Some arrays of a run's newest checkpoint: path in its variables -> array.

    The parameters are the moving average where the run kept one.

    Args:
      folder: the run's folder.
      wanted: path such as "params/dense_0/kernel" -> array or ShapeDtypeStruct that says the
        shape, dtype and sharding to come in.

    Raises:
      UserError: the run lacks a leaf, has it in another shape, or keeps adapted leaves alone.
    """
    values = read_json(folder / "config.json")  # as it is: nothing that it names is imported
    if not values or not isinstance(values.get("train"), dict):
        raise UserError(f"{folder / 'config.json'}: not a readable config.json")
    if values.get("adapt"):
        raise UserError(
            f"{folder}: holds adapters, not a whole model; `export` it, and name the exported folder"
        )
    params = "ema" if values["train"].get("ema_decay") else "params"
    saved = (newest_manifest(folder) or {"arrays": ()})["arrays"]
    if any(path.startswith(f"{params}/{OwnLeaves.NAME}/") for path in saved):
        params = f"{params}/{MODEL}"  # beside what its method trained for itself

    def in_state(path: str) -> str:
        collection, _, rest = path.partition("/")
        return f"{params}/{rest}" if collection == "params" else f"collections/{path}"

    restored = restore_leaves(folder, {in_state(path): leaf for path, leaf in wanted.items()})
    return {path: restored[in_state(path)] for path in wanted}
