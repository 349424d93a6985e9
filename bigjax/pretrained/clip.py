"""CLIP and SigLIP in Hugging Face's layout, both ways: two rows of one table.

Both towers of a published config.json are sections of their own, whose keys may be left out where they are as
usual: the usual numbers stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, fused_projections, linear, norm, projections
from bigjax.pretrained.table import Key, activations

Sizes = Mapping[str, Any]


@dataclass(frozen=True)
class Towers:
    """One family.

    model_type, architecture: its names in config.json. form: of our model.
    text, image: what a tower's section means where it does not say a key.
    """

    model_type: str
    architecture: str
    form: str
    text: Sizes
    image: Sizes

    TYPE = "two_towers"
    IGNORED = (r".*position_ids",)

    def model_values(self, published: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `bigjax.models.two_towers.TwoTowers` from a published config.json.

        Raises:
          UserError: it describes something that this family is not.
        """
        table.check({"model_type": self.model_type}, published)
        text, image = (published.get(f"{part}_config") or {} for part in ("text", "vision"))
        table.check({"num_channels": 3, "vision_use_head": True}, image)
        values = table.read(self._keys("image"), image)
        for key, value in table.read(self._keys("text"), text).items():
            if values.setdefault(key, value) != value:
                raise UserError(
                    f"config.init: the towers' {key} differ, {values[key]!r} and {value!r}"
                )
        if self.form == "clip":
            width = published.get("projection_dim") or 512
        else:
            width = text.get("projection_size") or values["text_width"]
        return {**values, "embedding": width, "form": self.form}

    def published_config(self, model: dict[str, Any]) -> dict[str, Any]:
        """The config.json of a model with these values; UserError where the family is another model."""
        if model["form"] != self.form:
            raise UserError(
                f"export: the layout of '{self.model_type}' cannot say model.form {model['form']!r}"
            )
        filled = dict(model)
        for part in ("image", "text"):
            filled[f"{part}_mlp_width"] = model[f"{part}_mlp_width"] or 4 * model[f"{part}_width"]
        text, image = (table.write(self._keys(part), filled) for part in ("text", "image"))
        # The last token of a text is found by its id; OpenAI's is the last of the vocabulary.
        text |= dict(pad_token_id=0, bos_token_id=None, eos_token_id=model["vocab"] - 1)
        if self.form == "clip":
            text["projection_dim"] = image["projection_dim"] = model["embedding"]
            more = dict(projection_dim=model["embedding"])
        else:
            text["projection_size"], more = model["embedding"], {}
        return dict(
            model_type=self.model_type,
            architectures=[self.architecture],
            text_config=text,
            vision_config=image,
            **more,
        )

    def entries(self, model: dict[str, Any]) -> list[Entry]:
        """Every published tensor of a model with these values and the leaf it becomes."""
        clip, image, text = self.form == "clip", "vision_model", "text_model"
        sides = dict(p=model["patch"], q=model["patch"])
        rows = "embeddings.position_embedding.weight"
        found = [
            Entry("logit_scale", ("params/logit_scale",), None if clip else "1 -> "),
            Entry(f"{image}.{rows}", ("params/image_tower/positions",)),
            *linear(
                f"{image}.embeddings.patch_embedding",
                "image_tower/patches",
                "d c p q -> (p q c) d",
                bias=not clip,
                **sides,
            ),
            *norm(f"{image}.post_layernorm", "image_tower/norm"),
            Entry(f"{text}.embeddings.token_embedding.weight", ("params/text_tower/embedding",)),
            Entry(f"{text}.{rows}", ("params/text_tower/positions",)),
            *norm(f"{text}.final_layer_norm", "text_tower/norm"),
        ]
        for there, here in ((image, "image"), (text, "text")):
            width = model[f"{here}_width"] // model[f"{here}_heads"]
            for i in range(model[f"{here}_layers"]):
                found += _block(f"{there}.encoder.layers.{i}", f"{here}_tower/block_{i}", width)
        if clip:
            return [
                *found,
                Entry(f"{image}.embeddings.class_embedding", ("params/image_tower/cls",)),
                *norm(f"{image}.pre_layrnorm", "image_tower/pre_norm"),  # so it is published
                *linear("visual_projection", "image_projection", bias=False),
                *linear("text_projection", "text_projection", bias=False),
            ]
        width = model["image_width"] // model["image_heads"]
        return [
            *found,
            Entry("logit_bias", ("params/logit_bias",), "1 -> "),
            *linear(f"{text}.head", "text_projection"),
            *_pool(f"{image}.head", "image_tower/pool", width),
        ]

    def _keys(self, part: str) -> list[Key]:
        """The table of one tower's section."""
        usual = self.text if part == "text" else self.image
        ours = dict(
            hidden_size=f"{part}_width",
            intermediate_size=f"{part}_mlp_width",
            num_hidden_layers=f"{part}_layers",
            num_attention_heads=f"{part}_heads",
            layer_norm_eps="norm_epsilon",
            vocab_size="vocab",
            max_position_embeddings="context",
            image_size="image",
            patch_size="patch",
        )
        word = usual["hidden_act"]
        keys = [Key(name, ours[name], value) for name, value in usual.items() if name in ours]
        return [*keys, Key("hidden_act", "activation", word, activations(word))]


def _block(there: str, here: str, width: int) -> list[Entry]:
    """The tensors of one block of a tower."""
    names = [f"{there}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    return [
        *projections(names, f"{here}/attention", width),
        *norm(f"{there}.layer_norm1", f"{here}/attention_norm"),
        *norm(f"{there}.layer_norm2", f"{here}/mlp_norm"),
        *linear(f"{there}.mlp.fc1", f"{here}/mlp/up"),
        *linear(f"{there}.mlp.fc2", f"{here}/mlp/down"),
    ]


def _pool(there: str, here: str, width: int) -> list[Entry]:
    """Attention with one learned query, as torch keeps it, and the MLP behind it."""
    names = [f"{there}.attention.{part}" for part in ("in_proj", "out_proj")]
    return [
        Entry(f"{there}.probe", (f"params/{here}/probe",), "1 1 d -> d"),
        *fused_projections(names, f"{here}/attention", width, mark="_"),
        *norm(f"{there}.layernorm", f"{here}/mlp_norm"),
        *linear(f"{there}.mlp.fc1", f"{here}/mlp/up"),
        *linear(f"{there}.mlp.fc2", f"{here}/mlp/down"),
    ]


_LAYERS = dict(num_hidden_layers=12)
_BASE = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224)
_QUICK = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, **_LAYERS)
_TANH = dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, **_LAYERS)
CLIP = Towers(
    "clip",
    "CLIPModel",
    "clip",
    dict(
        vocab_size=49408,
        max_position_embeddings=77,
        hidden_size=512,
        intermediate_size=2048,
        num_attention_heads=8,
        **_QUICK,
    ),
    dict(patch_size=32, **_BASE, **_QUICK),
)
SIGLIP = Towers(
    "siglip",
    "SiglipModel",
    "siglip",
    dict(
        vocab_size=32000,
        max_position_embeddings=64,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        **_TANH,
    ),
    dict(patch_size=16, **_BASE, **_TANH),
)
