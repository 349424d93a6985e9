"""CLIP and SigLIP against transformers: embeddings and logits, both ways; the losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.pretrained.families import family_of_model, family_of_source, open_family
from bigjax.tasks.image_text import ImageText
from tests import parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGES = np.random.default_rng(0).standard_normal((3, 12, 12, 3)).astype(np.float32)
LENGTHS = np.array([9, 7, 4])
SEGMENTS = (np.arange(9) < LENGTHS[:, None]).astype(np.int32)
END = 29
TOKENS = np.where(SEGMENTS, np.random.default_rng(1).integers(2, END, SEGMENTS.shape), 1)
TOKENS[np.arange(3), LENGTHS - 1] = END  # every text ends with it
TOKENS = TOKENS.astype(np.int32)
TEXT = dict(
    vocab_size=30,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=9,
    initializer_range=0.3,
)
IMAGE = dict(
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=1,
    num_attention_heads=3,
    image_size=12,
    patch_size=4,
    initializer_range=0.3,
)


def reference(family):
    """A small random model, and what it is called with."""
    torch.manual_seed(0)
    if family == "clip":
        text = dict(TEXT, eos_token_id=END, bos_token_id=0, pad_token_id=1)
        text |= dict(hidden_act="gelu", projection_dim=10)
        image = dict(IMAGE, hidden_act="gelu", projection_dim=10)
        config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=10)
        model = transformers.CLIPModel(config)
    else:  # a SigLIP reads padding too, and is told of none
        text = dict(TEXT, projection_size=24, pad_token_id=1, bos_token_id=0, eos_token_id=END)
        config = transformers.SiglipConfig(text_config=text, vision_config=IMAGE)
        model = transformers.SiglipModel(config)
        model.logit_bias.data.fill_(-3.0)
    model.logit_scale.data.fill_(1.3)
    return parity.randomized(model).eval()


def answers(model, family):
    images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    given = dict(input_ids=torch.tensor(TOKENS).long(), pixel_values=images)
    if family == "clip":
        given["attention_mask"] = torch.tensor(SEGMENTS)
    with torch.no_grad():
        found = model(**given)
    return dict(image=found.image_embeds, text=found.text_embeds, logits=found.logits_per_image)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_published_towers_give_the_published_numbers_and_go_back(family, tmp_path):
    theirs = reference(family)
    theirs.save_pretrained(tmp_path / "theirs")
    assert family_of_source(str(tmp_path / "theirs")) == family
    inputs = (IMAGES, TOKENS, SEGMENTS)
    model, variables, values = parity.load(tmp_path / "theirs", family, inputs)
    ours = jax.jit(lambda v: model.apply(v, *inputs, train=False))(variables)
    expected = answers(theirs, family)
    for name, numbers in expected.items():
        np.testing.assert_allclose(ours[name], numbers, atol=1e-5, rtol=1e-5, err_msg=name)

    assert family_of_model(values) == family
    folder = parity.export(variables, values, family, tmp_path / "ours")
    back, info = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    for name, numbers in answers(back.eval(), family).items():
        np.testing.assert_allclose(numbers, expected[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", ["clip", "siglip"])
def test_every_parameter_names_every_axis(form):
    values = open_family(form).model_values({})
    small = dict(image=8, patch=4, vocab=11, context=9, embedding=8, image_width=8, text_width=8)
    small |= dict(image_heads=2, text_heads=2, image_layers=1, text_layers=1)
    model = parity.build({"type": "two_towers", **values, **small})
    inputs = (IMAGES[:, :8, :8], TOKENS)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))["params"]
    parity.assert_named(model, boxed)


def test_what_the_table_cannot_say_is_refused_by_name():
    clip, siglip = open_family("clip"), open_family("siglip")
    with pytest.raises(UserError, match="the towers' activation differ, 'relu' and 'quick_gelu'"):
        clip.model_values(dict(vision_config=dict(hidden_act="relu")))
    with pytest.raises(UserError, match="vision_use_head False is not known; True is"):
        siglip.model_values(dict(vision_config=dict(vision_use_head=False)))
    values = clip.model_values({})  # as OpenAI's first: nothing said is as usual
    assert (values["vocab"], values["image_width"], values["embedding"]) == (49408, 768, 512)
    with pytest.raises(UserError, match=r"'siglip' cannot say model\.form 'clip'"):
        siglip.published_config(values)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_losses_are_those_of_the_equations(kind):
    logits = np.random.default_rng(2).normal(size=(4, 4))
    mask = np.array([1, 1, 0, 1.0])  # the third pair is padding, whatever it holds
    padded = logits.copy()
    padded[2], padded[:, 2] = np.nan, np.nan
    outputs = {"logits": jnp.asarray(padded, jnp.float32)}
    (total, count), shown = ImageText(kind=kind).loss(outputs, {"mask": jnp.asarray(mask)})
    x = logits[np.ix_(mask > 0, mask > 0)]
    own = np.arange(3)
    if kind == "softmax":
        rows = np.log(np.exp(x).sum(1)) - x[own, own]
        columns = np.log(np.exp(x).sum(0)) - x[own, own]
        expected = (rows.sum() + columns.sum()) / 2
    else:
        expected = np.log1p(np.exp(-np.where(np.eye(3), 1, -1) * x)).sum()
    assert total == pytest.approx(expected, rel=1e-6) and count == 3
    assert shown["accuracy"][0] == (x.argmax(1) == own).sum()
    assert shown["text_accuracy"][0] == (x.argmax(0) == own).sum()
