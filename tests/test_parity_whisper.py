"""Whisper against transformers: logits both ways, and the same text token for token."""

import copy

import jax
import numpy as np
import pytest

from bigjax.config import resolve as configs
from bigjax.config.config import made
from bigjax.core.errors import UserError
from bigjax.pretrained.families import family_of_model, family_of_source, open_family
from tests import parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

START, END, WRITTEN = 3, 2, 7
SIZES = dict(
    vocab_size=40,
    num_mel_bins=5,
    d_model=24,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=36,
    decoder_layers=1,
    decoder_attention_heads=3,
    decoder_ffn_dim=28,
    max_source_positions=50,
    max_target_positions=11,
    init_std=0.3,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=END,
    decoder_start_token_id=START,
    begin_suppress_tokens=None,
)
RNG = np.random.default_rng(0)
SOUND = RNG.standard_normal((3, 100, 5)).astype(np.float32)
TARGET = RNG.integers(4, 40, (3, WRITTEN + 1)).astype(np.int32)
TARGET[:, 0], TARGET[0, -1] = START, END  # whose end a batch shows in its first row
ONES = np.ones_like(TARGET)
INPUTS = (SOUND, None, TARGET, ONES)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**SIZES)
    return parity.randomized(transformers.WhisperForConditionalGeneration(config)).eval()


def torch_logits(model):
    features = torch.tensor(SOUND).transpose(1, 2)
    with torch.no_grad():
        return model(features, decoder_input_ids=torch.tensor(TARGET).long()).logits.numpy()


def test_published_weights_give_the_published_numbers_text_and_go_back(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    assert family_of_source(str(tmp_path / "theirs")) == "whisper"
    model, variables, values = parity.load(tmp_path / "theirs", "whisper", INPUTS)
    expected = torch_logits(theirs)
    ours = jax.jit(lambda v: model.apply(v, *INPUTS, train=False))(variables)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)

    section = dict(type="seq2seq", input=("sound", None, "target", "segments"))
    task = made("task", "task", configs._complete_section("task", section))
    batch = {"sound": SOUND, "target": TARGET, "segments": ONES, "mask": np.ones(3)}
    decode = jax.jit(lambda v, batch: task.decode(model.apply, v, batch))
    written = decode(variables, batch)["written"]
    with torch.no_grad():  # the loop itself, without what Whisper's own adds for timestamps
        found = transformers.GenerationMixin.generate(
            theirs,
            torch.tensor(SOUND).transpose(1, 2),
            max_new_tokens=WRITTEN,
            do_sample=False,
        )
    for row, text in zip(np.asarray(written), found.numpy()[:, 1:], strict=True):
        text = text[: list(text).index(END)] if END in text else text
        assert row[row >= 0].tolist() == text.tolist()
    assert len({tuple(row) for row in np.asarray(written)}) > 1  # or the sound is not heard

    assert family_of_model(values) == "whisper"
    folder = parity.export(variables, values, "whisper", tmp_path / "ours")
    back, info = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    np.testing.assert_allclose(torch_logits(back.eval()), expected, atol=1e-5, rtol=1e-5)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    assert (extractor.feature_size, extractor.nb_max_frames, extractor.hop_length) == (5, 100, 160)


def test_positions_that_were_trained_are_refused(theirs, tmp_path):
    """Published ones never are: what is computed in their place would be wrong in silence."""
    changed = copy.deepcopy(theirs)
    changed.model.encoder.embed_positions.weight.data[7, 3] += 0.01
    changed.save_pretrained(tmp_path / "theirs")
    said = "'encoder.embed_positions.weight' is not what this family computes in its place"
    with pytest.raises(UserError, match=said):
        parity.load(tmp_path / "theirs", "whisper", INPUTS)


def test_a_prompt_is_given_and_not_learned_or_written():
    section = dict(type="seq2seq", input=("sound", None, "target", "segments"), given=3)
    task = made("task", "task", configs._complete_section("task", section))
    model = parity.build(dict(type="whisper") | open_family("whisper").model_values(SIZES))
    segments = (np.arange(8) < np.array([[8], [6], [5]])).astype(np.int32)
    batch = {"sound": SOUND, "target": TARGET, "segments": segments, "mask": np.ones(3)}
    logits = RNG.standard_normal((3, 8, 40)).astype(np.float32)
    total, weight = task.loss(logits, batch)[0]
    by_hand = sum(
        -jax.nn.log_softmax(logits[row, at])[TARGET[row, at + 1]]
        for row, length in enumerate((8, 6, 5))
        for at in range(2, length - 1)
    )
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)
    assert weight == 5 + 3 + 2
    make = lambda: model.init(jax.random.key(0), *INPUTS, train=False)  # noqa: E731
    written = jax.eval_shape(lambda b: task.decode(model.apply, make(), b)["written"], batch)
    assert written.shape == (3, 5)
    with pytest.raises(UserError, match=r"task\.given: 0 must be at least 1"):
        made("task", "task", configs._complete_section("task", section | dict(given=0)))


def test_what_it_cannot_be_is_refused_by_name():
    family = open_family("whisper")
    with pytest.raises(UserError, match="scale_embedding True is not known; False is"):
        family.model_values(SIZES | dict(scale_embedding=True))
    model = parity.build(dict(type="whisper") | family.model_values(SIZES))
    with pytest.raises(
        UserError, match=r"spectrograms are \(100, 5\), those of the data \(99, 5\)"
    ):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), SOUND[:, 1:], *INPUTS[1:], train=False)
        )
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *INPUTS, train=False))["params"]
    parity.assert_named(model, boxed)
