"""Where examples come from: a `Source` answers `read(ids)`, and nothing else is asked of it.

A config names a target (`TFDS` and `NPZ` here, others in their files); `target.open(split)` gives the
Source. A target whose numbers depend on the data (class names, vocabularies, means) has also
`fit(split)`, which gives a target that is fitted to that split. Sources know nothing of order,
batches, hosts or devices. No TensorFlow is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from bigjax.core import settings
from bigjax.core.errors import UserError, did_you_mean, first_line
from bigjax.data.labels import is_number
from bigjax.data.mixed import Mixed
from bigjax.data.narrow import Features, narrow, narrow_dtype


class Source(Protocol):
    """Examples 0..len-1, any of which can be read at any time by any thread.

    Attributes:
      features: name -> (shape of one example, dtype); always fixed-shape numbers.
      class_names: names of the classes of "label", or None if they are not known.
      num_classes: how many there are, or None.
    """

    features: Features
    class_names: tuple[str, ...] | None
    num_classes: int | None
    # What some have too:
    #   vocab_size: token ids are below it; tokenizer; texts; encode(lines) -> columns.
    #   read_inputs(path) -> Inputs: reads a user's file as it reads its own; read_rows(rows) likewise.
    #   fitted: plain values, all that the train split decided; saved with a run.
    #   feature_names: of the numbers in "features".
    #   column(key): a feature of all examples, where that is cheap.
    #   stream: the order of training (`core.order.Stream`), where it is not all examples shuffled.

    def __len__(self) -> int: ...

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Reads examples: ids (N,) -> each feature with leading axis N, in the order of ids."""
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) that changes when the data does."""
        ...


def open_splits(data: settings.Data, names: Iterable[str]) -> dict[str, Source]:
    """Opens the named of `data.splits`, all of a target as its part of "train" is fitted.

    With `data.mixture`, "train" is all that is trained on, and its parts are among the splits.

    Raises:
      UserError: a split is not there, or its classes are not those of train.
    """
    targets = {"": data.source, **(data.sources or {})}

    def part_of(split: str) -> tuple[str, str]:
        name, colon, rest = split.partition(":")
        return (name, rest) if colon and name in targets else ("", split)

    name, part = part_of(data.splits["train"])
    if hasattr(targets[name], "fit"):
        targets[name] = targets[name].fit(part)
    opened, mixed = {}, data.mixture or {}
    for split in dict.fromkeys((*names, *mixed)):
        name, part = part_of(data.splits[split])
        opened[split] = targets[name].open(part)
    for split, source in opened.items():
        _check_alike(split, source, opened.get("train", source))
    if mixed:
        opened["train"] = Mixed({name: opened[name] for name in mixed})
    return opened


def _check_alike(split: str, source: Source, train: Source) -> None:
    """Refuses a split of another target that numbers classes, or makes features, otherwise."""
    for what in ("class_names", "fitted"):
        ours, theirs = getattr(train, what, None), getattr(source, what, None)
        if ours and theirs and ours != theirs:
            named = f": {', '.join(theirs)} instead of {', '.join(ours)}" * (what == "class_names")
            raise UserError(
                f"config.data.splits.{split}: what is fitted ({what}) is not that of train{named}; "
                "make it a split of the same source"
            )


def check_classes(
    source: Source, label: str, classes: int, split: str, not_scored: int | None = None
) -> None:
    """Refuses integer labels outside 0 .. classes - 1; `not_scored` is allowed.

    Of a source too large to look at all labels, the number of its class names is what counts.
    """
    _, dtype = source.features.get(label, ((), np.dtype(float)))
    if dtype.kind not in "iu":
        return
    wrong, where = None, ""
    if hasattr(source, "column"):
        values = source.column(label)
        bad = ((values >= classes) | (values < 0)) & (values != not_scored)
        if bad.any():
            wrong, where = values[bad][0], f", example {int(np.argwhere(bad)[0][0])}"
    elif source.num_classes is not None and source.num_classes > classes:
        wrong = source.num_classes - 1
    if wrong is not None:
        raise UserError(
            f"split {split!r}{where}: {label!r} is {wrong}, but the model and the task know "
            f"{classes} classes, 0 to {classes - 1} (config.model.outputs)"
        )


def check_numbers(source: Source, label: str) -> None:
    """Refuses words where numbers are learned: the numbers of classes say nothing of more and less."""
    words = [name for name in source.class_names or () if not is_number(name)]
    if words and label in source.features:
        raise UserError(
            f"config.task: {label!r} is words ({', '.join(words[:3])}), and numbers are needed; mend "
            "them, or say task.type='classification'"
        )


class Arrays:
    """A Source held in memory: reading is one fancy index per feature.

    64-bit numbers are narrowed to 32 bits, as JAX would do.

    Raises:
      UserError: the arrays are empty, of unequal length, or not numbers that fit.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], class_names: Sequence[str] | None = None):
        self._columns = {key: narrow(key, np.asarray(value)) for key, value in columns.items()}
        lengths = {key: len(column) for key, column in self._columns.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(f"arrays must have one length, got {lengths}")
        self._length = next(iter(lengths.values()))
        if not self._length:
            raise UserError("there are no examples")
        self.features = {key: (c.shape[1:], c.dtype) for key, c in self._columns.items()}
        self.class_names = tuple(class_names) if class_names else None
        self.num_classes = len(self.class_names) if self.class_names else self._counted()

    def __len__(self) -> int:
        return self._length

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {key: column[ids] for key, column in self._columns.items()}

    def column(self, key: str) -> np.ndarray:
        """One feature of all examples."""
        return self._columns[key]

    def _counted(self) -> int | None:
        """Classes without names: integers from 0 up."""
        label = self._columns.get("label")
        if label is None or label.ndim != 1 or label.dtype.kind not in "iu" or label.min() < 0:
            return None
        return int(label.max()) + 1

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        for key, column in sorted(self._columns.items()):
            digest.update(f"{key}{column.shape}{column.dtype.str}".encode())
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class Records:
    """A Source over a TFDS data source too large for memory: each read fetches its records."""

    def __init__(
        self,
        data,
        features: Features,
        class_names: tuple[str, ...] | None,
        identity: str,
    ):
        self._data = data
        self._identity = identity
        self.features = features
        self.class_names = class_names
        self.num_classes = len(class_names) if class_names else None

    def __len__(self) -> int:
        return len(self._data)

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        examples = self._data.__getitems__(np.asarray(ids).tolist())
        columns = {}
        for key, (shape, dtype) in self.features.items():
            column = np.empty((len(examples), *shape), dtype)
            for row, example in enumerate(examples):
                column[row] = example[key]
            columns[key] = column
        return columns

    def fingerprint(self) -> str:
        return self._identity


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A data set prepared by TFDS under a data dir, or one that bigjax prepares itself.

    Kept are the top-level features that are numbers of a fixed shape; strings, nested features and
    images of varying size are left out. A split that decodes to at most `cache_mb` MiB is read into
    memory once.

    Attributes:
      name: e.g. "digits"; `bigjax_NAME` is taken when no NAME of your own is prepared.
      data_dir: where it is prepared; default $TFDS_DATA_DIR or ~/tensorflow_datasets, as in TFDS.
      config: the TFDS builder config; needed only when several are prepared.
      version: default the newest prepared.
      cache_mb: MiB of decoded data to hold in memory.
    """

    name: str
    data_dir: str | None = None
    config: str | None = None
    version: str | None = None
    cache_mb: int = 1024

    def open(self, split: str) -> Source:
        """Opens a split, e.g. "train", "train[:90%]", "train+test".

        Raises:
          UserError: the data set is not prepared, or the split is not there, empty or misspelt.
        """
        import tensorflow_datasets as tfds

        builder = self.builder()
        features = _numeric_features(builder.info.features)
        if not features:
            raise UserError(f"TFDS {self.name!r} has no feature that is numbers of a fixed shape")
        known = list(builder.info.splits)
        base = split.split("[")[0]
        if "+" not in split and base not in known:
            raise UserError(
                f"TFDS {self.name!r} has no split {base!r}{did_you_mean(base, known)}; "
                f"it has {', '.join(known)}"
            )
        left_out = [key for key in builder.info.features if key not in features]
        decoders = {key: tfds.decode.SkipDecoding() for key in left_out} or None
        try:
            length = builder.info.splits[split].num_examples
        except Exception as error:  # TFDS raises many kinds for a bad split, all with a message
            raise UserError(
                f"split {split!r} of TFDS {self.name!r}: {first_line(error)}"
            ) from error
        if not length:
            raise UserError(f"split {split!r} of TFDS {self.name!r} has no examples")
        data = builder.as_data_source(split, decoders=decoders)
        identity = _identity(builder, split)
        names = _class_names(builder.info.features)
        source = Records(data, features, names, identity)
        if length * _example_bytes(features) <= self.cache_mb * 2**20:
            return Arrays(source.read(np.arange(length)), names)
        return source

    def builder(self):
        """The TFDS builder of the prepared data set; UserError if it is not there or not readable."""
        import tensorflow_datasets as tfds

        from bigjax.data import builders

        builder = builders.opened(self._find())
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"TFDS {self.name!r} is prepared as {builder.info.file_format.value}, which cannot "
                f"be read at random; prepare it with `tfds build {self.name} "
                "--file_format=array_record`"
            )
        return builder

    def _find(self):
        """The folder of the prepared data set; prepares an embedded one that is not there yet."""
        from bigjax.data import builders

        root = default_data_dir(self.data_dir)
        for name in (self.name, f"bigjax_{self.name}"):
            found = _prepared(root, name)
            if found:
                return self._choose(found, root / name)
        if self.name in builders.EMBEDDED:
            builders.prepare(builders.EMBEDDED[self.name], root)
            return self._find()
        here = sorted({path.name for path in root.glob("*") if _prepared(root, path.name)})
        choices = [*here, *builders.EMBEDDED]
        raise UserError(
            f"TFDS data set {self.name!r} is not prepared under {root}"
            f"{did_you_mean(self.name, choices)}; prepared there: {', '.join(here) or 'nothing'}; "
            f"bigjax carries {', '.join(builders.EMBEDDED)}; get it with `scripts/fetch_data {self.name}`"
            f" or `tfds build {self.name} --file_format=array_record`, or set data_dir"
        )

    def _choose(self, found: dict[tuple[str, str], os.PathLike], where: os.PathLike):
        """Picks one of the prepared (config, version) pairs."""
        configs = sorted({config for config, _ in found})
        if self.config is None and len(configs) > 1:
            raise UserError(f"{where} holds several configs, name one: {', '.join(configs)}")
        config = configs[0] if self.config is None else self.config
        versions = sorted((v for c, v in found if c == config), key=_version_key)
        version = self.version or (versions[-1] if versions else "")
        if (config, version) not in found:
            there = ", ".join("/".join(filter(None, pair)) for pair in sorted(found))
            raise UserError(
                f"{where} has no config {self.config!r} version {self.version!r}; it has {there}"
            )
        return found[config, version]


def default_data_dir(data_dir: str | os.PathLike | None = None):
    """The data dir as TFDS finds it: given, $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    from etils import epath

    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(given).expanduser()


def _prepared(root, name: str) -> dict[tuple[str, str], os.PathLike]:
    """(config or "", version) -> folder of everything prepared as `name` under `root`."""
    found = {}
    for depth in ("*", "*/*"):
        for info in (root / name).glob(f"{depth}/dataset_info.json"):
            config = info.parent.parent.name if depth == "*/*" else ""
            if not info.parent.name.startswith("incomplete."):
                found[config, info.parent.name] = info.parent
    return found


def _version_key(version: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in version.split(".")]


def _numeric_features(features) -> Features:
    """The top-level features that are numbers of a fixed shape, 64 bits narrowed to 32."""
    kept = {}
    if not hasattr(features, "items"):
        return kept
    for key, feature in sorted(features.items()):
        shape, dtype = feature.shape, feature.np_dtype
        if isinstance(shape, tuple) and None not in shape and not isinstance(dtype, dict):
            dtype = np.dtype(dtype)
            if dtype.kind in "biuf":
                kept[key] = (shape, narrow_dtype(dtype))
    return kept


def _class_names(features) -> tuple[str, ...] | None:
    names = getattr(features["label"], "names", None) if "label" in features else None
    return tuple(names) if names else None


def _example_bytes(features: Features) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in features.values())


def _identity(builder, split: str) -> str:
    """sha256 of a prepared data set's description and of the name and size of each of its files.

    Reading every byte of a set too large for memory would take hours, so this stands for it.
    """
    folder = builder.data_path
    digest = hashlib.sha256(split.encode())
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name}:{path.stat().length};".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()
