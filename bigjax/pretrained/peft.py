"""Adapters as the library `peft` keeps them: adapter_config.json and adapter_model.safetensors, both ways.

Read, they are merged into their base, tensor by tensor, in the published layout: any family takes them.
Written, they are the A and B of a run's LoRA. Of a published matrix (out, in): A (r, in), B (out, r), and
W + scale B A (Hu et al. 2021, eq. 3); a Conv1D of GPT-2 holds the transpose.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.pretrained.gguf import as_folder
from bigjax.pretrained.reader import Published, locate, open_published, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OWN_BASE = "base"  # a folder within, where the base is published nowhere else
PARTS = (
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?"
)
# What changes the arithmetic and is not read here.
REFUSED = (
    "use_qalora",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
)
# transformers 5 calls a ViT's modules otherwise than its files do, and adapters have the modules' names.
VIT = {
    "layers.{}.attention.q_proj": "encoder.layer.{}.attention.attention.query",
    "layers.{}.attention.k_proj": "encoder.layer.{}.attention.attention.key",
    "layers.{}.attention.v_proj": "encoder.layer.{}.attention.attention.value",
    "layers.{}.attention.o_proj": "encoder.layer.{}.attention.output.dense",
    "layers.{}.mlp.fc1": "encoder.layer.{}.intermediate.dense",
    "layers.{}.mlp.fc2": "encoder.layer.{}.output.dense",
    "layers.{}.layernorm_before": "encoder.layer.{}.layernorm_before",
    "layers.{}.layernorm_after": "encoder.layer.{}.layernorm_after",
}


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A module's or tensor's name with the part that `names` has, {} for the layer, put in other words."""
    for old, new in names.items():
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        name = re.sub(rf"(?<![\w.]){pattern}|(?<=vit\.){pattern}", _filled(new), name)
    return name


def _filled(template: str) -> Callable[[re.Match[str]], str]:
    return lambda match: template.format(next(filter(None, match.groups())))


def is_adapter(source: str) -> bool:
    """Whether a path names a folder of adapters."""
    return (Path(os.path.expanduser(source)) / CONFIG).is_file()


def base_of(folder: str) -> str:
    """The base that a folder of adapters names.

    Raises:
      UserError: it names none, or one that is not there, or adapters again.
    """
    path = Path(os.path.expanduser(folder)) / CONFIG
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: base_model_name_or_path should name the base's folder")
    if base == OWN_BASE and (path.parent / base).is_dir():
        return str(path.parent / base)
    try:
        if is_adapter(base):
            raise UserError(f"{path}: its base, {base}, holds adapters, not a model")
        locate(base, f"config.init.source: {path}: base_model_name_or_path")
    except (OSError, ValueError) as error:  # a name that can be no file's
        raise UserError(f"{path}: base_model_name_or_path: {error}") from None
    return base


def open_adapted(source: str, *, merged: bool = True) -> Published:
    """The base of a folder of adapters, as a checkpoint whose tensors have them merged, or not.

    Tensors that the folder replaces are the folder's in either case.

    Raises:
      UserError: a file is damaged; the adapters are of a kind that is not read, or not of this base.
    """
    folder = Path(os.path.expanduser(source))
    base, parts, adapters, replaced = read_adapters(source)

    def read(name: str) -> np.ndarray:
        if name in replaced:
            return parts.read(replaced[name])
        tensor = base.read(name)
        return adapters[name].merged(tensor) if merged and name in adapters else tensor

    return dataclasses.replace(base, path=folder, read=read)


def read_adapters(source: str) -> tuple[Published, Published, dict[str, Adapter], dict[str, str]]:
    """(base, the folder's own tensors, the base's tensor -> its adapter, -> the name of what replaces it).

    Raises:
      UserError: as `open_adapted`.
    """
    folder = Path(os.path.expanduser(source))
    settings = read_json(folder / CONFIG)
    base, parts = open_published(base_of(source)), open_published(str(folder / WEIGHTS))
    base = as_folder(base) if base.gguf else base
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{folder / CONFIG}: peft_type is {settings.get('peft_type')!r}, not 'LORA'"
        )
    if used := [key for key in REFUSED if settings.get(key)]:
        raise UserError(f"{folder / CONFIG}: {used[0]} is set, which is not read here")
    found, replaced = _sorted_out(folder, parts, base)
    adapters = {
        name: Adapter.open(folder, module, names, parts, settings)
        for name, (module, names) in found.items()
    }
    return base, parts, adapters, replaced


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to one published tensor; see `merged`. a (r, in, ...), b (out, r, ...)."""

    where: str
    a: np.ndarray
    b: np.ndarray
    scale: float
    transposed: bool
    magnitude: np.ndarray | None
    embeds: bool

    @staticmethod
    def open(
        folder: Path,
        module: str,
        names: Mapping[str, str],
        parts: Published,
        settings: Mapping[str, Any],
    ) -> Adapter:
        embeds = "lora_embedding_A" in names
        kinds = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A", "lora_B")
        if missing := [kind for kind in kinds if kind not in names]:
            raise UserError(f"{folder / WEIGHTS}: {module} lacks its {missing[0]}")
        a, b = (np.asarray(parts.read(names[kind]), np.float32) for kind in kinds)
        rank, alpha = len(a), _of_module(folder, settings, module)
        own = names.get("lora_magnitude_vector")
        return Adapter(
            where=f"{folder / WEIGHTS}: {module}",
            a=a,
            b=b,
            scale=alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank),
            transposed=bool(settings.get("fan_in_fan_out")),
            magnitude=None if own is None else np.asarray(parts.read(own), np.float32).reshape(-1),
            embeds=embeds,
        )

    def turned(self, shape: tuple[int, ...]) -> bool:
        """Whether the base's tensor of this shape is (in, out), not (out, in)."""
        product = (len(self.b), *self.a.shape[1:])
        turns = product[::-1] == shape and (self.transposed or product != shape)
        return self.embeds or turns

    def merged(self, tensor: np.ndarray) -> np.ndarray:
        """W + scale B A; with magnitudes m (DoRA, Liu et al. 2024, eq. 5) m (W + ...) / ||W + ...||."""
        tensor = np.asarray(tensor, np.float32)
        flat_b = self.b.reshape(len(self.b), -1)
        if flat_b.shape[1] != len(self.a):
            raise UserError(f"{self.where}: A {self.a.shape} and B {self.b.shape} do not fit")
        delta = self.scale * np.tensordot(flat_b, self.a, axes=1)
        outputs = 0
        if self.turned(tensor.shape):
            delta, outputs = delta.T, tensor.ndim - 1
        if delta.shape != tensor.shape:
            raise UserError(f"{self.where}: is for {delta.shape}, the base has {tensor.shape}")
        tensor = tensor + delta
        if self.magnitude is None:
            return tensor
        rows = np.moveaxis(tensor, outputs, 0)
        norms = np.sqrt(np.sum(rows.reshape(len(rows), -1).astype(np.float64) ** 2, axis=1))
        if norms.shape != self.magnitude.shape:
            raise UserError(
                f"{self.where}: has {len(self.magnitude)} magnitudes for {len(norms)} outputs"
            )
        share = (self.magnitude / norms).astype(np.float32)
        return np.moveaxis(rows * share.reshape(-1, *[1] * (rows.ndim - 1)), 0, outputs)


def _sorted_out(
    folder: Path, parts: Published, base: Published
) -> tuple[dict[str, tuple[str, dict[str, str]]], dict[str, str]]:
    """(the base's tensor -> (module, kind of part -> name in the file), the base's tensor -> the name of
    one that replaces it)."""
    adapters: dict[str, tuple[str, dict[str, str]]] = {}
    replaced = {}
    for name in parts.shapes:
        short = name.removeprefix(PREFIX)
        if match := re.fullmatch(PARTS, short):
            module, kind = match.groups()
            tensor = _tensor(folder, f"{module}.weight", base)
            adapters.setdefault(tensor, (module, {}))[1][kind] = name
        else:
            replaced[_tensor(folder, short, base)] = name
    return adapters, replaced


def _tensor(folder: Path, name: str, base: Published) -> str:
    """The base's name of a tensor: theirs may have what a model with a head puts before it, or lack it."""
    if any("attention.attention.query" in known for known in base.shapes):
        name = renamed(name, VIT)
    if name in base.shapes:
        return name
    near = [n for n in base.shapes if n.endswith(f".{name}") or name.endswith(f".{n}")]
    if len(near) != 1:
        hint = did_you_mean(name, base.shapes)
        raise UserError(f"{folder / WEIGHTS}: the base has no '{name}'{hint}")
    return near[0]


def _of_module(folder: Path, settings: Mapping[str, Any], module: str) -> float:
    """lora_alpha of a module. A key of alpha_pattern is a module's name or its last parts."""
    alpha = settings.get("lora_alpha")
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{folder / CONFIG}: alpha_pattern should hold an alpha for each module")
    for key, own in patterns.items():
        plain = key.removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", plain):
            raise UserError(f"{folder / CONFIG}: alpha_pattern: '{key}' is a pattern, not a name")
        alpha = own if module == plain or module.endswith(f".{plain}") else alpha
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UserError(f"{folder / CONFIG}: lora_alpha is {alpha!r}, not a number")
    return float(alpha)
