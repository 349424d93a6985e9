"""Llama and its kin in Hugging Face's layout, both ways: what a row of the table of families says.

All are `bigjax.models.llama.Llama` with other choices. A family is one `Decoder` in
`bigjax.pretrained.decoders`; what the table cannot say is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigjax.core.errors import UserError
from bigjax.models.transformer import BIASES
from bigjax.pretrained import gguf, rope, table, windows
from bigjax.pretrained.entry import Entry, linear, norm, projections
from bigjax.pretrained.table import Key, activations

KEYS = (
    Key("vocab_size", "vocab"),
    Key("num_hidden_layers", "layers"),
    Key("hidden_size", "width"),
    Key("num_attention_heads", "heads"),
    Key("num_key_value_heads", "kv_heads", None),
    Key("head_dim", "head_width", None),
    Key("intermediate_size", "mlp_width"),
    Key("max_position_embeddings", "context"),
    Key("rms_norm_eps", "norm_epsilon", 1e-6),
    Key("tie_word_embeddings", "tied", False),
    Key("hidden_act", "activation", "silu", activations("silu")),
)
# Our choices that no key of most families speaks of, as a plain Llama has them.
PLAIN = dict(
    rope_width=None,
    layer_kinds=("full",),
    window=None,
    local_rope_theta=None,
    norm="rms",
    norm_places="before",
    biases=(),
    qk_norm="none",
    query_width=None,
    softcap=None,
    logit_softcap=None,
    scaled_embedding=False,
    experts=None,
)
# Where the norms stand -> our norm -> its published name.
NORM_NAMES = {
    "before": dict(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
    "after": dict(
        attention_out_norm="post_attention_layernorm", mlp_out_norm="post_feedforward_layernorm"
    ),
    "both": dict(
        attention_norm="input_layernorm",
        attention_out_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_out_norm="post_feedforward_layernorm",
    ),
}


@dataclass(frozen=True)
class Decoder:
    """One family.

    model_type, architecture: its names in config.json.
    choices: our fields that are always so.
    keys: those of config.json that other families lack, or have with another default.
    biases: a key of config.json -> the biases of ours that it switches.
    local: which layers see a window of the tokens: "none", "all" where there is a window, "switched": all
        if use_sliding_window says so, "from" the layer max_window_layers on, or so many in turn, of which the
        last is full.
    theta: of rotary positions, where config.json says none.
    fused: whether queries, keys and values are one matrix, and gate and up.
    experts: published names of what holds a layer's experts, and of an expert's gate, up and down; () if
        a layer has one MLP.
    fixed: keys of config.json -> the only values that are known here.
    renamed: names that transformers 5 gives to keys -> those of the published files.
    """

    model_type: str
    architecture: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    keys: Sequence[Key] = ()
    biases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    local: str | int = "none"
    window: int | None = None
    theta: float = 10000.0
    fused: bool = False
    experts: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    TYPE = "llama"
    GENERATES = True
    IGNORED = (r"lm_head\.weight",)  # where tied, a copy of the embedding

    def model_values(self, published: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `bigjax.models.llama.Llama` from a published config.json.

        Raises:
          UserError: it describes something that this family is not.
        """
        fixed = {"model_type": self.model_type, "use_bidirectional_attention": False, **self.fixed}
        table.check(fixed, published)
        newer = {old: published[new] for new, old in self.renamed.items() if new in published}
        values = table.read(self._keys(), newer | published)
        heads, width = values["heads"], values["width"]
        if values["layers"] < 1:
            raise UserError(f"config.init: num_hidden_layers {values['layers']} is no model")
        values["kv_heads"] = values["kv_heads"] or heads
        values["head_width"] = values["head_width"] or width // heads
        on = (*table.read_biases(self.biases, published), *self.choices.get("biases", ()))
        for key in {"attention_bias", "mlp_bias"} - set(self.biases):
            table.check({key: False}, published)
        values = {**PLAIN, **values, **self.choices, **self._layers(published, values["layers"])}
        values["biases"] = tuple(part for part in BIASES if part in on)
        values |= self._rope(published)
        turning = int(values["head_width"] * values.pop("partial"))
        return {**values, "rope_width": None if turning == values["head_width"] else turning}

    def published_config(self, model: dict[str, Any]) -> dict[str, Any]:
        """The config.json of a model with these values.

        Raises:
          UserError: the family is something else than this model.
        """
        said = table.write(self._keys(), model)
        H = model["head_width"] or model["width"] // model["heads"]
        said |= dict(head_dim=H, **self._write_layers(model))
        switches, biases = table.write_biases(self.biases, model["biases"])
        said |= switches
        spoken = {key.ours for key in self._keys()} | {"layer_kinds", "window", "biases"}
        spoken |= {"local_rope_theta"} if self._by_kind() else set()
        spoken |= {"rope_width"} if self.fused else set()
        left = {key: value for key, value in {**PLAIN, **self.choices}.items() if key not in spoken}
        if set(biases) != set(self.choices.get("biases", ())):
            left["biases"] = self.choices.get("biases", ())
        differing = [key for key, value in left.items() if model[key] != value]
        if differing:
            what = "; ".join(f"model.{key} {model[key]!r}" for key in differing)
            raise UserError(f"export: the layout of '{self.model_type}' cannot say {what}")
        return dict(
            model_type=self.model_type,
            architectures=[self.architecture],
            **{**said, **self._write_rope(model, H)},
        )

    def entries(self, model: dict[str, Any]) -> list[Entry]:
        """Every published tensor of a model with these values and the leaf it becomes."""
        found = [Entry("model.embed_tokens.weight", ("params/embedding",))]
        for i in range(model["layers"]):
            found += self._block(f"model.layers.{i}", f"block_{i}", model)
        found += norm("model.norm", "norm", bias=False)
        if not model["tied"]:
            found.append(Entry("lm_head.weight", ("params/unembedding",)))
        return found

    def from_gguf(self, published: Any) -> Any:
        """A GGUF file as if it were a folder in this layout; UserError but for plain Llama."""
        if self.model_type != "llama":
            raise UserError(f"{published.path}: a GGUF file cannot be read as '{self.model_type}'")
        return gguf.as_folder(published)

    def _keys(self) -> tuple[Key, ...]:
        own = {key.ours for key in self.keys}
        return (*(key for key in KEYS if key.ours not in own), *self.keys)

    def _by_kind(self) -> bool:
        """Whether full and local layers have rotary settings of their own."""
        return "local_rope_theta" in self.choices

    def _layers(self, published: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """`layer_kinds` and `window`."""
        if self.local == "no_rope":
            table.check({"use_sliding_window": False}, published)
            if "sliding_attention" in (published.get("layer_types") or ()):
                raise UserError("config.init: layer_types 'sliding_attention' is not known here")
            every = published.get("no_rope_layer_interval") or 4
            turns = published.get("no_rope_layers") or [(i + 1) % every for i in range(layers)]
            return dict(layer_kinds=windows.shortest(["full" if t else "no_rope" for t in turns]))
        window = published.get("sliding_window", self.window)
        types = published.get("layer_types")
        if self.local == "none":
            types = None
        elif self.local in ("all", "switched"):
            window = window if self.local == "all" or published.get("use_sliding_window") else None
            types = ["sliding_attention"] * layers
        elif self.local == "from":
            window = window if published.get("use_sliding_window") else None
            first = published.get("max_window_layers", 28)
            types = types or [windows.type_of(i >= first) for i in range(layers)]
        else:
            period = published.get("sliding_window_pattern") or self.local
            types = types or [windows.type_of((i + 1) % period) for i in range(layers)]
        if types is None or window is None:
            return {}
        if window < 1:
            raise UserError(f"config.init: sliding_window {window} is no window")
        kinds = windows.kinds_of(types)
        return dict(layer_kinds=kinds, window=window) if "local" in kinds else {}

    def _write_layers(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The way back; UserError where the family has no such layers."""
        kinds = windows.repeated(model)
        known = {
            "none": {"full"},
            "all": {kinds[0]} - {"no_rope"},
            "switched": {kinds[0]} - {"no_rope"},
            "no_rope": {"full", "no_rope"},
        }.get(self.local, {"full", "local"})
        if not set(kinds) <= known:
            raise UserError(
                f"export: the layout of '{self.model_type}' cannot say model.layer_kinds "
                f"{model['layer_kinds']!r}"
            )
        if self.local == "none":
            return {}
        if self.local == "no_rope":
            return dict(no_rope_layers=[int(kind == "full") for kind in kinds])
        window = model["window"]
        if self.local == "all":
            return dict(sliding_window=window)
        if self.local == "switched":
            return dict(sliding_window=window, use_sliding_window=window is not None)
        if self.local == "from":
            switch = dict(use_sliding_window=window is not None)
            switch["max_window_layers"] = kinds.index("local") if window else model["layers"]
        else:
            switch = {}
        types = [windows.type_of(kind == "local") for kind in kinds]
        return dict(sliding_window=window, layer_types=types, **switch)

    def _rope(self, published: Mapping[str, Any]) -> dict[str, Any]:
        if not self._by_kind():
            found = rope.read(published, self.theta)
        else:
            given = published.get("rope_parameters") or {}
            own = given.get("sliding_attention") or {}
            beside = {"rope_theta": published.get("rope_local_base_freq")}
            local = rope.said("rope_theta", own, beside, None) or 10000.0
            if own.get("rope_type", "default") != "default":
                raise UserError(f"config.init: rope_type {own['rope_type']!r} of local layers")
            plain = {**published, "rope_parameters": given.get("full_attention")}
            found = {**rope.read(plain, self.theta), "local_rope_theta": float(local)}
        if found["partial"] != 1 and not self.fused:
            raise UserError(
                f"config.init: partial_rotary_factor {found['partial']} is not known here"
            )
        return found

    def _write_rope(self, model: Mapping[str, Any], head_width: int) -> dict[str, Any]:
        found = rope.write(model)
        if self._by_kind():
            local = model["local_rope_theta"]
            found["rope_parameters"] = {
                "full_attention": found["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            }
            found["rope_local_base_freq"] = local
        if (
            self.fused
        ):  # Phi-3 reads no `rope_parameters` and wants three numbers of a scaling, no more
            del found["rope_parameters"]
            found["partial_rotary_factor"] = (model["rope_width"] or head_width) / head_width
            if scaling := found["rope_scaling"]:
                if scaling["rope_type"] != "longrope" or scaling.get("attention_factor"):
                    raise UserError("export: the layout of 'phi3' has a plain 'longrope' alone")
                lists = {key: scaling[key] for key in ("short_factor", "long_factor")}
                found["rope_scaling"] = dict(type="longrope", **lists)
        return found

    def _block(self, there: str, here: str, model: Mapping[str, Any]) -> list[Entry]:
        """The tensors of one block."""
        N, K = model["heads"], model["kv_heads"]
        H = model["head_width"] or model["width"] // N
        found = []
        for ours, theirs in NORM_NAMES[model["norm_places"]].items():
            found += norm(f"{there}.{theirs}", f"{here}/{ours}", bias=False)
        if model["qk_norm"] != "none":
            pattern = None if model["qk_norm"] == "head" else "(n h) -> n h"
            for theirs, ours in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
                path = (f"params/{here}/attention/{ours}/scale",)
                sizes = {"h": H} if pattern else {}
                found.append(Entry(f"{there}.self_attn.{theirs}.weight", path, pattern, sizes))
        if self.experts:
            names = [f"{there}.self_attn.{letter}_proj" for letter in "qkvo"]
            found += projections(names, f"{here}/attention", H, model["biases"])
            return found + self._experts(there, here, model["experts"])
        bias = "mlp" in model["biases"]
        down = linear(f"{there}.mlp.down_proj", f"{here}/mlp/down", bias=bias)
        if not self.fused:
            names = [f"{there}.self_attn.{letter}_proj" for letter in "qkvo"]
            found += projections(names, f"{here}/attention", H, model["biases"])
            for part in ("gate", "up"):
                found += linear(f"{there}.mlp.{part}_proj", f"{here}/mlp/{part}", bias=bias)
            return found + down
        parts = tuple(f"params/{here}/attention/{p}/kernel" for p in ("query", "key", "value"))
        halves = tuple(f"params/{here}/mlp/{p}/kernel" for p in ("gate", "up"))
        name = f"{there}.self_attn.qkv_proj.weight"
        return [
            *found,
            Entry(name, parts, "(n h) d -> d n h", {"h": H}, shares=(N, K, K)),
            *linear(
                f"{there}.self_attn.o_proj", f"{here}/attention/out", "d (n h) -> n h d", False, h=H
            ),
            Entry(f"{there}.mlp.gate_up_proj.weight", halves, "o i -> i o", shares=(1, 1)),
            *down,
        ]

    def _experts(self, there: str, here: str, count: int) -> list[Entry]:
        """The tensors of one block's router and experts."""
        holder, *names = self.experts
        found = linear(f"{there}.{holder}.gate", f"{here}/mlp/router", bias=False)
        for j in range(count):
            for theirs, ours in zip(names, ("gate", "up", "down"), strict=True):
                path = f"params/{here}/mlp/expert_{j}/{ours}"
                name = f"{there}.{holder}.experts.{j}.{theirs}.weight"
                found.append(Entry(name, (path,), "o i -> i o"))
        return found
