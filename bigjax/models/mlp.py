"""Multi-layer perceptron: any widths, activation, dropout and BatchNorm.

Parameters: dense_0, dense_1, ..., head (and norm_0, ... with BatchNorm).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from bigjax.core.layout import batch_axes
from bigjax.models.common import activation, kernel_init
from bigjax.models.units import UNITS, Units, layer


class MLP(nn.Module):
    """Hidden layer: dense -> (BatchNorm) -> activation -> dropout. Then a linear head.

    widths: size of each hidden layer; () is a linear model.
    dropout: probability that a hidden unit is dropped in training (Srivastava et al. 2014).
    batch_norm: Ioffe & Szegedy 2015; the statistics are those of the global batch.
    """

    widths: Sequence[int]
    outputs: int
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    # Layers in pairs, outputs split then inputs (Shoeybi et al. 2019, section 3).
    TENSOR_RULES = (
        (r"dense_\d*[02468]/kernel", (None, "tensor")),
        (r"(dense|norm)_\d*[02468]/(bias|scale)", ("tensor",)),
        (r"(dense_\d+|head)/kernel", ("tensor",)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, ...), flattened to (B, F); returns logits (B, outputs)."""
        act, init = activation(self.activation), kernel_init(self.activation)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = nn.Dense(
                width,
                use_bias=not self.batch_norm,
                kernel_init=init,
                name=f"dense_{i}",
            )(x)
            if self.batch_norm:
                norm = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=0.9,
                    epsilon=1e-5,
                    axis_name=batch_axes(),
                    name=f"norm_{i}",
                )
                x = norm(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(act(x))
        return nn.Dense(self.outputs, name="head")(x)

    def prunable(self) -> dict[str, list[Units]]:
        """The hidden units of each layer."""
        names = [*(f"dense_{i}" for i in range(len(self.widths))), "head"]
        return {
            UNITS: [
                layer(names[i], f"norm_{i}", width, ("widths", i), names[i + 1])
                for i, width in enumerate(self.widths)
            ]
        }
