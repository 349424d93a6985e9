"""Several sources as one: what is trained on where `config.data.mixture` says so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.narrow import zeros


class Mixed:
    """The examples of the parts one part after the other, as a Source; "part" int32 () says whose one is.

    Everything else (classes, tokenizer, how a user's file is read) is as in the part "train". Which
    example comes when is said by `bigjax.core.mixing`.

    Attributes:
      parts: name -> its Source.

    Raises:
      UserError: a part's examples are not made as those of train.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        self._train = train = self.parts["train"]
        for name, part in self.parts.items():
            _check_same("features", name, part.features, train.features)
            tokenizers = (getattr(one, "tokenizer", None) for one in (part, train))
            made_by = (getattr(one, "fingerprint", None) for one in tokenizers)
            _check_same("tokenizer", name, *made_by)
        sizes = [len(part) for part in self.parts.values()]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self.features = {**train.features, "part": ((), np.dtype(np.int32))}
        self.class_names, self.num_classes = train.class_names, train.num_classes

    def __getattr__(self, name: str) -> Any:
        # Only the splits themselves have a column of all examples, or an order.
        if name in ("column", "stream", "_train"):
            raise AttributeError(name)
        return getattr(self._train, name)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.asarray(ids)
        of = np.searchsorted(self._ends, ids, side="right")
        columns = zeros(self.features, len(ids))
        columns["part"][:] = of
        for number, part in enumerate(self.parts.values()):
            own = np.flatnonzero(of == number)
            if len(own):
                for name, values in part.read(ids[own] - self._starts[number]).items():
                    columns[name][own] = values
        return columns

    def fingerprint(self) -> str:
        prints = [(name, part.fingerprint()) for name, part in self.parts.items()]
        return hashlib.sha256(repr(prints).encode()).hexdigest()


def _check_same(what: str, name: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise UserError(
            f"config.data.mixture.{name}: its {what} ({ours}) must be that of train ({theirs})"
        )
