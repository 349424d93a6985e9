"""Sweeps: many runs of one experiment, and the table they end in. `python -m bigjax.sweep` runs one.

A sweep file imports what it needs from here. README.md in this folder says what is where.
"""

from bigjax.sweep.describe import Search, Sweep, chain, over, product, subsample, zip

__all__ = ["Search", "Sweep", "chain", "over", "product", "subsample", "zip"]
