"""The one door to checkpoints. Only this package imports Orbax.

A run's checkpoints lie under `checkpoints/<step>/`: Orbax's files in `default/`, and beside them a
manifest of hashes, written last. Without a true manifest a checkpoint does not count. The step is
also the data position, so a state is all that a resume needs.
"""

from bigjax.run.checkpoint.folder import CheckpointError, has_checkpoints, newest_manifest
from bigjax.run.checkpoint.leaves import abstract_with, restore_leaves
from bigjax.run.checkpoint.manager import Checkpoints, Origin

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Origin",
    "abstract_with",
    "has_checkpoints",
    "newest_manifest",
    "restore_leaves",
]
