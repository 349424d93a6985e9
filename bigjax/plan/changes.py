"""Single changes of a config that may make it fit or run faster: what `--suggest`, `--scale` and `--search` compile. Pure."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigjax.config.resolve import Config, resolve
from bigjax.core.errors import UserError
from bigjax.mesh.placement import divisors

REMAT = ("dots_no_batch", "names", "full")
EVERY = ((".*", 1.0),)
LORA = {"type": "lora", "rank": 16}
# A frozen base in eight bits, and as QLoRA has it (Dettmers et al. 2023: nf4 in groups of 64).
QUANTIZED = (
    {"type": "quantize"},
    {"type": "quantize", "rules": ((".*kernel", "nf4"), (".*", None)), "group": 64},
)


class Change(NamedTuple):
    """overrides: as on the command line, without "--config.". same: whether the numbers of a run stay.

    The same numbers but for rounding: what is trained, on which examples, stays as it is.
    """

    overrides: tuple[str, ...]
    same: bool

    @property
    def flags(self) -> str:
        return shlex.join(f"--config.{text}" for text in self.overrides)


def suggestions(config: Config, mesh: Mapping[str, int]) -> list[Change]:
    """Changes worth compiling, one at a time.

    Args:
      config: of the run.
      mesh: axis -> size, of the axes above 1 on the devices it was planned for.
    """
    found = []
    data, fsdp = mesh.get("data", 1), mesh.get("fsdp", 1)
    if data > 1:
        found.append(Change(("mesh.data=1", f"mesh.fsdp={data * fsdp}"), True))
    if data > 2 and data % 2 == 0:
        found.append(Change((f"mesh.data={data // 2}", f"mesh.fsdp={2 * fsdp}"), True))
    if (data * fsdp) % 2 == 0 and mesh.get("tensor", 1) == 1:
        rest = f"mesh.fsdp={fsdp // 2}" if fsdp > 1 else f"mesh.data={data // 2}"
        found.append(Change((rest, "mesh.tensor=2"), True))
    remat = config.values["model"].get("remat")
    found += [Change((f"model.remat={name}",), True) for name in REMAT if remat not in (None, name)]
    accumulate, rows = config.get("train.accumulate"), config.get("train.batch_size")
    found += [Change((f"train.accumulate={accumulate * n}",), True) for n in (2, 4)]
    found.append(Change((f"train.batch_size={rows // 2}",), False))
    if config.get("precision.policy") == "float32":
        found.append(Change(("precision.policy=bfloat16",), False))
    if config.get("optimizer.state_dtype") == "float32":
        found.append(Change(("optimizer.state_dtype=bfloat16",), False))
    if not config.get("sharding.offload_optimizer"):
        found.append(Change(("sharding.offload_optimizer=True",), True))
    rules = () if config.get("adapt") else _for_all(config)
    written = [f"adapt={_written(adapters)}" for adapters in _adapted(config)]
    found += [Change((adapters, *rules), False) for adapters in written]
    return found


def _for_all(config: Config) -> tuple[str, ...]:
    """Overrides of the optimizer's rules that speak of the model's own leaves: adapters have others."""
    keys = ("optimizer.learning_rate_rules", "optimizer.weight_decay_rules")
    said = [key for key in keys if tuple(map(tuple, config.get(key))) != EVERY]
    return tuple(f"{key}={_written(EVERY)}" for key in said)


def _written(value: Any) -> str:
    """A value as a flag says it: with the quotes that a shell leaves alone between single ones."""
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


def _adapted(config: Config) -> list[tuple[dict, ...]]:
    """Adapters in place of the config's: LoRA where there is none, and its frozen base in few bits."""
    there = tuple(config.get("adapt") or ())
    kinds = {adapter["type"] for adapter in there}
    if kinds & {"lora", "dora"}:
        return [] if "quantize" in kinds else [(quantized, *there) for quantized in QUANTIZED]
    if there:
        return []
    return [(LORA,), *((quantized, LORA) for quantized in QUANTIZED)]


def combinations(config: Config, mesh: Mapping[str, int]) -> list[Change]:
    """Meshes x rematerialisation x accumulation at the config's batch, the plainest first.

    The devices of data, fsdp and tensor are dealt out anew in every way that divides them; the other
    axes stay. What a model cannot do is refused when it is compiled.
    """
    devices = mesh.get("data", 1) * mesh.get("fsdp", 1) * mesh.get("tensor", 1)
    meshes = [
        (f"mesh.data={devices // split // tensor}", f"mesh.fsdp={split}", f"mesh.tensor={tensor}")
        for tensor in divisors(devices)
        for split in reversed(divisors(devices // tensor))
    ]
    kept = config.values["model"].get("remat")
    remats = [()] if kept is None else [(f"model.remat={name}",) for name in ("none", *REMAT)]
    rows = config.get("train.batch_size")
    accumulated = [(f"train.accumulate={n}",) for n in (1, 2, 4, 8) if rows % n == 0]
    ways = itertools.product(*map(enumerate, (meshes, remats, accumulated)))
    ordered = sorted(ways, key=lambda way: sum(index for index, _ in way))
    texts = [sum((part for _, part in way), ()) for way in ordered]
    return [Change(tuple(text for text in way if not _says(config, text)), True) for way in texts]


def _says(config: Config, override: str) -> bool:
    """Whether the config says so already."""
    key, _, value = override.partition("=")
    return str(config.get(key)) == value


def applied(config: Config, overrides: Sequence[str]) -> Config | str:
    """The config with the changes, or why it cannot be."""
    try:
        return resolve(config.values, overrides, config.trusted)
    except UserError as error:
        return str(error)


def scaled(config: Config, mesh: Mapping[str, int], times: float) -> Change:
    """The run on `times` the devices, with as many rows on each: its data or fsdp axis grows.

    Raises:
      UserError: the axis would have no whole size.
    """
    axis = "fsdp" if mesh.get("fsdp", 1) > 1 else "data"
    size, rows = mesh.get(axis, 1) * times, config.get("train.batch_size") * times
    if size != int(size) or rows != int(rows) or not size:
        raise UserError(f"--scale: {axis} {mesh.get(axis, 1)} x {times:g} is no whole number")
    return Change((f"mesh.{axis}={int(size)}", f"train.batch_size={int(rows)}"), False)
