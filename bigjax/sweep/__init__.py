"""Sweeps: many runs of one experiment, and the table they end in. `python -m bigjax.sweep` runs one.

A sweep file imports what it needs from here. The arrows point one way:
`__main__ -> drive -> {executors, worker, vectorize, results} -> {trials, statistics} -> describe -> grid`.
"""

from bigjax.sweep.describe import Search, Sweep
from bigjax.sweep.grid import chain, over, product, subsample, zip

__all__ = ["Search", "Sweep", "chain", "over", "product", "subsample", "zip"]
