"""BERT and its kin against transformers: the same weights give the same numbers, in both directions."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.data.sources import default_data_dir
from bigjax.pretrained.families import open_family
from tests import parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=24,
    initializer_range=0.3,  # so that every part shows in the output
)
LENGTHS = np.array([12, 7, 4])
SEGMENTS = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)
MODELS = [
    ("bert", "Model"),
    ("bert", "ForMaskedLM"),
    ("bert", "ForSequenceClassification"),
    ("bert", "ForTokenClassification"),
    ("roberta", "Model"),
    ("roberta", "ForMaskedLM"),
    ("roberta", "ForSequenceClassification"),
    ("roberta", "ForTokenClassification"),
    ("distilbert", "Model"),
    ("distilbert", "ForMaskedLM"),
    ("distilbert", "ForSequenceClassification"),
    ("distilbert", "ForTokenClassification"),
    ("electra", "Model"),
    ("electra", "ForMaskedLM"),
    ("electra", "ForSequenceClassification"),
    ("electra", "ForTokenClassification"),
    ("albert", "Model"),
    ("albert", "ForMaskedLM"),
    ("albert", "ForSequenceClassification"),
    ("albert", "ForTokenClassification"),
    ("modernbert", "Model"),
    ("modernbert", "ForMaskedLM"),
    ("modernbert", "ForSequenceClassification"),
    ("modernbert", "ForTokenClassification"),
]
SLOW = [  # parts of the others
    (family, name)
    for family in ("electra", "albert", "modernbert")
    for name in ("Model", "ForTokenClassification")
]
# DistilBERT's own names for the sizes.
DISTILBERT = dict(
    hidden_size="dim",
    num_hidden_layers="n_layers",
    num_attention_heads="n_heads",
    intermediate_size="hidden_dim",
)
# What is not as usual: other activations, another padding token.
CHANGED = {
    ("bert", "ForMaskedLM"): dict(hidden_act="relu"),
    ("bert", "ForSequenceClassification"): dict(hidden_act="gelu_new"),
    ("roberta", "ForMaskedLM"): dict(pad_token_id=5),
    ("distilbert", "ForMaskedLM"): dict(activation="relu"),
    ("electra", "ForMaskedLM"): dict(embedding_size=20),
    ("electra", "ForTokenClassification"): dict(embedding_size=20),
    ("electra", "ForSequenceClassification"): dict(embedding_size=32),
    ("albert", "ForMaskedLM"): dict(embedding_size=20, num_hidden_layers=3),
    ("albert", "ForSequenceClassification"): dict(embedding_size=32, hidden_act="relu"),
    # Layers full, local, local, full: a window of 5 tokens in texts of up to 12.
    ("modernbert", "ForMaskedLM"): dict(num_hidden_layers=4, local_attention=4),
    ("modernbert", "ForSequenceClassification"): dict(
        global_attn_every_n_layers=2,
        local_attention=2,
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
        classifier_bias=True,
        classifier_activation="relu",
        classifier_pooling="mean",
    ),
}
NO_POOLER = dict(unused=(r"pooler\..*",))


def reference(family, name):
    """A small random model of transformers, its tokens (padded) and their types."""
    torch.manual_seed(0)
    kinds = dict(distilbert="DistilBert", modernbert="ModernBert")
    kind = kinds.get(family, family.title())
    padding, types = {"roberta": (1, 1), "distilbert": (0, 0), "modernbert": (0, 0)}.get(
        family, (0, 2)
    )
    renamed = DISTILBERT if family == "distilbert" else {}
    sizes = {renamed.get(key, key): value for key, value in SIZES.items()}
    options = dict(sizes, pad_token_id=padding, num_labels=3) | CHANGED.get((family, name), {})
    if types:
        options |= dict(type_vocab_size=types)
    config = getattr(transformers, f"{kind}Config")(**options)
    options = no_pooler(family, name)
    padding = config.pad_token_id
    model = parity.randomized(getattr(transformers, f"{kind}{name}")(config, **options)).eval()
    rng = np.random.default_rng(0)
    tokens = np.where(SEGMENTS, rng.integers(6, 50, SEGMENTS.shape), padding).astype(np.int32)
    kinds = rng.integers(0, types, SEGMENTS.shape).astype(np.int32) if types else None
    return model, (tokens, SEGMENTS, kinds)


def no_pooler(family, name):
    pooled = name == "Model" and family in ("bert", "roberta", "albert")
    return dict(add_pooling_layer=False) if pooled else {}


def torch_output(model, tokens, segments, types):
    names = ("input_ids", "attention_mask", "token_type_ids")
    given = dict(zip(names, (tokens, segments, types), strict=True))
    given = {k: torch.tensor(np.array(x)).long() for k, x in given.items() if x is not None}
    with torch.no_grad():
        return model(**given)[0].numpy()


def our_output(model, variables, inputs):
    return jax.jit(lambda v: model.apply(v, *inputs, train=False))(variables)


def assert_equal(ours, theirs, segments):
    """At every real token, or for the whole text where there is one row of numbers for it."""
    ours, real = np.asarray(ours), segments > 0
    if ours.ndim == 3:
        ours, theirs = ours[real], theirs[real]
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one in SLOW)) for one in MODELS],
)
def test_published_weights_give_the_published_numbers_and_go_back(family, name, tmp_path):
    theirs, inputs = reference(family, name)
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables, values = parity.load(tmp_path / "theirs", family, inputs)
    expected = torch_output(theirs, *inputs)
    assert_equal(our_output(model, variables, inputs), expected, SEGMENTS)

    folder = parity.export(variables, values, family, tmp_path / "ours")
    options = no_pooler(family, name)
    back, info = type(theirs).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values())
    assert_equal(torch_output(back.eval(), *inputs), expected, SEGMENTS)


def refused(family, match, config=None, **model):
    """A config.json, or an export of a model, that is refused in one line."""
    layout = open_family(family)
    usual = getattr(transformers, f"{layout.kind}Config")(**SIZES).to_dict()
    with pytest.raises(UserError, match=match):
        values = layout.model_values(usual | (config or {}))
        layout.published_config(
            dict(values, mlp_width=48, dropout=0.0, first_position=None) | model
        )


def test_what_no_row_of_the_table_says_is_refused_by_name():
    refused("albert", "num_hidden_groups 2 is not known; 1 is", dict(num_hidden_groups=2))
    refused("albert", "cannot say model.shared False", shared=False)
    refused("bert", "'bert' cannot say model.gated True", gated=True)
    refused("bert", r"cannot say model.biases \(\)", biases=())
    refused("modernbert", "decoder_bias False is not known", dict(decoder_bias=False))
    refused("modernbert", r"cannot say model.biases \('qkv',\)", biases=("qkv",))
    scaled = dict(full_attention=dict(rope_type="yarn", rope_theta=1e4, factor=2.0))
    refused("modernbert", "rope_type 'yarn' of a ModernBERT", dict(rope_parameters=scaled))
    refused("modernbert", "full layers at equal distances", layer_kinds=("local", "full"))


def test_modernbert_is_read_in_the_spellings_of_transformers_4_and_5():
    newer = transformers.ModernBertConfig(**SIZES, global_attn_every_n_layers=2).to_dict()
    theta = {kind: own["rope_theta"] for kind, own in newer["rope_parameters"].items()}
    older = {key: newer[key] for key in newer if key not in ("layer_types", "rope_parameters")}
    older |= dict(global_attn_every_n_layers=2, global_rope_theta=theta["full_attention"])
    older |= dict(local_rope_theta=theta["sliding_attention"])
    layout = open_family("modernbert")
    values = layout.model_values(older)
    assert values == layout.model_values(newer)
    assert values["layer_kinds"] == ("full", "local") and values["window"] == 65
    assert (values["rope_theta"], values["local_rope_theta"]) == (160000.0, 10000.0)


def test_layers_in_one_loop_read_the_same_weights(tmp_path):
    theirs, inputs = reference("bert", "ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    model, variables, _ = parity.load(tmp_path, "bert", inputs, scan_layers=True)
    ours = our_output(model, variables, inputs)
    assert_equal(ours, torch_output(theirs, *inputs), SEGMENTS)


def test_sentence_embedding_is_the_mean_of_real_tokens_at_length_one(tmp_path):
    theirs, inputs = reference("bert", "Model")
    theirs.save_pretrained(tmp_path)
    model, variables, _ = parity.load(tmp_path, "bert", inputs, head="embedding")
    hidden = torch_output(theirs, *inputs).astype(np.float64)
    mean = np.stack([row[:length].mean(0) for row, length in zip(hidden, LENGTHS, strict=True)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    ours = our_output(model, variables, inputs)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


SENTENCES = (
    "A man is playing a guitar.",
    "Someone strums an instrument while the crowd listens, half asleep, in the afternoon heat.",
    "The stock market fell sharply on Monday.",
    "¿Dónde está la biblioteca? 42 naïve façades.",
)


@pytest.mark.slow
def test_minilm_embeds_sentences_as_transformers_does():
    folder = Path(default_data_dir()) / "weights" / "minilm"
    if not folder.exists():
        pytest.skip("no all-MiniLM-L6-v2 here: scripts/fetch_data minilm")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.fspath(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    tokens, segments, types = (
        np.array([getattr(e, name) for e in encoded], np.int32)
        for name in ("ids", "attention_mask", "type_ids")
    )
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    hidden = torch_output(theirs, tokens, segments, types)
    mean = np.stack([h[s > 0].mean(0) for h, s in zip(hidden, segments, strict=True)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    inputs = (tokens, segments, types)
    model, variables, _ = parity.load(folder, "bert", inputs, NO_POOLER, head="embedding")
    ours = our_output(model, variables, inputs)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_window_of_no_neighbours_is_not_the_usual_one():
    sizes = dict(SIZES, norm_eps=1e-5)
    values = open_family("modernbert").model_values
    windows = [values({**sizes, **said})["window"] for said in ({}, dict(local_attention=0))]
    assert windows == [65, 1]
