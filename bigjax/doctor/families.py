"""Every model family, tiny: its gradient against float64, and one step on all devices against one.

A new family is one line in FAMILIES; a test fails while it is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax.core import settings
from bigjax.config.names import NAMES
from bigjax.config.signature import resolve_name
from bigjax.doctor.finding import Finding
from bigjax.mesh import sharding
from bigjax.mesh.placement import logical_names, place, vocabulary
