"""A model's own FLOPs: PaLM's formula, by hand; and a figure that fails costs no run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bigjax.models.bert import BERT
from bigjax.models.gpt2 import GPT2
from bigjax.models.llama import Llama
from bigjax.models.t5 import T5
from bigjax.models.transformer import flops_by_formula
from bigjax.models.vit import ViT
from bigjax.plan import flops
from bigjax.tasks.contrastive import Contrastive

SIZES = dict(vocab=40, layers=2, width=8, heads=2)
TOKENS = np.ones((3, 5), np.int32)
SEEN = 3 * 5


def counted(model, *inputs):
    """The model's figures, and how many parameters are under each top-level name."""
    make = lambda: nn.unbox(model.init(jax.random.key(0), *inputs, train=False))  # noqa: E731
    params = jax.eval_shape(make)["params"]
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    return model.flops(params, *inputs), sizes


def test_the_formula_is_that_of_palm():
    # One layer, N = 1000 parameters, D = 10, T = 5, 2 rows: 6,000 a token, and attention's 12 * 50.
    found = flops_by_formula([(1000, 10)], 10 * 2 * 5 * 5, causal=True)
    assert found == {"6N + 12LDT": 10 * 6600.0, "6N + 6LDT, causal": 10 * 6300.0}


def test_gpt2_multiplies_by_its_embedding_and_not_by_its_positions():
    found, sizes = counted(GPT2(**SIZES, context=9), TOKENS)
    n = sum(sizes.values()) - sizes["positions"]
    assert found["6N + 12LDT"] == SEEN * (6 * n + 12 * 2 * 8 * 5)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_looks_up_an_embedding_that_is_not_tied_and_sees_windows(tied):
    model = Llama(
        **SIZES,
        kv_heads=1,
        mlp_width=12,
        context=9,
        tied=tied,
        layer_kinds=("local", "full"),
        window=2,
    )
    found, sizes = counted(model, TOKENS)
    n = sum(sizes.values()) - (0 if tied else 40 * 8)
    assert found["6N + 12LDT"] == SEEN * (6 * n + 12 * 8 * (2 + 5))
    assert found["6N + 6LDT, causal"] == SEEN * (6 * n + 6 * 8 * (2 + 5))


BODY = ("embedding_norm", "block_0", "block_1")
MLM = ("mlm_dense", "mlm_norm", "mlm_bias", "embedding")


@pytest.mark.parametrize(
    ("head", "last", "times"),
    [
        (dict(head="none"), (), 0),
        (dict(head="mlm"), MLM, SEEN),
        (dict(head="mlm", places=2), MLM, 3 * 2),
        (dict(head="tokens", outputs=4), ("head",), SEEN),
        (dict(head="sequence", outputs=4), ("pooler", "head"), 3),
    ],
    ids=str,
)
def test_berts_head_multiplies_where_it_is_asked(head, last, times):
    places = head.pop("places", None)
    inputs = (TOKENS, TOKENS, None, None if places is None else np.zeros((3, places), np.int32))
    found, sizes = counted(BERT(**SIZES, **head), *inputs)
    body, of_head = (sum(sizes[name] for name in names) for names in (BODY, last))
    assert found == {"6N + 12LDT": 6 * (body * SEEN + of_head * times) + 12 * 2 * 8 * 5 * SEEN}


def test_t5_reads_each_text_with_its_own_half():
    target = np.ones((3, 4), np.int32)
    found, sizes = counted(T5(**SIZES), TOKENS, TOKENS, target, target)
    table = 32 * 2  # distances, looked up
    products = (sizes["encoder"] - table) * 15 + (sizes["decoder"] - table + 40 * 8) * 12
    attended = 3 * 8 * (2 * 25 + 2 * (16 + 20))
    assert found == {"6N + 12LDT": 6 * products + 12 * attended}


def test_a_vits_head_reads_one_token():
    found, sizes = counted(ViT(5, 8, 4, 2, 8, 2), np.ones((3, 8, 8, 3), np.float32))
    head, body = sizes["head"], sum(sizes.values()) - sizes["head"] - sizes["positions"]
    assert found == {"6N + 12LDT": 6 * (body * 3 * 5 + head * 3) + 12 * 2 * 8 * 5 * 15}


def test_contrastive_pairs_are_two_rows_each():
    batch = {k: jnp.asarray(TOKENS) for k in ("a", "b", "a_segments", "b_segments")}
    inputs = jax.eval_shape(Contrastive().inputs, batch)
    model = BERT(**SIZES, head="embedding")
    pairs, _ = counted(model, *(np.ones(x.shape, x.dtype) for x in inputs))
    rows, _ = counted(model, TOKENS, TOKENS)
    assert pairs["6N + 12LDT"] == 2 * rows["6N + 12LDT"]


def test_a_figure_that_fails_is_missing_and_said(caplog):
    def formula(batch):
        raise TypeError("heads of a tree")

    step = jax.jit(lambda state, batch: state @ batch)
    square = jnp.ones((4, 4))
    found = flops.of_step(step, formula, square, square)
    assert found == {flops.COUNTED: 2 * 4**3}
    assert "no FLOPs: TypeError: heads of a tree" in caplog.text
    assert flops.of_step(None, formula, square, square) == {}  # neither can be had
