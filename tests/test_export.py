"""What leaves the house is used as a user of transformers would: `pipeline(...)`, and our own numbers."""

import functools
import json
import os
import stat
import types

import jax
import numpy as np
import pytest
from flax import linen as nn

from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.data.augment import CenterCrop, Resize
from bigjax.data.tokenizers import Tokenizer
from bigjax.data.transforms import Flatten, Normalize
from bigjax.loop.open import open_run
from bigjax.models.generate import Sampling, decode, generate
from bigjax.pretrained.families import family_of_model, family_of_source
from bigjax.pretrained.load import derived_model
from bigjax.pretrained.preprocessor import preprocessor_config
from tests import parity
from tests.small import small_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(vocab=40, layers=1, width=16, heads=2)
PROMPT = np.array([[5, 9, 7, 11]], np.int32)


def made(kind, inputs, **values):
    """(model, variables, its values): numbers large enough that no two logits are near each other."""
    values = configs._complete_section("model", dict(type=kind, **values))
    model = parity.build(values)
    init = jax.jit(lambda: model.init(jax.random.key(1), *inputs, train=False))
    return model, jax.tree.map(lambda x: 4 * x, nn.unbox(init())), values


def words(template=False, **special):
    """A tokenizer whose words are w00 ... w39; special: which ids have a meaning."""
    import tokenizers

    vocab = {f"w{i:02}": i for i in range(40)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w03"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens([f"w{i:02}" for i in special.values()])
    if template:
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A w{special['eos']:02}",
            special_tokens=[(f"w{special['eos']:02}", special["eos"])],
        )
    return Tokenizer(library, {key: f"w{i:02}" for key, i in special.items()})


def source(**parts):
    return types.SimpleNamespace(**parts)


def text(ids):
    return " ".join(f"w{i:02}" for i in ids)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", dict(context=32)),
        ("llama", dict(context=32, kv_heads=1, mlp_width=24)),
        ("llama", dict(context=32, kv_heads=1, mlp_width=24, qk_norm="head", head_width=8)),
    ],
    ids=["gpt2", "llama", "qwen3"],
)
def test_a_decoder_writes_the_same_text_and_stops(kind, more, tmp_path):
    model, variables, values = made(kind, (PROMPT,), **SIZES, **more)

    def write(prompt, sampling):
        wrote = functools.partial(generate, model.apply, sampling=sampling)
        return jax.jit(wrote)(variables, prompt, np.ones_like(prompt))

    ours = np.asarray(write(PROMPT, Sampling(9))["tokens"][0]).tolist()
    end = next(i for i in ours[2:] if i not in ours[:2])  # what it would write: there it must stop
    expected = ours[: ours.index(end)]
    assert len(expected) >= 2
    along = dict(source=source(tokenizer=words(eos=end, bos=1)))
    folder = parity.export(variables, values, family_of_model(values), tmp_path / "out", **along)
    assert family_of_source(str(folder)) == family_of_model(values)

    theirs = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    prompts = [text(PROMPT[0]), text(PROMPT[0][1:])]
    # Of transformers 4.57 the pipeline samples unless it is told not to, whatever the folder says.
    first, second = theirs(
        prompts, max_new_tokens=9, batch_size=2, return_full_text=False, do_sample=False
    )
    assert first[0]["generated_text"].split() == text(expected).split()
    # The shorter prompt is filled up on the left and is as if alone.
    alone = PROMPT[:, 1:]
    ours = write(alone, Sampling(9, stop=(end,)))
    length = int(ours["length"][0])
    assert second[0]["generated_text"].split() == text(ours["tokens"][0][:length]).split()


def test_t5_begins_with_the_start_token_of_its_tokenizer(tmp_path):
    one = np.ones_like(PROMPT)
    read = np.concatenate([PROMPT, [[2]]], axis=1)
    model, variables, values = made("t5", (PROMPT, one, PROMPT, one), **SIZES, positions="relative")

    @jax.jit
    def writing(variables, start):
        seen = np.ones_like(read)
        memory = model.apply(variables, read, seen, train=False, method="encode")

        def step(cache, token_B):
            logits, cache = model.apply(
                {**variables, **cache},
                memory,
                seen,
                token_B[:, None],
                np.ones((1, 1), np.int32),
                train=False,
                cache=8,
                method="decode",
                mutable=["cache"],
            )
            return logits[:, 0], cache

        logits, cache = step({}, start)
        return decode(step, cache, logits, Sampling(7, stop=(2,)), jax.random.key(0))

    def written(start):
        found = writing(variables, np.array([start], np.int32))
        return np.asarray(found["tokens"][0][: int(found["length"][0])]).tolist()

    assert written(1) != written(0)  # or the test says nothing
    along = dict(source=source(tokenizer=words(True, pad=0, bos=1, eos=2)))
    folder = parity.export(variables, values, "t5", tmp_path / "out", **along)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = tokenizer(text(PROMPT[0]), return_tensors="pt")
    assert inputs["input_ids"].tolist() == read.tolist()
    ids = theirs.generate(**inputs, max_new_tokens=7)[0].tolist()
    assert ids[0] == 1
    assert [i for i in ids[1:] if i != 2] == written(1)


@pytest.mark.parametrize("pad", [1, 4])
def test_roberta_counts_positions_from_the_padding_token_on(pad, tmp_path):
    model, variables, values = made("bert", (PROMPT,), **SIZES, roberta=True, context=12, types=1)
    along = dict(source=source(tokenizer=words(pad=pad, eos=2)))
    folder = parity.export(variables, values, "roberta", tmp_path / "out", **along)
    tokens = np.array([[5, 9, 7, 11], [6, 8, pad, pad]], np.int32)
    segments = (tokens != pad).astype(np.int32)
    apply = functools.partial(jax.jit, static_argnames="train")
    expected = apply(model.apply)(variables, tokens, segments, train=False)
    theirs = transformers.RobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        mask = torch.tensor(segments)
        found = theirs(torch.tensor(tokens).long(), attention_mask=mask)[0].numpy()
    real = segments > 0
    np.testing.assert_allclose(found[real], np.asarray(expected)[real], atol=1e-5)
    # And back: the same numbers from the export.
    again, loaded, _ = parity.load(folder, "roberta", (tokens, segments))
    ours = apply(again.apply)(loaded, tokens, segments, train=False)
    np.testing.assert_allclose(np.asarray(ours)[real], np.asarray(expected)[real], atol=1e-5)


def test_a_classifier_gives_its_class_by_name(tmp_path):
    more = dict(context=12, head="sequence", outputs=3)
    model, variables, values = made("bert", (PROMPT,), **SIZES, **more)
    along = dict(source=source(tokenizer=words(pad=0, eos=2), class_names=("cat", "dog", "owl")))
    folder = parity.export(variables, values, "bert", tmp_path / "out", **along)
    (found,) = transformers.pipeline("text-classification", model=str(folder))(text(PROMPT[0]))
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, PROMPT)[0]
    assert found["label"] == ("cat", "dog", "owl")[int(np.argmax(logits))]
    assert found["score"] == pytest.approx(float(np.max(jax.nn.softmax(logits))), abs=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        dict(pooled="tanh"),
        pytest.param(dict(shared=True, embedding_width=12), marks=pytest.mark.slow),
        pytest.param(dict(pooled="relu", types=0), marks=pytest.mark.slow),
    ],
    ids=["bert", "albert", "distilbert"],
)
def test_a_gap_is_filled_with_the_same_words(more, tmp_path):
    values = dict(SIZES, context=12, head="mlm", **more)
    model, variables, values = made("bert", (PROMPT,), **values)
    along = dict(source=source(tokenizer=words(pad=0, eos=2, mask=4)))
    folder = parity.export(variables, values, family_of_model(values), tmp_path / "out", **along)
    tokens = np.array([[5, 4, 7, 11]], np.int32)
    found = transformers.pipeline("fill-mask", model=str(folder), device="cpu")(text(tokens[0]))
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, tokens)
    chances = np.asarray(jax.nn.softmax(logits[0, 1]))
    assert [one["token"] for one in found] == np.argsort(-chances)[: len(found)].tolist()
    assert found[0]["score"] == pytest.approx(float(chances.max()), abs=1e-5)


def test_ends_of_a_text_are_those_of_the_folder_that_the_weights_came_from(tmp_path):
    _, variables, values = made("llama", (PROMPT,), **SIZES, context=16, kv_heads=1, mlp_width=8)
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "config.json").write_text(
        '{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 99}'
    )
    (origin / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_p": 0.9}')

    def ids(name, tokenizer):
        along = dict(source=source(tokenizer=tokenizer), origin=origin)
        folder = parity.export(variables, values, "llama", tmp_path / name, **along)
        said = json.loads((folder / "generation_config.json").read_text())
        config = json.loads((folder / "config.json").read_text())
        assert {key: config[key] for key in said if key in config} == {
            key: said[key] for key in said if key in config
        }
        return said

    none = ids("none", None)  # and an id outside the vocabulary is none of the model's
    assert none == dict(bos_token_id=1, eos_token_id=[2, 7], do_sample=False)
    assert ids("same", words(eos=7))["eos_token_id"] == [2, 7]
    assert ids("other", words(eos=5))["eos_token_id"] == 5


def test_a_picture_is_prepared_as_in_training(tmp_path):
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    normalize = Normalize(mean=(0.2, 0.5, 0.4), std=(0.3, 0.2, 0.5), scale=255.0)
    image = normalize({"image": picture}, None)["image"][None]
    sizes = dict(image=16, patch=4, layers=1, width=16, heads=2, outputs=3)
    model, variables, values = made("vit", (image,), **sizes)
    along = dict(source=source(class_names=("cat", "dog", "owl")), preprocess=(normalize,))
    folder = parity.export(variables, values, "vit", tmp_path / "out", **along)
    classify = transformers.pipeline("image-classification", model=str(folder))
    found = {one["label"]: one["score"] for one in classify(Image.fromarray(picture))}
    expected = jax.nn.softmax(model.apply(variables, image, train=False)[0])
    for name, score in zip(("cat", "dog", "owl"), expected, strict=True):
        assert found[name] == pytest.approx(float(score), abs=1e-4)


def test_a_transform_that_no_processor_has_is_refused_by_name():
    found = preprocessor_config((Resize(32), CenterCrop(24)), 24, "vit")
    assert found["size"] == dict(height=32, width=32)
    assert found["crop_size"] == dict(height=24, width=24)
    with pytest.raises(UserError, match="cannot say 'flatten'"):
        preprocessor_config((Flatten(),), 24, "vit")


def test_rope_settings_are_written_in_both_spellings(tmp_path):
    scaling = dict(rope_type="linear", factor=2.0)
    more = dict(context=16, kv_heads=1, mlp_width=8, rope_scaling=scaling, rope_theta=700.0)
    _, variables, values = made("llama", (PROMPT,), **SIZES, **more)
    folder = parity.export(variables, values, "llama", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"] == scaling and config["rope_theta"] == 700.0
    assert config["rope_parameters"] == {**scaling, "rope_theta": 700.0}


def test_the_family_may_be_left_out(tmp_path):
    _, variables, values = made("gpt2", (PROMPT,), **SIZES, context=16)
    folder = parity.export(variables, values, "gpt2", tmp_path / "out")
    assert family_of_source(str(folder)) == "gpt2"
    init = dict(source=str(folder), family=family_of_source(str(folder)))
    assert derived_model(init, dict(type="gpt2"), ("vocab",))["vocab"] == 40
    assert configs.starts_published({"init": {"source": str(folder)}})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    os.umask(umask := os.umask(0))
    assert modes == {0o666 & ~umask}
    untrained = dict(source=str(folder), rules=(("embed.*", None), (r"(.*)", r"\1")))
    raw = small_config(model=dict(type="gpt2"), task=dict(type="language_model"), init=untrained)
    with pytest.raises(UserError, match=r"leaves embed\.\* untrained: train first, or"):
        open_run(tmp_path / "run", raw=raw)
    (folder / "config.json").write_text('{"model_type": "gpt3"}')
    with pytest.raises(UserError, match=r"holds a 'gpt3' \(did you mean 'gpt2'\?\)"):
        family_of_source(str(folder))
    (folder / "config.json").write_text('{"seed": 0}')  # a run's
    assert family_of_source(str(folder)) is None


@pytest.mark.parametrize("index", [{"weight_map": {}}, {}, {"weight_map": {"a": 3}}])
def test_an_index_that_names_no_files_is_one_line(index, tmp_path):
    from bigjax.pretrained.reader import open_published

    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="weight_map should say which file holds which tensor"):
        open_published(str(tmp_path))
