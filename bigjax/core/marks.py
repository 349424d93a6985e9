"""What a field of a method or of settings says about itself beyond its type. No JAX here.

A new method needs no list elsewhere: which of its fields are traced, and which name other runs, follows
from its annotations.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

TRACED, RUN = "traced", "run"

Traced = Annotated[float, TRACED]
"""An input of the compiled step: another value compiles nothing."""
RunReference = Annotated[str, RUN]
"""Another run's folder; "../NAME" is an earlier stage of a pipeline."""
ModelReference = Annotated[str | Mapping[str, Any], RUN]
"""A `RunReference`, or a dict as `bigjax.core.settings.Teacher` says: also a published checkpoint."""


def marked_fields(target: Any, mark: str) -> Iterator[str]:
    """The fields of a class that are annotated with a mark, `TRACED` or `RUN`."""
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # a library's own annotations
        return
    for name, hint in hints.items():
        optional = typing.get_args(hint) if typing.get_origin(hint) is not Annotated else (hint,)
        if any(mark in getattr(part, "__metadata__", ()) for part in optional):
            yield name
