"""From a published checkpoint to our variables: every leaf placed, or a line that says what is wrong.

Each tensor is read when its leaf is placed and goes straight from its file to the devices that hold it, each of
which gets its own part: the host holds no more than one part a thread. Nothing on disk is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from bigjax.core.errors import UserError
from bigjax.pretrained.entry import Constant, Entry, unstacked
from bigjax.pretrained.families import FAMILIES, open_family
from bigjax.pretrained.peft import is_adapter, open_adapted
from bigjax.pretrained.reader import Published, open_published

# Published tensors that are no parameters: counters, masks and tables that are computed.
BUFFERS = (
    r".*num_batches_tracked",
    r".*position_ids",
    r".*\.attn\.(masked_)?bias",
    r".*rotary_emb\.inv_freq",
)
# What a run may say otherwise than the checkpoint: it changes no number of the leaves that are loaded,
# or shows as a leaf of another shape.
FREE = ("vocab", "context", "dropout", "head", "outputs", "remat", "scan_layers")
BLOCK = re.compile(r"\bblock_(\d+)/")  # one of a model's equal blocks, in a path
ROUNDED = 5e-3  # of numbers up to 1 in bfloat16
# A CPU device takes an array that lies in order at such an address as it is: it would read the mapped file for
# ever. Any other is copied by JAX, which turns axes on the way, several times as fast as NumPy.
TAKEN_AT = 64
READERS = 2  # threads, each with a part of a leaf in its hands
SHOWN = 6  # problems that one message lists


def open_checkpoint(source: str, name: str, *, merged: bool = True) -> tuple[Published, Any]:
    """A published checkpoint of the family `name`, with the family.

    merged: whether adapters are, where the source is a folder of them.

    Raises:
      UserError: unknown family, no such or an unreadable checkpoint, or one of another family.
    """
    family = open_family(name)
    adapted = is_adapter(source)
    published = open_adapted(source, merged=merged) if adapted else open_published(source)
    if published.gguf:
        if not hasattr(family, "from_gguf"):
            raise UserError(f"{published.path}: a GGUF file cannot be read as '{name}'")
        published = family.from_gguf(published)
    model_type, known = published.config.get("model_type"), FAMILIES[name][1]
    if model_type is not None and model_type not in known:
        raise UserError(
            f"config.init.family: {published.path} says it is '{model_type}', not '{name}'"
        )
    return _without_prefix(published, prefix_of(published, family)), family


def prefix_of(published: Published, family: Any) -> str:
    """The first of the family's prefixes that a name of the checkpoint has."""
    prefixes = getattr(family, "PREFIXES", ())
    return next((p for p in prefixes if any(n.startswith(p) for n in published.shapes)), "")


def _without_prefix(published: Published, prefix: str) -> Published:
    """The checkpoint under names without the prefix."""
    full = {name.removeprefix(prefix): name for name in published.shapes}
    shapes = {short: published.shapes[name] for short, name in full.items()}
    return replace(published, shapes=shapes, read=lambda short: published.read(full[short]))


def derived_model(init: Mapping[str, Any], model: Mapping[str, Any], needed: Sequence[str]) -> dict:
    """`config.model` with what it does not say taken from the checkpoint that `config.init` names.

    Args:
      init: the raw section, with `source` and `family`.
      model: the raw section, with `type`.
      needed: the model's keys without a default; if all are given, no file is read.

    Raises:
      UserError: as `open_checkpoint`; the model is not the family's; nothing says what it looks like.
    """
    if all(key in model for key in needed):
        return dict(model)
    published, family = open_checkpoint(init.get("source", ""), init["family"])
    if model.get("type") != family.TYPE:
        raise UserError(
            f"config.model.type: weights of the family '{init['family']}' go into '{family.TYPE}', "
            f"not '{model.get('type')}'"
        )
    if not published.config:
        return dict(model)
    theirs = family.model_values(published.config)
    chosen = {"layers": len(init["layers"])} if init.get("layers") else {}
    return {**theirs, **chosen, **model}


def check_published(init: Any, model: Mapping[str, Any]) -> tuple[Published, Any]:
    """Opens the checkpoint that `config.init` names, with its family, and compares the models.

    Raises:
      UserError: as `open_checkpoint`; `config.model` contradicts the checkpoint's config.json.
    """
    merged = init.adapters == "merge"
    published, family = open_checkpoint(init.source, init.family, merged=merged)
    theirs = family.model_values(published.config) if published.config else {}
    free = (*FREE, "layers") if init.layers else FREE
    differing = [
        f"{key} is {model[key]!r}, the checkpoint has {value!r}"
        for key, value in theirs.items()
        if key not in free and key in model and model[key] != value
    ]
    layers = theirs.get("layers")
    if init.layers and isinstance(layers, tuple):  # of a ResNet: how many each stage has
        raise UserError(f"config.init.layers: {published.path} has stages, not blocks 0 to N")
    if init.layers and layers is not None and max(init.layers) >= layers:
        raise UserError(
            f"config.init.layers: {published.path} has blocks 0 to {layers - 1}, "
            f"not {max(init.layers)}"
        )
    if differing:
        raise UserError(f"config.model: {published.path}: {'; '.join(differing)}")
    return published, family


def read_published(
    init: Any,
    model: Mapping[str, Any],
    wanted: Mapping[str, Any],
    scratch: Callable[[list[str]], Mapping[str, jax.Array]],
) -> dict[str, jax.Array]:
    """Leaves from a published checkpoint.

    Args:
      init: the settings of `config.init`.
      model: the values of `config.model`.
      wanted: path of a leaf, as `Entry.paths` writes them -> its shape, dtype and sharding.
      scratch: paths -> these leaves from scratch: where `init.resize` adds rows, or the checkpoint
        lacks an optional one. Called once, with no others.

    Returns:
      path -> array, floating-point ones in float32.

    Raises:
      UserError: everything that is missing, unused, of another shape or says otherwise, in one line.
    """
    published, family = check_published(init, model)
    theirs = family.model_values(published.config) if init.layers and published.config else {}
    entries = family.entries(dict(model) | ({"layers": theirs["layers"]} if theirs else {}))
    source = _Source(published, entries, init.layers)
    problems, found, unfilled = [], {}, []
    for path, leaf in wanted.items():
        try:
            found[path], whole = source.leaf(path, leaf, _matches(init.resize, path))
            unfilled += [] if whole else [path]
        except ValueError as error:
            problems.append(f"{path} {error}")
    problems += _otherwise(published, entries)
    unread = set(published.shapes) - source.known
    for name in sorted(unread):
        if not _matches((*BUFFERS, *getattr(family, "IGNORED", ()), *init.unused), name):
            problems.append(f"published '{name}' is read by nothing (see config.init.unused)")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{published.path}: {'; '.join(problems[:SHOWN])}{more}")
    made = scratch(unfilled) if unfilled else {}
    with ThreadPoolExecutor(READERS) as readers:
        placed = readers.map(lambda path: found[path](made.get(path)), found)
        return dict(zip(found, placed, strict=True))


def _otherwise(published: Published, entries: Sequence[Entry]) -> list[str]:
    """What is wrong with the tensors that our model computes: they must be what it computes."""
    computed = [e for e in entries if isinstance(e, Constant) and e.name in published.shapes]
    return [
        f"published '{entry.name}' is not what this family computes in its place"
        for entry in computed
        if published.shapes[entry.name] != entry.values.shape
        or np.abs(published.read(entry.name) - entry.values).max() > ROUNDED
    ]


class _Source:
    """A checkpoint seen through a name map.

    Args:
      chosen: the published layers, where they are not all.

    Attributes:
      known: the published names that the map speaks of.
    """

    def __init__(self, published: Published, entries: Sequence[Entry], chosen: Sequence[int] = ()):
        self._published, self._chosen = published, chosen
        self._entries = {path: (e, part) for e in entries for part, path in enumerate(e.paths)}
        self.known = {entry.name for entry in entries}

    def leaf(self, path: str, ours: Any, resize: bool) -> tuple[Callable[..., jax.Array], bool]:
        """(`place(scratch)`, which reads and places the leaf `path`; whether it needs no scratch).

        All that can be checked unread is checked here.

        Raises:
          ValueError: what keeps the leaf from being read.
        """
        layers = self._unstacked(path, ours)
        absent = [p for p in layers.flat if self._entries[p][0].name not in self._published.shapes]
        if absent:
            entry = self._entries[absent[0]][0]
            if entry.optional:
                return lambda scratch: scratch, False
            raise ValueError(f"needs '{entry.name}', which the checkpoint lacks")
        shape, whole = ours.shape[layers.ndim :], True
        for layer in layers.flat:
            theirs = self._shape(layer)
            if theirs != shape and not (resize and len(theirs) == len(shape)):
                name = self._entries[layer][0].name
                raise ValueError(f"has shape {shape}, '{name}' gives {theirs}")
            whole &= theirs == shape
        return lambda scratch: self._place(layers, ours, scratch), whole

    def _unstacked(self, path: str, ours: jax.Array) -> np.ndarray:
        """The paths of a leaf in the name map: itself, or one a layer and expert where they are stacked."""
        paths = np.array(path, object)
        if path not in self._entries:
            paths = unstacked(path, ours.shape)
            for index, own in np.ndenumerate(paths) if self._chosen else ():
                paths[index] = BLOCK.sub(lambda m: f"block_{self._chosen[int(m[1])]}/", own)
        if any(own not in self._entries for own in paths.flat):
            raise ValueError("has no counterpart in this family; `config.init.rules` may say None")
        return paths

    def _shape(self, path: str) -> tuple[int, ...]:
        """The shape a leaf would come in, without reading it."""
        entry, part = self._entries[path]
        stand_in = np.broadcast_to(np.int8(0), self._published.shapes[entry.name])
        try:
            return entry.load(stand_in)[part].shape
        except ValueError as error:
            raise ValueError(f"from '{entry.name}' {stand_in.shape}: {error}") from None

    def _read(self, path: str) -> np.ndarray:
        entry, part = self._entries[path]
        return entry.load(self._published.read(entry.name))[part]

    def _place(self, layers: np.ndarray, ours: Any, scratch: Any) -> jax.Array:
        floating = jnp.issubdtype(ours.dtype, jnp.floating)
        dtype = np.float32 if floating else ours.dtype
        if layers.ndim:

            def part(index: tuple[slice, ...]) -> np.ndarray:
                here, rest = layers[index[: layers.ndim]], index[layers.ndim :]
                read = _stacked([self._read(p)[rest] for p in here.flat], dtype)
                return read.reshape(*here.shape, *read.shape[1:])
        else:
            whole = self._read(layers.item())
            if whole.shape != ours.shape:
                whole = _overlaid(np.array(scratch, dtype), whole)

            def part(index: tuple[slice, ...]) -> np.ndarray:
                return np.asarray(whole[index], dtype)

        def own(index: tuple[slice, ...]) -> np.ndarray:
            found = part(index)
            in_place = found.flags.c_contiguous and found.ctypes.data % TAKEN_AT == 0
            return found.copy() if in_place else found

        layout, kind = ours.sharding, ours.sharding.memory_kind
        placed = [  # one part at a time: `make_array_from_callback` would hold them all
            jax.device_put(own(index), SingleDeviceSharding(device, memory_kind=kind))
            for device, index in layout.addressable_devices_indices_map(ours.shape).items()
        ]
        return jax.make_array_from_single_device_arrays(ours.shape, layout, placed)


def _stacked(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """`np.stack`, whose arrays keep the order in which their numbers lie in memory: no axes are turned."""
    order = np.argsort([-stride for stride in arrays[0].strides], kind="stable")
    stacked = np.stack([array.transpose(order) for array in arrays], dtype=dtype, casting="unsafe")
    return stacked.transpose(0, *(1 + np.argsort(order)))


def _overlaid(scratch: np.ndarray, published: np.ndarray) -> np.ndarray:
    """The published numbers where both have a place, the numbers from scratch elsewhere."""
    both = tuple(slice(min(a, b)) for a, b in zip(scratch.shape, published.shape, strict=True))
    scratch[both] = published[both]
    return scratch


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
