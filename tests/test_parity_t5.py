"""T5 against transformers: the same weights give the same numbers, in both directions."""

import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.models.t5 import distance_bucket
from bigjax.pretrained.families import open_family
from tests import parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=50,
    d_model=32,
    d_kv=12,  # four heads of 12 are wider than the model
    d_ff=48,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=10,
    decoder_start_token_id=0,
)
SOURCE_SEGMENTS = (np.arange(13) < np.array([[13], [6], [2]])).astype(np.int32)
TARGET_SEGMENTS = (np.arange(14) < np.array([[14], [5], [9]])).astype(np.int32)


def reference(**options):
    """A small random model of transformers, and sources and targets of different length."""
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES, **options)
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not options.get("tie_word_embeddings", True):
        model.lm_head.weight = torch.nn.Parameter(torch.randn(50, 32))
    rng = np.random.default_rng(0)
    source, target = (
        (rng.integers(2, 50, s.shape) * s).astype(np.int32)
        for s in (SOURCE_SEGMENTS, TARGET_SEGMENTS)
    )
    return model, (source, SOURCE_SEGMENTS, target, TARGET_SEGMENTS)


def torch_logits(model, source, source_segments, target, target_segments):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(source_segments),
            decoder_input_ids=torch.tensor(target),
            decoder_attention_mask=torch.tensor(target_segments),
        ).logits.numpy()


def assert_equal(ours, theirs):
    real = TARGET_SEGMENTS > 0
    scale = np.abs(theirs[real]).max()
    np.testing.assert_allclose(np.asarray(ours)[real] / scale, theirs[real] / scale, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(feed_forward_proj="relu"),
        dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ],
    ids=["t5", "t5-1.1"],
)
def test_published_weights_give_the_published_numbers_and_go_back(options, tmp_path):
    theirs, inputs = reference(**options)
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables, values = parity.load(tmp_path / "theirs", "t5", inputs)
    expected = torch_logits(theirs, *inputs)
    assert_equal(jax.jit(lambda v: model.apply(v, *inputs, train=False))(variables), expected)

    folder = parity.export(variables, values, "t5", tmp_path / "ours")
    back, info = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values())
    assert_equal(torch_logits(back.eval(), *inputs), expected)


@pytest.mark.parametrize("both", [True, False])
def test_every_distance_has_the_published_bucket(both):
    attention = transformers.models.t5.modeling_t5.T5Attention
    distance = np.arange(-600, 601)
    for buckets, most in ((32, 128), (8, 10), (32, 100)):
        expected = attention._relative_position_bucket(torch.tensor(distance), both, buckets, most)
        ours = distance_bucket(distance, both, buckets, most)
        np.testing.assert_array_equal(ours, expected.numpy())


def test_an_activation_that_is_said_otherwise_the_second_time_is_refused():
    values = open_family("t5").model_values
    published = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu").to_dict()
    assert values(published)["gated"]
    with pytest.raises(UserError, match="dense_act_fn 'silu' is not known; 'gelu_new' is"):
        values(published | dict(dense_act_fn="silu"))
