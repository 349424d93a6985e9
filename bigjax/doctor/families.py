"""Every model family, tiny: its gradient against float64, and split over all devices against one.

A new family is one line in FAMILIES; a test fails while it is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigjax.config.config import target_of
from bigjax.core import settings
from bigjax.core.rules import paths
from bigjax.doctor.finding import Finding
from bigjax.mesh import sharding
from bigjax.mesh.placement import logical_names, place, vocabulary

GRADIENT_TOLERANCE = 1e-3  # of the whole gradient's norm, float32 against float64
SPLIT_TOLERANCE = 1e-4  # of the whole gradient's norm, the same float32 sums in another order

BATCH = 8
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 16, (BATCH, 8)).astype(np.int32)
ROWS = RNG.standard_normal((BATCH, 12)).astype(np.float32)
IMAGES = RNG.standard_normal((BATCH, 32, 32, 3)).astype(np.float32)
ONES = np.ones_like(TOKENS)
SMALL = dict(layers=1, width=16, heads=4)
# family -> (keywords, inputs)
FAMILIES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "mlp": (dict(widths=(16, 8), outputs=4), (ROWS,)),
    "cnn": (dict(channels=(8,), outputs=4), (IMAGES[:, :8, :8],)),
    "rnn": (dict(widths=(16,), outputs=4), (IMAGES[:, :6, 0],)),
    "gpt2": (dict(vocab=16, context=8, **SMALL), (TOKENS,)),
    "llama": (dict(vocab=16, context=8, kv_heads=2, mlp_width=32, **SMALL), (TOKENS,)),
    "bert": (dict(vocab=16, context=8, head="mlm", **SMALL), (TOKENS, ONES)),
    "t5": (dict(vocab=16, **SMALL), (TOKENS, ONES, TOKENS, ONES)),
    "whisper": (dict(vocab=16, context=8, mel=3, frames=4, **SMALL), (IMAGES[:, :8, 0], None, TOKENS, ONES)),
    "vit": (dict(outputs=4, image=8, patch=4, **SMALL), (IMAGES[:, :8, :8],)),
    "two_towers": (
        dict(image=8, patch=4, image_layers=1, image_width=16, image_heads=4, vocab=16, context=8,
             text_layers=1, text_width=16, text_heads=4, embedding=8), (IMAGES[:, :8, :8], TOKENS),
    ),
    "resnet": (dict(outputs=4, layers=(1, 1), width=8, stem="small"), (IMAGES[:, :8, :8],)),
    "vgg": (dict(outputs=4, layers=(1, 1), width=8, pooled=1, dense=(8,), dropout=0.0), (IMAGES[:, :8, :8],)),
    "mobilenet_v2": (dict(outputs=4, width=0.1, dropout=0.0), (IMAGES,)),
    "efficientnet": (dict(outputs=4, width=0.1, depth=0.1, dropout=0.0), (IMAGES,)),
    "efficientnet_lite": (dict(outputs=4, width=0.1, depth=0.1, dropout=0.0), (IMAGES,)),
    "dit": (dict(image=8, patch=4, classes=4, **SMALL), (IMAGES[:, :8, :8], ROWS[:, 0] % 1, TOKENS[:, 0] % 4)),
    "actor_critic": (dict(widths=(16, 8), actions=4), (ROWS,)),
}  # fmt: skip
OP_BY_OP = ("rnn",)  # Flax's cells keep a float32 carry: the reference is float32, nothing fused
# For the reference, which runs once: compiled in two thirds of the time, and by fewer passes.
UNOPTIMIZED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SPLIT = ("mlp", "rnn", "gpt2")  # the families whose step is split, over each axis and over several


class Tiny:
    """A family's model with its variables and the gradient of a fixed weighing of its outputs."""

    def __init__(self, name: str):
        keywords, self.inputs = FAMILIES[name]
        self.model = target_of("model", name, "doctor")(**keywords)
        init = functools.partial(self.model.init, train=False)
        self.boxed = jax.eval_shape(init, jax.random.key(0), *self.inputs)
        rng = np.random.default_rng(1)
        # Nothing need be compiled for them: any weights do, and any variances above 0.
        self.variables = {
            collection: jax.tree.map(
                lambda leaf: np.float32(
                    0.2 * rng.standard_normal(leaf.shape)
                    if collection == "params"  # noqa: B023
                    else rng.uniform(0.5, 1.5, leaf.shape)
                ),
                tree,
            )
            for collection, tree in nn.unbox(self.boxed).items()
        }

    def gradient(self, params: Any, *inputs: Any) -> Any:
        def weighed(params: Any) -> jax.Array:
            outputs = self.model.apply({**self.variables, "params": params}, *inputs, train=False)

            def weighed_sum(x: jax.Array) -> jax.Array:
                return jnp.sum(x * np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype))

            return sum(map(weighed_sum, jax.tree.leaves(outputs)))

        return jax.grad(weighed)(params)


def gradients() -> Iterator[Finding]:
    """The compiled float32 gradient of every family against the one in float64."""
    with ThreadPoolExecutor(2) as pool:  # it is compiling that takes the time
        yield from pool.map(check_gradient, FAMILIES)


def check_gradient(name: str) -> Finding:
    """One family's gradient, evaluated as in inference: batch norm by its running statistics."""
    tiny = Tiny(name)
    with jax.default_matmul_precision("highest"):
        ours = jax.device_get(jax.jit(tiny.gradient)(tiny.variables["params"], *tiny.inputs))
    on_cpu = jax.default_device(jax.local_devices(backend="cpu")[0])  # it has float64
    if name in OP_BY_OP:
        with on_cpu, jax.disable_jit():
            right = jax.device_get(tiny.gradient(tiny.variables["params"], *tiny.inputs))
        return _compared(
            f"gradient of {name}", ours, right, GRADIENT_TOLERANCE, "the same op by op"
        )
    with on_cpu, jax.enable_x64(True):
        params, inputs = jax.tree.map(_wide, (tiny.variables["params"], tiny.inputs))
        reference = jax.jit(tiny.gradient, compiler_options=UNOPTIMIZED)
        right = jax.device_get(reference(params, *inputs))
    return _compared(f"gradient of {name}", ours, right, GRADIENT_TOLERANCE, "float64")


def split_steps() -> Iterator[Finding]:
    """The gradient over every sensible mesh of the devices that are there, against one device."""
    count = len(jax.devices())
    if count == 1:
        yield Finding("splitting", "ok", "one device: there is nothing to split over")
        return
    meshes: list[dict[str, int]] = [{"data": count}, {"fsdp": count}, {"tensor": count}]
    if count % 4 == 0:
        meshes += [{"fsdp": count // 2, "tensor": 2}]
    if count % 8 == 0:
        meshes += [{"data": count // 4, "fsdp": 2, "tensor": 2}]
    for name in SPLIT:
        tiny = Tiny(name)
        alone = _split_gradient(tiny, {"data": 1}, jax.devices()[:1])
        for sizes in meshes:
            first = _split_gradient(tiny, sizes, jax.devices())
            words = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
            yield _compared(f"{name} over {words}", first, alone, SPLIT_TOLERANCE, "one device")


def determinism() -> Iterator[Finding]:
    """Whether the same compiled gradient is the same, bit for bit, when it is computed again."""
    tiny = Tiny("gpt2")
    sizes = {"data": len(jax.devices())}
    runs = [_split_gradient(tiny, sizes, jax.devices()) for _ in range(3)]
    same = all(
        np.array_equal(first, leaf)
        for again in runs[1:]
        for first, leaf in zip(jax.tree.leaves(runs[0]), jax.tree.leaves(again), strict=True)
    )
    yield Finding(
        "same bits again",
        "ok" if same else "wrong",
        "three runs of a gradient are equal" if same else "a gradient differs from run to run",
        "" if same else "on a GPU: XLA_FLAGS=--xla_gpu_deterministic_ops=true",
    )


def _split_gradient(tiny: Tiny, sizes: dict[str, int], devices: list[jax.Device]) -> Any:
    mesh: Mesh = sharding.make_mesh(settings.Mesh(**{"data": 1, **sizes}), devices)
    options = settings.Sharding(rules=((".*", "tensor + fsdp"),))
    words, params = vocabulary(tiny.model, options), tiny.variables["params"]
    placed = place(options.rules, params, mesh, logical_names(tiny.boxed["params"]), words)
    layout = sharding.layout(placed, params, mesh)
    gathered = sharding.gathering(mesh, placed)
    gradient = sharding.activations(mesh, words, options)(
        lambda p, *x: tiny.gradient(gathered(p), *x)
    )
    rows = sharding.batch_sharding(mesh)
    with jax.default_matmul_precision("highest"):
        step = jax.jit(
            gradient, in_shardings=(layout, *(rows for _ in tiny.inputs)), out_shardings=layout
        )
        return jax.device_get(step(params, *tiny.inputs))


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype == np.float32 else x


def _compared(check: str, ours: Any, right: Any, tolerance: float, than: str) -> Finding:
    right, ours = paths(right), paths(ours)
    whole = np.sqrt(sum(np.sum(np.square(np.float64(leaf))) for leaf in right.values()))
    errors = {path: np.linalg.norm(np.float64(ours[path]) - leaf) for path, leaf in right.items()}
    worst = max(errors, key=errors.get)
    error = errors[worst] / whole
    if error <= tolerance:
        return Finding(check, "ok", f"error {error:.0e}")
    return Finding(
        check, "wrong", f"{worst} is off by {error:.1e} of the gradient's norm, {than} says",
        "take another jaxlib, or devices that the table does not find wrong",
    )  # fmt: skip
