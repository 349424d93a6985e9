"""Whisper in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.data.sound import HOP, RATE, WINDOW
from bigjax.models.whisper import BIASES, sinusoids
from bigjax.pretrained import table
from bigjax.pretrained.entry import Constant, Entry, linear, norm, projections
from bigjax.pretrained.table import Key, activations

TYPE = "whisper"
GENERATES = True
TOKENIZER = "WhisperTokenizer"  # transformers' class, whose own decoding its pipeline asks for
PREFIXES = ("model.",)
IGNORED = (r"proj_out\.weight",)  # a copy of the embedding
KEYS = (
    Key("vocab_size", "vocab", 51865),
    Key("num_mel_bins", "mel", 80),
    Key("encoder_layers", "layers", 4),
    Key("decoder_layers", "decoder_layers", 4),
    Key("d_model", "width", 384),
    Key("encoder_attention_heads", "heads", 6),
    Key("decoder_attention_heads", "decoder_heads", 6),
    Key("encoder_ffn_dim", "mlp_width", 1536),
    Key("decoder_ffn_dim", "decoder_mlp_width", 1536),
    Key("max_source_positions", "frames", 1500),
    Key("max_target_positions", "context", 448),
    Key("dropout", "dropout", 0.0),
    Key("activation_function", "activation", "gelu", activations("gelu")),
)
# What its generation config says beside special ids; an export keeps what the first weights came with.
GENERATION = (
    "suppress_tokens", "begin_suppress_tokens", "no_timestamps_token_id", "is_multilingual", "alignment_heads",
    "lang_to_id", "task_to_id", "max_length",
)  # fmt: skip
# What our model always is.
FIXED = dict(model_type="whisper", scale_embedding=False, tie_word_embeddings=True)


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.whisper.Whisper` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    table.check(FIXED, published)
    return table.read(KEYS, published)


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values."""
    filled = {
        "decoder_layers": model["decoder_layers"] or model["layers"],
        "decoder_heads": model["decoder_heads"] or model["heads"],
        **{key: model[key] or 4 * model["width"] for key in ("mlp_width", "decoder_mlp_width")},
    }
    return dict(
        architectures=["WhisperForConditionalGeneration"],
        **FIXED,
        **table.write(KEYS, {**model, **filled}),
        pad_token_id=0,
        decoder_start_token_id=0,
        begin_suppress_tokens=None,
        is_encoder_decoder=True,
    )


def preprocessor(model: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json: what `bigjax.data.sound` does, in transformers' words."""
    seconds, left = divmod(2 * model["frames"] * HOP, RATE)
    if left:
        raise UserError(
            f"export: model.frames {model['frames']} are no whole seconds, as transformers has"
        )
    return dict(
        feature_extractor_type="WhisperFeatureExtractor",
        processor_class="WhisperProcessor",
        feature_size=model["mel"],
        sampling_rate=RATE,
        hop_length=HOP,
        n_fft=WINDOW,
        chunk_length=seconds,
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    fixed = sinusoids(model["frames"], model["width"])
    found = [
        *linear("encoder.conv1", "encoder/conv_0", "o i k -> k i o"),
        *linear("encoder.conv2", "encoder/conv_1", "o i k -> k i o"),
        Constant("encoder.embed_positions.weight", (), values=fixed),
        Entry("decoder.embed_tokens.weight", ("params/decoder/embedding",)),
        Entry("decoder.embed_positions.weight", ("params/decoder/positions",)),
    ]
    sides = dict(
        encoder=(model["layers"], model["heads"]),
        decoder=(
            model["decoder_layers"] or model["layers"],
            model["decoder_heads"] or model["heads"],
        ),
    )
    for side, (layers, heads) in sides.items():
        for i in range(layers):
            names = (f"{side}.layers.{i}", f"{side}/block_{i}")
            found += block(*names, model["width"] // heads, side == "decoder")
        found += norm(f"{side}.layer_norm", f"{side}/norm")
    return found


def block(there: str, here: str, width: int, reads_memory: bool) -> list[Entry]:
    """The tensors of one block."""
    parts = {"self_attn": "attention"} | (
        {"encoder_attn": "cross_attention"} if reads_memory else {}
    )
    found = []
    for theirs, ours in parts.items():
        names = [f"{there}.{theirs}.{part}_proj" for part in ("q", "k", "v", "out")]
        found += projections(names, f"{here}/{ours}", width, BIASES)
        found += norm(f"{there}.{theirs}_layer_norm", f"{here}/{ours}_norm")
    return [
        *found,
        *linear(f"{there}.fc1", f"{here}/mlp/up"),
        *linear(f"{there}.fc2", f"{here}/mlp/down"),
        *norm(f"{there}.final_layer_norm", f"{here}/mlp_norm"),
    ]
