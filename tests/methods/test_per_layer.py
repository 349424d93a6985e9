"""Adapters and a base in few bits over stacked layers: made in the loop, one layer at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bigjax.build.parts import abstract_batch
from bigjax.build.program import build_program
from bigjax.config.resolve import resolve
from bigjax.core.adapt import Adaptation, PerLayer
from bigjax.core.precision import ModelInPrecision
from bigjax.core.rules import paths
from bigjax.core.settings import Precision
from bigjax.core.steps import activations_alone
from bigjax.data.sources import Arrays
from bigjax.methods.lora import DoRA, LoRA
from bigjax.methods.quantized import Quantize
from bigjax.models.gpt2 import GPT2
from bigjax.plan.sharding_report import lowered_step
from tests.small import small_config

NF4 = Quantize(rules=((".*kernel", "nf4"), (".*", None)), group=8)
TOKENS = np.arange(16, dtype=np.int32).reshape(2, 8) % 13


def adapted(parts, policy="float32", layers=2, width=16):
    """Of a model of stacked blocks: (its parameters as the model sees them, loss, make), the first two
    functions of (trained leaves, base), which make(looped) gives."""
    module = GPT2(13, layers, width, 2, 8, scan_layers=True, remat="full")
    model = ModelInPrecision(module, Precision(policy=policy))
    init = functools.partial(module.init, train=False)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), TOKENS))["params"]

    def make():
        keys = iter(jax.random.split(jax.random.key(1), 99))
        params = jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), shapes)
        trained, base = Adaptation(parts).begin(next(keys), params)
        return jax.tree.map(lambda x: x + 0.03, trained), base

    def adaptation(looped):
        return Adaptation(parts, frozenset(["blocks"] * looped), remat=True)

    def seen(looped, trained, base):
        frozen = {"base": base}
        return adaptation(looped).params(trained, frozen, 0, by_layer=True)

    def loss(looped, trained, base):
        def of(trained):
            logits = model.apply({"params": seen(looped, trained, base)}, TOKENS, train=False)
            return jnp.sum(jax.nn.log_softmax(logits)[..., 0])

        again = adaptation(looped).recomputed  # as `core.steps` has it
        return (jax.checkpoint(of, policy=activations_alone) if again else of)(trained)

    return seen, loss, make


def test_layers_made_in_the_loop_are_those_made_at_once():
    seen, loss, make = adapted((NF4, DoRA(rank=2)))
    trained, base = jax.jit(make)()

    def kernels(looped):
        leaves = paths(jax.eval_shape(functools.partial(seen, looped), trained, base))
        return {p: x for p, x in leaves.items() if p.startswith("blocks/") and "kernel" in p}

    assert all(isinstance(leaf, PerLayer) for leaf in kernels(True).values())
    assert kernels(True).keys() == kernels(False).keys() and len(kernels(True)) == 6
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, looped)))(trained, base)
        for looped in (True, False)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, found, expected)
    assert all(jnp.any(leaf != 0) for path, leaf in paths(found[1]).items() if "blocks" in path)


def test_memory_grows_with_depth_by_codes_and_activations_not_by_full_numbers():
    def temporaries(layers):
        _, loss, make = adapted((NF4, LoRA(rank=2)), "bfloat16", layers, width=64)
        grad = jax.jit(jax.grad(functools.partial(loss, True)))
        return grad.lower(*jax.eval_shape(make)).compile().memory_analysis().temp_size_in_bytes

    numbers = 8 * 12 * 64 * 64  # of the kernels of eight blocks
    # Made at once they take 10 bytes a number: float32, bfloat16 and their gradients.
    assert temporaries(12) - temporaries(4) < numbers


class OwnLoop(nn.Module):
    """A user's model: stacked layers under the usual name, in a loop of its own."""

    scan_layers: bool = True

    @nn.compact
    def __call__(self, x, train):
        loop = nn.scan(
            lambda block, x: (jnp.tanh(block(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = loop(nn.Dense(64, name="blocks"), x)
        return nn.Dense(10, name="head")(x)


def test_a_loop_of_a_users_own_is_given_its_leaves_as_they_are():
    nf4 = dict(type="quantize", rules=((".*kernel", "nf4"), (".*", None)), group=16)
    source = Arrays({"image": np.zeros((40, 64), np.float32), "label": np.zeros(40, np.int32)})

    def step(**fields):
        model = dict(type="tests.methods.test_per_layer:OwnLoop", **fields)
        adapters = (nf4, dict(type="lora", rank=2))
        config = resolve(small_config(model=model, adapt=adapters, mesh=dict(data=8)))
        program = build_program(config, source)
        return lowered_step(program, abstract_batch(program.mesh, source.features, 40)).as_text()

    assert step() == step(scan_layers=False)
