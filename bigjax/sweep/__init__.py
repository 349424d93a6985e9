"""Sweeps: many runs of one experiment, and the table they end in. `python -m bigjax.sweep` runs one,
and so does `bigjax.sweep(config, workdir, grid=...)` (see `bigjax.sweep.notebook.sweep`).

A sweep file imports what it needs from here. README.md in this folder says what is where.
"""

import sys
import types
from typing import Any

from bigjax.sweep.describe import Search, Sweep, chain, over, product, subsample, zip

__all__ = ["Search", "Sweep", "chain", "over", "product", "subsample", "zip"]


class _Callable(types.ModuleType):
    """A package that is a function too: the one name says both what it holds and what one does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from bigjax.sweep.notebook import sweep

        return sweep(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
