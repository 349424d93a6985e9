"""bigjax: large-model research in JAX and Flax, one config file to one reproducible run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from bigjax.core import compilers
from bigjax.core.errors import did_you_mean

__version__ = "0.3.0"


def _check_asked() -> None:
    """Ends a misspelt `python -m bigjax.NAME` in one line: Python is still looking for that module."""
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return
    asked = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if asked.partition(".")[0] != __name__:  # a package of somebody that imports this one
        return
    place = Path(__file__).parent.joinpath(*asked.split(".")[1:])
    if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists()):
        near = did_you_mean(asked, ["bigjax", "bigjax.doctor", "bigjax.sweep"])
        print(
            f"error: nothing to run in '{asked}'{near}; see python -m bigjax --help",
            file=sys.stderr,
        )
        sys.exit(2)


_check_asked()
compilers.mend()

# Handed on when first asked for, so that `import bigjax` costs little.
_HANDED_ON = {
    "launch": "bigjax.verbs.launch",
    "pipeline": "bigjax.loop.stages:pipeline",
    "train": "bigjax.verbs.notebook:train",
    "open_run": "bigjax.verbs.notebook:open_run",
    "open_exported": "bigjax.verbs.notebook:open_exported",
    "sweep": "bigjax.sweep",
    "UserError": "bigjax.core.errors:UserError",
}


def __getattr__(name: str) -> Any:
    if name not in _HANDED_ON:
        raise AttributeError(f"module 'bigjax' has no attribute '{name}'")
    module, _, attribute = _HANDED_ON[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
