"""The steps of a chain: "prune:0.9", "int8", ... Each takes a run and says what becomes of it.

A step sees the model as the run's own parametrizations make it, and puts its own in their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.compress.calibrate import corrected, magnitudes, second_moments
from bigjax.compress.gptq import gptq
from bigjax.compress.narrow import narrowed
from bigjax.config.config import Config
from bigjax.core.adapt import BASE, Adaptation, Parametrization
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.matrices import as_matrix
from bigjax.core.quantize import FORMATS, Quantized, in_groups, is_table, packed, parse_format
from bigjax.core.rules import Rules, match_rules, paths
from bigjax.loop.open import Opened
from bigjax.mesh import distributed
from bigjax.methods.low_rank import LowRank
from bigjax.methods.pruning import Prune
from bigjax.methods.quantized import Quantize, QuantizeInputs
from bigjax.models.units import HEADS, UNITS


@dataclasses.dataclass(frozen=True)
class Options:
    """What all steps are told.

    keep: regex of leaves that stay as they are. calibration: batches of the train split.
    others: (regex, format) of leaves that steps of formats round otherwise than the step says.
    """

    keep: str | None = None
    calibration: int = 8
    others: tuple[tuple[str, str], ...] = ()

    def rules(
        self, value: Any, leaves: str = ".*kernel", others: Rules = ()
    ) -> tuple[tuple[str, Any], ...]:
        """`value` for leaves of these paths, None for those kept and all that `others` does not name."""
        kept = ((self.keep, None),) if self.keep else ()
        return (*kept, *others, (leaves, value), (".*", None))


class Changed(NamedTuple):
    """What a step makes of a run: its config, its variables in full numbers, and leaves of the base
    (path -> `Quantized`) that are not those of rounding to the nearest."""

    config: Config
    variables: Any
    held: Mapping[str, Quantized]


Step = Callable[[Opened, str | None, Options], Changed]


def parsed(text: str) -> list[tuple[str, Step, str | None]]:
    """(its word, step, argument) of each step of a chain such as "prune:0.9,int8".

    Raises:
      UserError: a step is unknown; the nearest is named.
    """
    found = []
    for word in text.split(","):
        name, colon, argument = word.strip().partition(":")
        if name not in STEPS:
            known = ", ".join(STEPS)
            raise UserError(
                f"--chain={text}: no step '{name}'{did_you_mean(name, STEPS)}; steps: {known}"
            )
        found.append((word.strip(), STEPS[name], argument if colon else None))
    return found


def parsed_rule(text: str) -> tuple[str, str]:
    """(regex, format) of "embedding=int4:32".

    Raises:
      UserError: it is no such pair.
    """
    regex, equals, format = text.rpartition("=")
    if not (equals and regex):
        raise UserError(f"--rule={text}: give REGEX=FORMAT, such as embedding=int4:32")
    parse_format(format, None, f"--rule={text}")
    return regex, format


def number(
    word: str, argument: str | None, kind: type, low: float, high: float, default: Any
) -> Any:
    """A step's argument as a number within (low, high).

    Raises:
      UserError: it is none, or missing where there is no default.
    """
    if argument is None and default is not None:
        return None if default == "none" else default
    try:
        value = kind(argument)
    except (TypeError, ValueError):
        value = None
    if value is None or not low < value < high:
        what = "a whole number" if kind is int else "a number"
        raise UserError(
            f"--chain: {word}:{argument or ''}: give {what} between {low:g} and {high:g}"
        )
    return value


def _weights(format: str) -> Step:
    """Weight-only, to the nearest level."""

    def step(run: Opened, argument: str | None, options: Options) -> Changed:
        group = number(format, argument, int, 0, 1 << 20, "none")
        rules = options.rules(format, ".*(kernel|embedding)", options.others)
        return _rounded(run, [Quantize(rules=rules, group=group)], options)

    return step


def _gptq(run: Opened, argument: str | None, options: Options) -> Changed:
    """Dense layers in four bits by GPTQ, with the inputs that the model in full numbers has; tables, of which no
    row is summed with others, to the nearest level."""
    group = number("gptq", argument, int, 0, 1 << 20, 64)
    moments, leaves = second_moments(run, options.calibration), paths(run.variables["params"])
    dense = {path: f"{path}/kernel" for path in moments}
    rules = options.rules("int4", ".*(kernel|embedding)")
    chosen = {path for path, rule in match_rules(rules, leaves, what="--keep").items() if rule}
    quantized = {path: leaf for path, leaf in dense.items() if leaf in chosen}
    tables = [path for path in chosen if is_table(path)]
    rules = (*((leaf, "int4") for leaf in (*quantized.values(), *tables)), (".*", None))
    held = {}
    for layer, path in quantized.items():
        leaf = distributed.whole(leaves[path])
        blocks = np.asarray(in_groups(path, jnp.asarray(leaf), None))[0]
        codes, scales = gptq(blocks, moments[layer], group)
        groups, rows = len(scales), min(group, len(codes))
        codes = np.pad(codes, [(0, groups * rows - len(codes)), (0, 0)]).astype(np.int8)
        codes = jnp.asarray(codes.reshape(groups, rows, -1))
        held[path] = packed(path, leaf, codes, jnp.float32(scales[:, None]), "int4")
    return _adapted(run, [Quantize(rules=rules, group=group)], held=held)


def _dynamic(run: Opened, argument: str | None, options: Options) -> Changed:
    """Weights and inputs in eight bits; the inputs' scales are measured as they come."""
    layers = _layer_rules(run, options, {})
    parts = [Quantize(rules=options.rules("int8")), QuantizeInputs(rules=layers)]
    return _rounded(run, parts, options)


def _static(run: Opened, argument: str | None, options: Options) -> Changed:
    """The same with scales from calibration data."""
    layers = _layer_rules(run, options, magnitudes(run, options.calibration))
    parts = [Quantize(rules=options.rules("int8")), QuantizeInputs(rules=layers)]
    return _rounded(run, parts, options)


def _rounded(run: Opened, parts: Sequence[Parametrization], options: Options) -> Changed:
    """The run under parametrizations that round; BatchNorms are told how far that moves what they are given."""
    changed = _adapted(run, parts)
    if "batch_stats" not in run.variables or not options.calibration:
        return changed
    adaptation = Adaptation(tuple(parts))
    trained, base = adaptation.begin(jax.random.key(0), run.variables["params"])
    params = adaptation.params(trained, {BASE: base}, 0)
    model = adaptation.wrap(run.config.make("model"))
    return changed._replace(variables=corrected(run, model, params, options.calibration))


def _layer_rules(run: Opened, options: Options, largest: Mapping[str, float]) -> tuple:
    chosen = match_rules(options.rules("dynamic"), run.variables["params"], what="--keep")
    layers = [path.removesuffix("/kernel") for path, rule in chosen.items() if rule]
    return (*((layer, largest.get(layer, "dynamic")) for layer in layers), (".*", None))


def _prune(run: Opened, argument: str | None, options: Options) -> Changed:
    """The smallest weights of all leaves together are zero, at once."""
    share = number("prune", argument, float, 0, 1, None)
    return _adapted(run, [Prune(sparsity=share, scope="global", rules=options.rules("prune"))])


def _two_of_four(run: Opened, argument: str | None, options: Options) -> Changed:
    """Two of every four inputs of an output."""
    return _adapted(run, [Prune(pattern="2:4", rules=options.rules("prune"))])


def _svd(run: Opened, argument: str | None, options: Options) -> Changed:
    """Kernels as products of that rank, where these are fewer numbers."""
    rank = number("svd", argument, int, 0, 1 << 20, None)
    leaves = paths(run.setup.program.variables["params"])
    chosen = match_rules(options.rules(rank), leaves, what="--keep")
    sizes = {p: as_matrix(p, leaves[p].shape)[1:] for p, rule in chosen.items() if rule}
    fewer = tuple((path, rank) for path, (m, n) in sizes.items() if rank * (m + n) < m * n)
    if not fewer:
        raise UserError(f"--chain: svd:{rank}: products of that rank have no fewer numbers")
    return _adapted(run, [LowRank(rules=(*fewer, (".*", None)))])


def _smaller(word: str, kind: str) -> Step:
    """Units, channels or heads taken out: the model's own sizes change."""

    def step(run: Opened, argument: str | None, options: Options) -> Changed:
        share = number(word, argument, float, 0, 1, None)
        host = jax.tree.map(distributed.whole, run.variables)
        changes, variables = narrowed(word, kind, run.config.make("model"), host, share)
        config = _adapted(run, []).config
        for key, value in changes.items():
            config = config.with_value(f"model.{key}", value)
        return Changed(config, variables, {})

    return step


STEPS: dict[str, Step] = {
    **{format: _weights(format) for format in FORMATS},
    "gptq": _gptq,
    "dynamic": _dynamic,
    "static": _static,
    "prune": _prune,
    "2of4": _two_of_four,
    "svd": _svd,
    "narrow": _smaller("narrow", UNITS),
    "heads": _smaller("heads", HEADS),
}


def _adapted(
    run: Opened, parts: Sequence[Parametrization], *, held: Mapping[str, Quantized] | None = None
) -> Changed:
    """The run's model under these parametrizations alone; what its training was told falls away."""
    adapt = tuple({"type": part.NAME, **dataclasses.asdict(part)} for part in parts)
    for part in parts:  # before anything is written
        part.keeps(paths(run.setup.program.variables["params"]))
    everything = ((".*", 1.0),)
    config = run.config
    changes = {
        "adapt": adapt,
        "init": None,
        "train.ema_decay": None,
        "optimizer.learning_rate_rules": everything,
        "optimizer.weight_decay_rules": everything,
    }
    if any(path.startswith("method.") for path in config.references):  # its teacher may be gone
        changes["method"] = {"type": "supervised"}
    for path, value in changes.items():
        config = config.with_value(path, value)
    return Changed(config, run.variables, held or {})
