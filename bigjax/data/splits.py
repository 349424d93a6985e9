"""Which files are which split, and parts of splits. Reads no data.

Sub-splits follow TFDS: `train[:90%]`, `train[100:200]`, `train[-50:]`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bigjax.core.errors import UserError, did_you_mean, first_line, needed
from bigjax.run.files import read_json

Files = dict[str, tuple[Path, ...]]

_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
# "train-00002-of-00005.parquet", as Hugging Face and TFDS call the parts of a split
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")


def subsplit(split: str, length: Callable[[str], int]) -> tuple[str, slice]:
    """Parses "train", "train[:90%]" or "train[100:200]".

    Percentages round to the nearest row (halves to the even one), as in TFDS, so that `[:90%]` and
    `[90%:]` share no row and miss none.

    Args:
      split: what to parse.
      length: split name -> number of its examples.

    Returns:
      (name, slice of its rows).

    Raises:
      UserError: it cannot be parsed, reaches beyond the split, or holds no row.
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"split {split!r} should read like train, train[:90%] or train[100:200]")
    total = length(match["name"])

    def row(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        limit = 100 if bound.endswith("%") else total
        number = int(bound.rstrip("%"))
        if abs(number) > limit:
            raise UserError(f"split {split!r}: {bound} is beyond its {total} examples")
        if bound.endswith("%"):
            number = round(number * total / 100)
        return number + total if bound.startswith("-") else number

    start, stop = row(match["start"], 0), row(match["stop"], total)
    if start >= stop:
        raise UserError(f"split {split!r} has no examples (of {total})")
    return match["name"], slice(start, stop)


def files_of(splits: Files, name: str, where: str) -> tuple[Path, ...]:
    """The files of a split; UserError naming the nearest if it is not there."""
    if name not in splits:
        raise UserError(
            f"{where} has no split {name!r}{did_you_mean(name, splits)}; "
            f"it has {', '.join(sorted(splits)) or 'none'}"
        )
    return splits[name]


def find_splits(path: str, suffixes: Sequence[str], sets: Path | None = None) -> Files:
    """Finds the files of every split.

    Args:
      path: one of
        - a file with {split} in its name, e.g. "data/{split}-*.parquet", or without: the split "train";
        - a folder of SPLIT.csv, SPLIT.parquet ..., of shards SPLIT-00000-of-00004.parquet (there or
          in data/), or of folders SPLIT/ of such files;
        - what Hugging Face's `save_to_disk` wrote;
        - "hub:OWNER/NAME", a data set of the Hugging Face Hub;
        - the name of a folder below `sets`.
      suffixes: of the files that the caller reads.
      sets: where sets are that go by a name alone.

    Raises:
      UserError: nothing of the kind is there, a shard is missing, or a split is there twice.
    """
    if path.startswith("hub:"):
        return _in_folder(_from_hub(path.removeprefix("hub:"), suffixes), path, suffixes)
    given = Path(os.path.expanduser(path))
    if "{split}" in given.name:
        pattern = re.escape(given.name).replace(r"\{split\}", "(?P<split>.+?)")
        pattern = pattern.replace(r"\*", ".*")
        files = sorted(given.parent.iterdir()) if given.parent.is_dir() else []
        named = [(m["split"], f) for f in files if (m := re.fullmatch(pattern, f.name))]
        bad = [file for _, file in named if file.suffix not in suffixes]
        found = {s: tuple(f for t, f in named if t == s) for s, _ in named}
    elif given.is_file():
        bad, found = [f for f in [given] if f.suffix not in suffixes], {"train": (given,)}
    else:
        folder = given if given.is_dir() or sets is None else sets / path
        if not folder.is_dir():
            raise UserError(_missing(path, sets))
        bad, found = [], _in_folder(folder, path, suffixes)
    if bad or not found:
        raise UserError(
            f"{bad[0] if bad else path}: what can be read here is {', '.join(suffixes)}"
            + ("" if bad else f", and none is there{_but(given)}")
        )
    return found


def _in_folder(folder: Path, name: str, suffixes: Sequence[str]) -> Files:
    if (folder / "dataset_dict.json").exists():
        parts = [inner for inner in sorted(folder.iterdir()) if (inner / "state.json").exists()]
        return {inner.name: _saved(inner) for inner in parts}
    if (folder / "state.json").exists():
        return {"train": _saved(folder)}
    files = [file for file in sorted(folder.iterdir()) if file.suffix in suffixes]
    if (folder / "data").is_dir():
        files += [f for f in sorted((folder / "data").iterdir()) if _SHARD.fullmatch(f.stem)]
    found: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        found.setdefault(shard["split"] if shard else file.stem, []).append(file)
    for split, its in found.items():
        _check_whole(split, its)
    for inner in (inner for inner in sorted(folder.iterdir()) if inner.is_dir()):
        its = [file for file in sorted(inner.iterdir()) if file.suffix in suffixes]
        if its and not all(file in files for file in its):
            if inner.name in found:
                raise UserError(f"{folder}: {found[inner.name][0].name} and {inner.name}/ are both")
            found[inner.name] = its
    return {split: tuple(its) for split, its in found.items()}


def _saved(folder: Path) -> tuple[Path, ...]:
    """The files of a split that `save_to_disk` wrote; a `map` may have put its cache beside them."""
    said = (read_json(folder / "state.json") or {}).get("_data_files")
    said = said if isinstance(said, list) else []
    names = {one.get("filename") for one in said if isinstance(one, dict)}
    found = tuple(file for file in sorted(folder.glob("*.arrow")) if not said or file.name in names)
    if len(found) < len(said):
        raise UserError(f"{folder}: not all of the files that its state.json names are there")
    return found


def _check_whole(split: str, files: list[Path]) -> None:
    """One file, or all the shards of one."""
    shards = [_SHARD.fullmatch(file.stem) for file in files]
    if len(files) == 1 and shards[0] is None:
        return
    if None in shards or len({file.suffix for file in files}) > 1:
        names = " and ".join(file.name for file in files[:2])
        raise UserError(
            f"{files[0].parent}: {names} are both the split {split!r}; name one of them"
        )
    count, numbers = int(shards[0]["count"]), {int(shard["number"]) for shard in shards}
    missing = sorted(set(range(count)) - numbers)
    if missing or len(files) != count:
        what = f"shard {missing[0]} of {count} is missing" if missing else "shards are there twice"
        raise UserError(f"{files[0].parent}: split {split!r}: {what}")


def _missing(path: str, sets: Path | None) -> str:
    said = f"config.data.source: there is no file or folder {path}"
    if sets is None:
        return f"{said}{_near(path)}"
    here = sorted(folder.name for folder in sets.glob("*") if folder.is_dir())
    return (
        f"{said}, nor a set of that name under {sets}{did_you_mean(path, here)}; "
        f"there: {', '.join(here) or 'none'}; `scripts/fetch_data --help` lists what it gets"
    )


def _but(folder: Path) -> str:
    """What a folder holds, for the message that none of it can be read."""
    names = sorted(file.name for file in folder.iterdir())[:3] if folder.is_dir() else ()
    return f", but {', '.join(names)}" if names else ""


def _near(path: str) -> str:
    parent = Path(os.path.expanduser(path)).parent
    beside: Iterable[Path] = parent.iterdir() if parent.is_dir() else ()
    return did_you_mean(Path(path).name, [file.name for file in beside])


def _from_hub(name: str, suffixes: Sequence[str]) -> Path:
    """The folder of a data set of the Hub, downloaded once into the Hub's own cache."""
    huggingface_hub = needed("huggingface_hub", f"hub:{name} needs")
    try:
        patterns = [f"*{suffix}" for suffix in suffixes]
        return Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
        )
    except Exception as error:  # no network, no such id, no permission: each its own kind
        reason = first_line(error)
        raise UserError(f"hub:{name}: cannot fetch it ({reason})") from None
