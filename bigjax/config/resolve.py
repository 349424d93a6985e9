"""The only reader of raw configs: defaults, overrides, checks, names, fingerprint, difference.

A config is an `ml_collections.ConfigDict` of plain values. Each section is the keyword arguments of
one target: a settings dataclass below, or the class or function that the section's `type` names.
`resolve` checks every key against the target's signature, fills in the defaults, remembers where
each value came from, and builds every target once, so that a wrong value is found here: before JAX
touches a device. Nothing in this file may touch one.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config.config import DEFAULTS, SETTINGS, TYPED, Config, target_of
from bigjax.config.names import (
    DERIVE_ADAPT,
    DERIVE_MODEL,
    DERIVE_SIZES,
    FIND_FAMILY,
    KINDS,
    LISTED,
    NAMED,
)
from bigjax.config.signature import MISSING, bind, parameters
from bigjax.config.values import (
    check_trusted,
    flatten,
    literal,
    plain,
    targets,
)
from bigjax.config.when import When
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.marks import RUN, marked_fields
from bigjax.core.optax_names import REPLACED_BY_RULES

# Defaults of typed sections inside another section.
NESTED_DEFAULTS = {"optimizer": {"schedule": {"type": "constant"}}}

# Keys of a model that the train split may decide.
DERIVED_SIZES = ("outputs", "vocab", "image")


def resolve(
    raw: Mapping[str, Any], overrides: Sequence[str] = (), trusted: Collection[str] = ()
) -> Config:
    """Checks a raw config and returns it complete.

    Args:
      raw: the experiment's `ConfigDict`.
      overrides: command-line strings "KEY=VALUE", KEY a dotted path such as "train.steps".
      trusted: what folders of other runs may import, besides what this config names; see `load`.

    Raises:
      UserError: unknown, missing or ill-typed key; contradictory or out-of-range values.
    """
    experiment = _without_shorthand(plain(raw))
    given = copy.deepcopy(experiment)
    written = [_override(given, text) for text in overrides]
    said = set(flatten(given))
    if given.get("init"):
        given["init"] = _with_family(given["init"])
    if isinstance(given.get("method"), dict):
        given["method"] = _with_families(given["method"])
    if "model" in given:
        given["model"] = _with_published(given["model"], given.get("init"))
    in_checkpoint = set(flatten(given)) - said
    if "model" in given:
        given["model"] = _with_sizes(given)
        adapters = _with_adapters(given)
        in_checkpoint |= set(flatten(adapters))
        given |= adapters
    given |= _with_splits(given)
    values = _complete(given)
    origins = {}
    in_experiment, in_data = set(flatten(experiment)), set(flatten(given)) - said - in_checkpoint
    for path in flatten(values):
        under = any(path == w or path.startswith(w + ".") for w in written)
        from_command_line = under and path in said
        from_file = "experiment" if path in in_experiment else "default"
        from_file = "checkpoint" if path in in_checkpoint else from_file
        from_file = "data" if path in in_data else from_file
        origins[path] = "command line" if from_command_line else from_file
    config = Config(values, origins, frozenset(trusted) | targets(given))
    _check_whole(config)
    return config


def _without_shorthand(values: dict[str, Any]) -> dict[str, Any]:
    """`distill` as what it stands for: the method of that type."""
    section = values.pop("distill", None)
    if section is None:
        return values
    if "method" in values:
        raise UserError("config.distill: a run has one method; leave config.method out, or distill")
    return {**values, "method": {"type": "distill", **section}}


def starts_published(raw: Mapping[str, Any]) -> bool:
    """Whether a raw config starts from a published checkpoint."""
    return bool(_with_family(plain(raw).get("init") or {}).get("family"))


def load(path: Path, overrides: Sequence[str] = (), trusted: Collection[str] = ()) -> Config:
    """Reads the `config.json` of a run's folder, which may be a stranger's.

    Args:
      overrides: as for `resolve`.
      trusted: the targets "package.module:Name" that the user named elsewhere, so that a folder may
        name them too; `TRUST_ALL` for any.

    Raises:
      UserError: it cannot be read, is no config, or names what is not trusted; nothing is imported.
    """
    try:
        values = plain(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable config.json ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a readable config.json (no JSON object)")
    said: dict[str, Any] = {}
    written = copy.deepcopy(values)
    for text in overrides:
        _override(said, text), _override(written, text)
    trusted = frozenset(trusted) | targets(said)
    check_trusted(path, written, trusted)
    return resolve(values, overrides, trusted)


def _override(values: dict[str, Any], text: str) -> str:
    """Writes one "KEY=VALUE" into `values`; returns KEY."""
    path, equals, word = text.partition("=")
    if not equals or not path:
        raise UserError(f"--config.{text}: write --config.KEY=VALUE")
    if path.startswith("distill."):
        path = f"method.{path.removeprefix('distill.')}"
        if (values.get("method") or {}).get("type") != "distill":
            values["method"] = {"type": "distill"}
    value = plain(literal(word), f"config.{path}")
    *parents, last = path.split(".")
    node = values
    for depth, key in enumerate(parents):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"--config.{path}: config.{'.'.join(parents[: depth + 1])} has no keys")
    if parents == ["train"] and last in ("steps", "epochs", "examples"):
        for other in ("steps", "epochs", "examples"):
            node.pop(other, None)
    node[last] = value
    return path


def _complete(given: dict[str, Any]) -> dict[str, Any]:
    """Every section checked against its target's signature and filled with its defaults."""
    known = ["seed", *TYPED, *SETTINGS]
    for key in given:
        if key not in known:
            raise UserError(
                f"config.{key}: no such section{did_you_mean(key, known)}; known: {', '.join(known)}"
            )
    seed = given.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"config.seed: {seed!r} must be a whole number from 0 to 2**32 - 1")
    sections = {name: _complete_section(name, given.get(name)) for name in known[1:]}
    return {"seed": seed, **sections}


def _with_family(init: Any) -> Any:
    """The raw init section, with the family of a published checkpoint that it names."""
    if not isinstance(init, dict) or init.get("family") or not isinstance(init.get("source"), str):
        return init
    found = _hook(FIND_FAMILY)(init["source"])
    return {**init, "family": found} if found else init


def _with_families(method: dict[str, Any]) -> dict[str, Any]:
    """The raw method section, its published teachers as dict(source=..., family=...)."""

    def one(named: Any) -> Any:
        if isinstance(named, str):
            section = _with_family({"source": named})
            return section if "family" in section else named
        if isinstance(named, dict) and "source" not in named:
            return {name: one(own) for name, own in named.items()}
        return _with_family(named)

    if not isinstance(method.get("type"), str):
        return method
    marked = marked_fields(target_of("method", method["type"], "config.method"), RUN)
    return method | {key: one(method[key]) for key in marked if key in method}


def _hook(target: str) -> Any:
    """What a room above gives: the house's own "module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _with_published(model: Any, init: Any) -> Any:
    """The raw model section, what it does not say taken from the checkpoint that `init` names."""
    if not (isinstance(model, dict) and isinstance(init, dict) and init.get("family")):
        return model
    own = parameters(target_of("model", str(model.get("type")), "config.model"))
    needed = [key for key, parameter in own.items() if parameter.default is MISSING]
    return _hook(DERIVE_MODEL)(init, model, needed)


def _with_adapters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The raw section adapt of adapters that are trained on, where it says nothing."""
    init, model = given.get("init"), given["model"]
    if not isinstance(init, dict) or init.get("adapters") != "train" or given.get("adapt"):
        return {}
    return {"adapt": _hook(DERIVE_ADAPT)(init, _complete_section("model", model))}


def _with_sizes(given: Mapping[str, Any]) -> Any:
    """The raw model section with the sizes that the train split decides, where it does not say them.

    The data is opened if one is missing, and only then.
    """
    model = given["model"]
    if not isinstance(model, dict) or not isinstance(model.get("type"), str):
        return model
    own = parameters(target_of("model", model["type"], "config.model"))
    unsaid = [key for key, p in own.items() if key not in model and p.default in (MISSING, None)]
    wanted = [key for key in DERIVED_SIZES if key in unsaid]
    if not wanted:
        return model
    values = {name: _complete_section(name, given.get(name)) for name in ("data", "task")}
    return {**_hook(DERIVE_SIZES)(Config(values, {}), wanted), **model}


def _with_splits(given: Mapping[str, Any]) -> dict[str, Any]:
    """The raw evaluate section, where it says no splits: all of `data.splits` that are not trained on."""
    section, data = given.get("evaluate") or {}, given.get("data")
    splits = data.get("splits") if isinstance(data, dict) else None
    if not isinstance(section, dict) or "splits" in section or not isinstance(splits, dict):
        return {}
    mixed = data.get("mixture") or {}
    held = tuple(name for name in splits if not name.startswith("train") and name not in mixed)
    return {"evaluate": {**section, "splits": held}} if held else {}


def _complete_section(path: str, given: Any, where: str = "") -> Any:
    """One section, and the typed sections inside it; `where` is its path for messages."""
    settings, kind, where = SETTINGS.get(path), KINDS.get(path), where or path
    if path in NAMED and isinstance(given, dict) and where == path:
        return {n: _complete_section(path, one, f"{path}.{n}") for n, one in given.items()}
    if given is None and (settings is None or getattr(settings, "OPTIONAL", False)):
        if path in DEFAULTS:
            return _complete_section(path, DEFAULTS[path])
        if path in TYPED:
            raise UserError(f"config.{path} is missing: it needs at least a type")
        return None
    if isinstance(given, tuple) and path in LISTED and where == path:
        return tuple(_complete_section(path, item, f"{where}[{i}]") for i, item in enumerate(given))
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise UserError(f"config.{where}: {given!r} must be a section (a dict of keys)")
    accepted = dict(parameters(settings)) if settings else {}
    what = f"the section {where}"
    if kind:
        if not isinstance(given.get("type"), str):
            raise UserError(f"config.{where}.type is missing: it names the {kind}")
        what = given["type"]
        own = parameters(target_of(kind, what, f"config.{where}"))
        hidden = ("learning_rate", *REPLACED_BY_RULES) if kind == "optimizer" else ()
        accepted = {**{key: own[key] for key in own if key not in hidden}, **accepted}
    given = {key: value for key, value in given.items() if key != "type"}
    for key, default in NESTED_DEFAULTS.get(path, {}).items():
        own = {} if given.get(key) is None else given[key]
        given[key] = {**default, **own} if isinstance(own, dict) else own
    values = bind(f"config.{where}", what, accepted, given)
    for key in values:
        if f"{path}.{key}" in KINDS:
            values[key] = _complete_section(f"{path}.{key}", values[key])
    return {"type": what, **values} if kind else values


def _check_whole(config: Config) -> None:
    """Builds every target once and checks what no single section can see."""
    for name in SETTINGS:
        config.section(name)
    for name in TYPED:
        config.make(name)
    for name in ("evaluate.every", "checkpoint.every", "log.profile"):
        When(config.get(name), total_steps=1, key=f"config.{name}")
    splits = config.get("data.splits")
    wanted = [("evaluate.splits", split) for split in config.get("evaluate.splits")]
    for name, values in config.get("evaluators").items():
        When(values["every"], total_steps=1, key=f"config.evaluators.{name}.every")
        wanted += [(f"evaluators.{name}.data", values["data"])] if values["data"] else []
    best = config.get("checkpoint.best")
    measured = [*config.get("evaluate.splits"), *config.get("evaluators")]
    if best and not best.startswith(tuple(f"eval/{name}/" for name in measured)):
        raise UserError(
            f"config.checkpoint.best: {best!r} is no eval/NAME/METRIC of a NAME in config.evaluate.splits "
            f"or config.evaluators: {', '.join(measured) or 'they are empty'}"
        )
    for key, split in wanted:
        if split not in splits:
            raise UserError(
                f"config.{key}: no split '{split}' in config.data.splits"
                f"{did_you_mean(split, splits)}; known: {', '.join(splits)}"
            )
