"""Structured pruning: hidden units, channels and heads are taken out, so that the model really gets smaller.

A unit's worth is the norm of what reaches it times the norm of what it gives (its row in the next
layer): Li et al. 2017's filters by magnitude, with both sides. A head gives by its rows of the output
projection, and is reached by its values. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.models.blocks import head_width

Changed = tuple[dict[str, Any], dict[str, Any]]


def narrow(model: Mapping[str, Any], variables: Mapping[str, Any], share: float) -> Changed:
    """(changes of `config.model`, variables) with that share of each layer's units or channels taken out.

    Raises:
      UserError: the model is not one whose units are known.
    """
    return _known("narrow", "units", UNITS, model)(model, variables, share)


def fewer_heads(model: Mapping[str, Any], variables: Mapping[str, Any], share: float) -> Changed:
    """The same of each layer's attention heads; queries that share a key head go with it.

    Raises:
      UserError: the model is not one whose heads are known, or its layers are stacked.
    """
    return _known("heads", "heads", HEADS, model)(model, variables, share)


def _known(step: str, what: str, known: Mapping[str, Callable[..., Changed]], model: Any) -> Any:
    if model["type"] not in known:
        names = " and ".join(known)
        raise UserError(f"{step}: knows the {what} of {names}, not those of {model['type']}")
    return known[model["type"]]


def _mlp(model: Mapping[str, Any], variables: Mapping[str, Any], share: float) -> Changed:
    layers = _Layers(variables)
    widths = tuple(
        layers.narrowed("dense", i, layers.after("dense", i), 1, share)
        for i in range(len(model["widths"]))
    )
    return {"widths": widths}, layers.variables


def _cnn(model: Mapping[str, Any], variables: Mapping[str, Any], share: float) -> Changed:
    """Channels, then the hidden units of the dense layers."""
    layers, channels = _Layers(variables), []
    for i, width in enumerate(model["channels"]):
        following = layers.after("conv", i)
        # All positions of a channel are inputs of their own where no mean is taken over them.
        shape = np.shape(layers.params[following]["kernel"])
        positions = shape[0] // width if len(shape) == 2 else 1
        channels.append(layers.narrowed("conv", i, following, positions, share))
    dense = tuple(
        layers.narrowed("dense", i, layers.after("dense", i), 1, share)
        for i in range(len(model["dense"]))
    )
    return {"channels": tuple(channels), "dense": dense}, layers.variables


class _Layers:
    """A model's numbered layers, made narrower one after the other; the variables given stay as they are."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.variables = {
            collection: {name: dict(layer) for name, layer in layers.items()}
            for collection, layers in variables.items()
        }
        self.params = self.variables["params"]

    def after(self, kind: str, i: int) -> str:
        """The layer that reads the outputs of the i-th of a kind."""
        names = (f"{kind}_{i + 1}", *["dense_0"] * (kind == "conv"), "head")
        return next(name for name in names if name in self.params)

    def narrowed(self, kind: str, i: int, following: str, positions: int, share: float) -> int:
        """Takes units out of a layer and of the one that reads it; returns how many are left.

        positions: how often each unit stands among the inputs of a dense layer, units fastest.
        """
        own = np.asarray(self.params[f"{kind}_{i}"]["kernel"])
        reader = np.asarray(self.params[following]["kernel"])
        # (windows or positions, units, outputs): every input of the reader by the unit that it is of
        by_unit = reader.reshape(
            -1 if reader.ndim > 2 else positions, own.shape[-1], reader.shape[-1]
        )
        worth = _norms(own, -1) * _norms(by_unit, 1)
        units = _best(worth, share)
        for layers in self.variables.values():
            for name in {f"{kind}_{i}", *[f"norm_{i}"] * _normed(kind, self.params)} & set(layers):
                layers[name] = {k: np.asarray(x)[..., units] for k, x in layers[name].items()}
        window = reader.shape[:-2] if reader.ndim > 2 else ()
        kept = by_unit[:, units].reshape(*window, -1, reader.shape[-1])
        self.params[following] = {**self.params[following], "kernel": kept}
        return len(units)


def _normed(kind: str, params: Mapping[str, Any]) -> bool:
    """Whether norm_0, norm_1, ... are of this kind of layer: of the convolutions, where there are any."""
    return kind == "conv" or "conv_0" not in params


def _llama(model: Mapping[str, Any], variables: Mapping[str, Any], share: float) -> Changed:
    if model["scan_layers"]:
        raise UserError(
            "heads: config.model.scan_layers stacks the layers; export the run, and open it without"
        )
    N, K = model["heads"], model["kv_heads"]
    params = dict(variables["params"])
    for name in [name for name in params if name.startswith("block_")]:
        attention = dict(params[name]["attention"])
        give = _norms(np.asarray(attention["out"]["kernel"]), 0).reshape(K, N // K)
        reach = _norms(np.asarray(attention["value"]["kernel"]), 1)
        groups = _best(reach * np.linalg.norm(give, axis=1), share)
        heads = (groups[:, None] * (N // K) + np.arange(N // K)).ravel()
        chosen = {"query": heads, "query_norm": heads, "key": groups, "key_norm": groups}
        chosen["value"] = groups
        for part in set(chosen) & set(attention):
            # The heads are the last axis but one, but for the scale of one head's norm, (H,).
            attention[part] = {
                k: np.take(x, chosen[part], axis=-2) if np.ndim(x) > 1 else x
                for k, x in attention[part].items()
            }
        out = attention["out"]
        attention["out"] = {**out, "kernel": np.asarray(out["kernel"])[heads]}
        params[name] = {**params[name], "attention": attention}
    kept = {"heads": len(groups) * (N // K), "kv_heads": len(groups)}
    width = model["head_width"] or head_width(model["width"], N)
    return {**kept, "head_width": width}, {**variables, "params": params}


def _norms(array: np.ndarray, axis: int) -> np.ndarray:
    """float64: the norm of what an array has at each place of an axis."""
    rows = np.moveaxis(array.astype(np.float64), axis, 0)
    return np.linalg.norm(rows.reshape(len(rows), -1), axis=1)


def _best(worth: np.ndarray, share: float) -> np.ndarray:
    """The places, in order, of what is left: at least one."""
    kept = max(1, round((1 - share) * len(worth)))
    return np.sort(np.argsort(-worth, kind="stable")[:kept])


UNITS = {"mlp": _mlp, "cnn": _cnn}
HEADS = {"llama": _llama}
