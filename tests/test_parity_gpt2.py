"""GPT-2 against transformers: the same weights give the same numbers, in both directions."""

import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.models.generate import Sampling, generate
from bigjax.pretrained.gpt2 import model_values
from tests import parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(vocab_size=50, n_layer=2, n_embd=32, n_head=4, n_positions=24, n_inner=48)
TOKENS = np.random.default_rng(0).integers(1, 50, (3, 12)).astype(np.int32)
PACKED = np.array(
    [[1] * 12, [1] * 4 + [2] * 5 + [3] * 3, [1] * 6 + [2] * 2 + [0] * 4], dtype=np.int32
)


@pytest.fixture(scope="module")
def reference():
    """A small random model of transformers, its biases and scales random too."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2") / "published"
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return parity.load(folder, "gpt2", (TOKENS,))


def torch_logits(model, tokens, segments):
    """Positions that restart and a mask between documents, given explicitly."""
    sees = (segments[:, :, None] == segments[:, None, :]) & np.tri(segments.shape[1], dtype=bool)
    start = [[list(row).index(number) for number in row] for row in segments]
    at = np.arange(segments.shape[1]) - np.array(start)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(sees)[:, None],
            position_ids=torch.tensor(at),
        ).logits.numpy()


def assert_equal(ours, theirs, segments):
    real, scale = segments > 0, np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours)[real] / scale, theirs[real] / scale, atol=1e-5)


def test_logits_of_rows_and_of_packed_and_padded_rows(reference, loaded):
    model, variables, _ = loaded
    with torch.no_grad():
        theirs = reference(torch.tensor(TOKENS)).logits.numpy()
    assert_equal(model.apply(variables, TOKENS, train=False), theirs, np.ones_like(TOKENS))
    ours = model.apply(variables, TOKENS, PACKED, train=False)
    assert_equal(ours, torch_logits(reference, TOKENS, PACKED), PACKED)


def test_scanned_layers_take_the_same_checkpoint(folder, loaded):
    model, variables, _ = loaded
    scanned, stacked, _ = parity.load(folder, "gpt2", (TOKENS,), scan_layers=True)
    np.testing.assert_allclose(
        scanned.apply(stacked, TOKENS, train=False),
        model.apply(variables, TOKENS, train=False),
        atol=1e-5,
    )


def test_an_export_is_read_by_transformers(reference, loaded, tmp_path):
    _, variables, values = loaded
    folder = parity.export(variables, values, "gpt2", tmp_path / "exported")
    again, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        theirs, ours = (m(torch.tensor(TOKENS)).logits for m in (reference, again.eval()))
    np.testing.assert_array_equal(ours, theirs)


def test_greedy_tokens_of_prompts_of_different_length(reference, loaded):
    model, variables, _ = loaded
    segments = (np.arange(12) >= np.array([[0], [5], [11]])).astype(np.int32)  # padded left
    with torch.no_grad():
        theirs = reference.generate(
            torch.tensor(TOKENS * segments),
            attention_mask=torch.tensor(segments),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, 12:]
    write = jax.jit(lambda v, *prompt: generate(model.apply, v, *prompt, Sampling(12)))
    np.testing.assert_array_equal(write(variables, TOKENS * segments, segments)["tokens"], theirs)


def test_another_activation_epsilon_and_inner_width(tmp_path):
    torch.manual_seed(0)
    changed = dict(activation_function="relu", layer_norm_epsilon=0.1, n_inner=None)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **changed})).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables, values = parity.load(tmp_path / "theirs", "gpt2", (TOKENS,))
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    ours = jax.jit(lambda v: model.apply(v, TOKENS, train=False))(variables)
    assert_equal(ours, expected, np.ones_like(TOKENS))
    folder = parity.export(variables, values, "gpt2", tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(TOKENS)).logits.numpy(), expected)


@pytest.mark.parametrize(
    "changed", [dict(activation_function="relu9"), dict(model_type="bert")], ids=str
)
def test_another_form_is_refused(changed):
    with pytest.raises(UserError, match=next(iter(changed.values()))):
        model_values({**SIZES, **changed})
