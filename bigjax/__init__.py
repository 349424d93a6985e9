"""bigjax: large-model research in JAX and Flax, one config file to one reproducible run."""

from __future__ import annotations

import importlib
from typing import Any

from bigjax.core import compilers

__version__ = "0.2.0"

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
