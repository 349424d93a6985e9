"""The command line of an experiment: which verbs and flags there are, and how it is read.

Imports nothing that takes long: what a verb does is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bigjax.config.flags import expanded, parsed
from bigjax.core.errors import UserError, did_you_mean

# Flag -> what argparse is told of it. These go with any verb.
ANY: dict[str, dict[str, Any]] = {
    "--workdir": dict(type=expanded, help="the run's folder"),
    "--stage": dict(help="of a pipeline: NAME (of seed 0), or seed1/NAME"),
    "--trust": dict(action="store_true", help="a run's folder may name any code, and it is run"),
    "--simulate_devices": dict(type=int, help="as if the CPU were so many devices"),
    "--coordinator": dict(help="many processes: HOST:PORT where process 0 listens"),
    "--processes": dict(type=int, help="how many (detected on known clusters)"),
    "--process_id": dict(type=int, help="which of them this one is, from 0"),
}
# These go with the verbs that name them in `VERBS`.
FLAGS: dict[str, dict[str, Any]] = {
    "--allow_changed": dict(
        action="append", default=[], metavar="KEY", help="of the run's config: may differ"
    ),
    "--fresh": dict(action="store_true", help="set the run in the folder aside, and start anew"),
    "--name": dict(help="the run's, kept in manifest.json"),
    "--tag": dict(action="append", default=[], help="kept there; repeatable"),
    "--notes": dict(help="a line of your own, kept there"),
    "--split": dict(help="which one (default: evaluate.splits)"),
    "--input": dict(type=expanded, help="a table, .npz, .txt, a picture, or a folder of them"),
    "--adapter": dict(
        action="append",
        default=[],
        metavar="NAME",
        help="another run's, by its name beside this one or its folder; repeatable",
    ),
    "--output": dict(
        type=expanded,
        help="predict: JSON lines go here, not to the terminal; export: folder; plan: .html",
    ),
    "--untrained": dict(
        action="store_true", help="without a run: use weights that nothing trained"
    ),
    "--verify": dict(action="store_true", help="hash every file again"),
    "--from": dict(type=int, dest="start", help="step of a checkpoint, or 0"),
    "--steps": dict(type=int, help="how many (default: all recorded)"),
    "--format": dict(default="safetensors", help="safetensors, stablehlo, onnx, gguf:q8_0, ..."),
    "--family": dict(help="whose layout, such as bert or roberta"),
    "--chain": dict(action="append", default=[], help="prune:0.9,int8; repeatable"),
    "--keep": dict(metavar="REGEX", help="parameters that stay as they are"),
    "--rule": dict(
        action="append",
        default=[],
        metavar="REGEX=FORMAT",
        help="parameters in another format, such as embedding=int4:32; repeatable",
    ),
    "--calibration": dict(type=int, default=8, help="batches to look at"),
    "--topology": dict(help="cpu:8, v5e:4x4, 2xv5e:4x4, h200:8, ..."),
    "--price_per_device_hour": dict(type=float, help="for the cost of the run"),
    "--suggest": dict(action="store_true", help="try single changes"),
    "--scale": dict(help="on other numbers of devices, such as 16,64"),
    "--search": dict(type=float, help="meshes, remat, accumulation; for so many seconds"),
    "--json": dict(action="store_true", help="for machines"),
}


class Verb(NamedTuple):
    """What `python -m experiments.NAME VERB` can be asked for.

    file: of this room, which has a function VERB_verb.
    flags: those it takes beside the ones that go with any verb, parted by spaces.
    looks_at: of a pipeline, what: "one run", which --stage must name; "a stage", taken out of the whole,
      as it may name another that has not run yet; or "the folder", of all or of --stage.
    """

    file: str
    flags: str = ""
    looks_at: Literal["one run", "a stage", "the folder"] = "the folder"


# A new verb is one function, and one line here.
VERBS = {
    "train": Verb("train", "--allow_changed --fresh --name --tag --notes"),
    "evaluate": Verb("predict", "--split --untrained", "one run"),
    "predict": Verb("predict", "--input --output --adapter --untrained", "one run"),
    "export": Verb("export", "--format --family --output --untrained", "one run"),
    "shrink": Verb("shrink", "--chain --keep --rule --calibration --split --untrained", "one run"),
    "config": Verb("inspect", looks_at="a stage"),
    "plan": Verb(
        "plan",
        "--topology --price_per_device_hour --suggest --scale --search --output --json",
        "a stage",
    ),
    "sharding": Verb("inspect", "--json", "a stage"),
    "checkpoints": Verb("inspect", "--verify"),
    "replay": Verb("inspect", "--from --steps", "one run"),
    "doctor": Verb("inspect", "--json"),
}


def read_command(
    name: str, arguments: Sequence[str], keys: Callable[[], Sequence[str]]
) -> tuple[argparse.Namespace, list[str]]:
    """The options and the config overrides ("KEY=VALUE") of a command line.

    Args:
      name: the experiment's module, or its file without the ending.
      arguments: what follows it.
      keys: the config's, for the hint that goes with an unknown flag.

    Raises:
      UserError: an unknown verb or flag, the nearest is named; a flag of another verb.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}" if "." in name else f"python {name}.py",
        usage="%(prog)s [VERB] [--FLAG ...] [--config.KEY=VALUE ...]",
        allow_abbrev=False,
        exit_on_error=False,
        epilog="--config.KEY=VALUE overrides any value; the verb `config` shows them all",
    )
    parser.add_argument("verb", nargs="?", default="train", help=", ".join(VERBS))
    takers = {
        flag: ", ".join(verb for verb, one in VERBS.items() if flag in one.flags.split())
        for flag in FLAGS
    }
    groups = {said: parser.add_argument_group(said) for said in ("any verb", *takers.values())}
    for flag, told in (ANY | FLAGS).items():
        groups[takers.get(flag, "any verb")].add_argument(flag, **told)
    parser.set_defaults(workdir=Path("runs", name.removeprefix("experiments.")))
    found, overrides = parsed(parser, arguments, lambda flag, known: _near(flag, known, keys()))
    if found.verb not in VERBS:
        raise UserError(
            f"unknown verb '{found.verb}'{did_you_mean(found.verb, VERBS)}; "
            f"verbs: {', '.join(VERBS)}"
        )
    given = {argument.partition("=")[0] for argument in arguments}
    for flag in takers:
        if flag in given and flag not in VERBS[found.verb].flags.split():
            key = flag.replace("--", "train.", 1)
            near = f" (did you mean '--config.{key}'?)" if key in keys() else ""
            raise UserError(f"{flag} goes with {takers[flag]}; not with {found.verb}{near}")
    return found, overrides


def _near(flag: str, flags: Sequence[str], keys: Sequence[str]) -> str:
    """The flag or config key that an unknown flag may mean: "--lr" is optimizer.learning_rate."""
    word = flag.lstrip("-").replace("-", "_")
    for key in keys:
        leaf = key.rpartition(".")[2]
        initials = "".join(part[:1] for part in leaf.split("_"))
        if word in (key, leaf) or (len(word) > 1 and word == initials):
            return f" (did you mean '--config.{key}'?)"
    leaves = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = did_you_mean(flag.partition(".")[0], ["--config", *flags])
    if near or not (found := difflib.get_close_matches(word, leaves, n=1, cutoff=0.75)):
        return near
    return f" (did you mean '--config.{leaves[found[0]]}'?)"
