"""What makes a checkpoint count: a manifest of hashes beside Orbax's files, complete and true.

Hashes of every file catch any change on the disk; hashes of the arrays, taken from memory when they
were saved, catch what went wrong before the disk or after it. Knows folders, arrays and JSON; knows
nothing of Orbax, configs or models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath

MANIFEST = "manifest.json"
PARTIAL = ".manifest.json"  # a manifest being written
FORMAT = 2
CHUNK = 1 << 20  # bytes read at a time: what a core's cache holds
THREADS = 4  # hashlib and zlib leave Python's lock, so threads hash side by side


class BadCheckpoint(Exception):
    """A checkpoint must not be used. The message names the file or the arrays, and what is wrong."""


class OtherFormat(BadCheckpoint):
    """The manifest is true, but of another version of bigjax."""


def file_hashes(
    folder: epath.Path, names: Iterable[str], *, sync: bool = False
) -> dict[str, dict[str, Any]]:
    """File name in the folder -> {"size": bytes, "crc32": hex}; large files side by side.

    With `sync`, what was hashed also survives a loss of power (of local files).
    """
    names, sync = list(names), sync and is_local(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _file_hash(folder / name, sync), names)
        return dict(zip(names, found, strict=True))


def is_local(folder: epath.Path) -> bool:
    return "://" not in str(folder)


def files_of(folder: epath.Path) -> list[str]:
    """Every file below a folder but the manifest itself, as "a/b", in order of name."""
    names, folders = [], [folder]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                names.append(path.relative_to(folder).as_posix())
    return sorted(name for name in names if name not in (MANIFEST, PARTIAL))


def host_blocks(leaf: Any) -> dict[str, np.ndarray]:
    """The parts of an array that this process answers for: "0:64,32:64" (start:stop) -> values.

    Device memory is read before this returns, so the array may be donated afterwards. On CPU the
    values are views that JAX keeps alive; elsewhere Orbax's own copy to the host is shared.
    """
    if not isinstance(leaf, jax.Array):
        return {_block_name((slice(None),) * np.ndim(leaf), np.shape(leaf)): np.asarray(leaf)}
    return {
        _block_name(shard.index, leaf.shape): np.asarray(shard.data)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    }


def block_hashes(blocks: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, str]]:
    """Array path -> block -> `content_hash` of the block, many side by side."""
    flat = [(path, name, values) for path, part in blocks.items() for name, values in part.items()]
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(lambda item: content_hash(item[2]), flat))
    found: dict[str, dict[str, str]] = {path: {} for path in blocks}
    for (path, name, _), digest in zip(flat, digests, strict=True):
        found[path][name] = digest
    return found


def content_hash(values: np.ndarray) -> str:
    """CRC-32 of an array's bytes in C order, as hex.

    It finds every flip of up to 32 neighbouring bits, and misses another change once in 2**32, and
    that only if the files' own hashes miss it too. sha256 costs more, and would guard
    against forgery only where nobody can write the manifest.
    """
    return f"{zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8)):08x}"


def wrong_arrays(arrays: dict[str, Any], expected: dict[str, dict[str, Any]]) -> list[str]:
    """The paths whose values are not those that were saved, however either side was sharded.

    Where an array lies over several processes, a process compares the saved blocks that it holds
    whole; the rest of such an array rests on the hashes of its files.
    """

    def is_wrong(path: str) -> bool:
        pieces, covered = _pieces(arrays[path]), 0
        for name, digest in expected[path]["blocks"].items():
            wanted = _bounds(name)
            covered += math.prod(stop - start for start, stop in wanted)
            for bounds, values in pieces:
                if all(a <= c and d <= b for (a, b), (c, d) in zip(bounds, wanted, strict=True)):
                    inside = tuple(
                        slice(c - a, d - a) for (a, _), (c, d) in zip(bounds, wanted, strict=True)
                    )
                    if content_hash(values[inside]) != digest:
                        return True
                    break
        return covered != math.prod(np.shape(arrays[path]))  # a block that is not listed

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(is_wrong, arrays))
    return [path for path, wrong in zip(arrays, found, strict=True) if wrong]


def check_layout(arrays: dict[str, Any], expected: dict[str, dict[str, Any]]) -> list[str]:
    """Lines saying which wanted arrays the checkpoint lacks or holds in another shape or type."""
    problems = [f"no '{path}' in the checkpoint" for path in arrays if path not in expected]
    problems += [f"'{path}' is not wanted" for path in expected if path not in arrays]
    for path in arrays.keys() & expected.keys():
        there, wanted = expected[path], arrays[path]
        if tuple(there["shape"]) != tuple(wanted.shape) or there["dtype"] != str(wanted.dtype):
            problems.append(
                f"'{path}' is {there['dtype']} {tuple(there['shape'])}, "
                f"not {wanted.dtype} {tuple(wanted.shape)}"
            )
    return sorted(problems)


def sealed(content: dict[str, Any]) -> str:
    """The text of a manifest: canonical JSON, its own hash included, so that every byte counts."""
    digest = hashlib.sha256(_canonical(content).encode()).hexdigest()
    return _canonical({**content, "sha256": digest})


def read_manifest(folder: epath.Path, *, step: int, run: str | None) -> dict[str, Any]:
    """The manifest of the checkpoint in `folder`.

    Raises:
      BadCheckpoint: it is missing or altered, or belongs to another step or another run.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text()
        content = json.loads(text)
        digest = content.pop("sha256")
    except FileNotFoundError:
        raise BadCheckpoint(f"{MANIFEST}: missing, the save was not completed") from None
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BadCheckpoint(f"{MANIFEST}: not readable ({error})") from None
    if hashlib.sha256(_canonical(content).encode()).hexdigest() != digest or (
        text != sealed(content)
    ):
        raise BadCheckpoint(f"{MANIFEST}: altered, its own hash does not match")
    if content.get("format") != FORMAT:
        raise OtherFormat(f"{MANIFEST}: format {content.get('format')}, this bigjax reads {FORMAT}")
    if problem := _malformed(content):
        raise BadCheckpoint(f"{MANIFEST}: {problem} is not as bigjax writes it")
    if content["step"] != step:
        raise BadCheckpoint(f"{MANIFEST}: is of step {content['step']}, not {step}")
    if run is not None and content["run"] != run:
        raise BadCheckpoint(f"{MANIFEST}: is of run {content['run']}, not {run}")
    return content


def check_files(
    folder: epath.Path, manifest: dict[str, Any], mine: Callable[[int], bool] = lambda index: True
) -> None:
    """Compares every file (those whose number is `mine`) with the manifest.

    Raises:
      BadCheckpoint: names each file that is missing, unlisted, of another size or another hash.
    """
    try:
        problems = _file_problems(folder, manifest["files"], mine)
    except PermissionError:
        raise
    except OSError as error:  # a disk that fails; files that go while they are read
        raise BadCheckpoint(f"{error.filename}: {error.strerror}") from None
    if problems:
        raise BadCheckpoint(some(sorted(problems), "; "))


def _file_problems(
    folder: epath.Path, expected: dict[str, Any], mine: Callable[[int], bool]
) -> list[str]:
    there = files_of(folder)
    problems = [f"{name}: missing" for name in expected if name not in there]
    problems += [f"{name}: not in the manifest" for name in there if name not in expected]
    present = [name for i, name in enumerate(sorted(expected)) if name in there and mine(i)]
    for name, found in file_hashes(folder, present).items():
        if found["size"] != expected[name]["size"]:
            problems.append(f"{name}: {found['size']} bytes, not {expected[name]['size']}")
        elif found["crc32"] != expected[name]["crc32"]:
            problems.append(f"{name}: altered (CRC-32)")
    return problems


def _malformed(content: dict[str, Any]) -> str | None:
    """The first key of a manifest whose value cannot be one; None if all is well."""
    types = {"run": (str, type(None)), "step": int, "time": float, "config_fingerprint": str}
    types |= {"metrics": dict, "arrays": dict, "files": dict}
    for key, kind in types.items():
        if not isinstance(content.get(key), kind):
            return key
    for path, about in content["arrays"].items():
        try:
            shape, blocks = about["shape"], about["blocks"].items()
            dtype = np.dtype(about["dtype"])
            if (
                dtype.kind not in "biufcV"
                or dtype.name != about["dtype"]
                or not all(
                    len(_bounds(name)) == len(shape) and type(crc) is str for name, crc in blocks
                )
            ):
                return path
        except (AttributeError, KeyError, TypeError, ValueError):
            return path
    for name, about in content["files"].items():
        if not isinstance(about, dict) or not {"size", "crc32"} <= about.keys():
            return name
    return None


def some(names: list[str], separator: str = ", ") -> str:
    """The first few, and how many more."""
    more = f"{separator}and {len(names) - 6} more" if len(names) > 6 else ""
    return separator.join(names[:6]) + more


def _file_hash(path: epath.Path, sync: bool) -> dict[str, Any]:
    checksum, size, chunk = 0, 0, memoryview(bytearray(CHUNK))
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while count := file.readinto(chunk):
            checksum = zlib.crc32(chunk[:count], checksum)
            size += count
    return {"size": size, "crc32": f"{checksum:08x}"}


def _pieces(leaf: Any) -> list[tuple[list[tuple[int, int]], np.ndarray]]:
    """(bounds, values) of what this process holds: the whole array if it can be seen from here."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return [([(0, size) for size in np.shape(leaf)], np.asarray(leaf))]
    return [
        (_bounds(_block_name(shard.index, leaf.shape)), np.asarray(shard.data))
        for shard in leaf.addressable_shards
    ]


def _block_name(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return ",".join(f"{start}:{stop}" for start, stop in bounds)


def _bounds(name: str) -> list[tuple[int, int]]:
    parts = [part.split(":") for part in name.split(",")] if name else []
    return [(int(start), int(stop)) for start, stop in parts]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
