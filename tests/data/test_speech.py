"""Speech: .wav files as any player reads them, and Whisper's features against transformers."""

import json

import numpy as np
import pytest
import scipy.io.wavfile

from bigjax.core.errors import UserError
from bigjax.data.sound import RATE, log_mel, read_wav, resampled
from bigjax.data.speech import Speech
from tests.data.test_tokenizers import Texts

RNG = np.random.default_rng(0)


def tone(seconds, pitch=440.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("mel", [80, 128])
def test_features_are_those_of_transformers(mel):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=mel, chunk_length=2)
    sounds = [tone(1.3) + 0.01 * RNG.standard_normal(int(1.3 * RATE)), tone(3.0, 2000.0)]
    sounds += [0.1 * RNG.standard_normal(1000), np.zeros(500)]
    for sound in sounds:
        sound = sound.astype(np.float32)
        expected = extractor._np_extract_fbank_features(
            np.pad(sound, (0, max(0, 2 * RATE - len(sound))))[None, : 2 * RATE], "cpu"
        )[0]
        found = log_mel(sound, mel, 200)
        assert found.shape == (200, mel) and found.dtype == np.float32
        np.testing.assert_allclose(found.T, expected, atol=1e-5)
        (whole,) = extractor(sound, sampling_rate=RATE, return_tensors="np").input_features
        np.testing.assert_allclose(found.T, whole, atol=1e-3)  # by torch, in float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_any_kind_of_wav_is_the_same_sound(tmp_path, dtype):
    sound = tone(0.5)
    scale = {"u": 127, "i": np.iinfo(dtype).max if dtype != np.float32 else 1, "f": 1}
    kind = np.dtype(dtype).kind
    samples = (sound * scale[kind] + (128 if kind == "u" else 0)).round(7 if kind == "f" else 0)
    stereo = np.stack([samples, samples], axis=1).astype(dtype)
    scipy.io.wavfile.write(tmp_path / "x.wav", RATE, stereo)
    found = read_wav(tmp_path / "x.wav")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sound, atol=0.01 if dtype == np.uint8 else 1e-4)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_another_rate_is_the_same_tone(rate):
    found = resampled(tone(1.0, rate=rate), rate)
    assert len(found) == pytest.approx(RATE, abs=1)
    inner = slice(500, -500)  # the ends hear the silence beyond them
    np.testing.assert_allclose(found[inner], tone(1.0)[: len(found)][inner], atol=2e-3)


@pytest.fixture
def source(tmp_path):
    for name in ("a", "b", "c"):
        scipy.io.wavfile.write(tmp_path / f"{name}.wav", RATE, tone(0.2).astype(np.float32))
    rows = [dict(sound=f"{name}.wav", text=f"{name} was said") for name in "abc"]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = Texts().fingerprint and "bpe-300"
    return Speech(
        f"{tmp_path}/{{split}}.jsonl", tokenizer, 12, str(tmp_path / "cache"), mel=4, frames=30
    )


def test_rows_are_sounds_and_what_is_said(source, tmp_path):
    rows = source.open("train")
    found = rows.read(np.array([2, 0]))
    assert {key: (x.shape[1:], x.dtype) for key, x in found.items()} == rows.features
    tokenizer = rows.tokenizer
    for target, segments, text in zip(
        found["target"], found["segments"], ("c was said", "a was said"), strict=True
    ):
        real = target[segments > 0]
        assert (real[0], real[-1]) == (tokenizer.start, tokenizer.end)
        assert tokenizer.decode(real) == text
    assert np.array_equal(found["sound"][0], log_mel(read_wav(tmp_path / "c.wav"), 4, 30))
    assert len(source.open("train[1:]")) == 2


def test_a_users_sounds_are_read_and_the_bad_ones_told(source, tmp_path):
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    (tmp_path / "a.wav").rename(folder / "more" / "a.wav")
    (folder / "b.wav").write_bytes(b"RIFF and no more")
    rows = dict(sound="b.wav", text="b")
    (tmp_path / "train.jsonl").write_text(json.dumps(rows))
    inputs = source.open("train").read_inputs(folder)
    assert inputs.numbers == ["more/a.wav"] and len(inputs.source.read(np.arange(1))["sound"]) == 1
    assert inputs.problems[0].startswith("b.wav: not a readable .wav file")
    (tmp_path / "train.jsonl").write_text(json.dumps(dict(sound="d.wav", text="d")))
    with pytest.raises(UserError, match=r"train.jsonl.*'sound': there is no file .*d\.wav"):
        source.open("train")
