"""The keys of a published config.json and the fields of our models: one table, read both ways. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigjax.core.errors import UserError, did_you_mean
from bigjax.models.transformer import BIASES

NEEDED = object()  # a key that every config.json of the family has

# Names of activations in published files -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
}


def activations(usual: str) -> dict[str, str]:
    """`ACTIVATIONS`, of which the family's usual name is the one that is written."""
    others = {theirs: ours for theirs, ours in ACTIVATIONS.items() if theirs != usual}
    return {**others, usual: ACTIVATIONS[usual]}


class Key(NamedTuple):
    """One key.

    theirs, ours: its name in config.json, and the field of our model.
    default: what config.json means, in its own words, where it does not say the key, or null.
    words: their words -> ours, where the two differ; of several words for one the last is written.
    null: whether null says something of its own.
    """

    theirs: str
    ours: str
    default: Any = NEEDED
    words: Mapping[Any, Any] | None = None
    null: bool = False


def read(keys: Sequence[Key], published: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from a config.json.

    Raises:
      UserError: it lacks a key, or says something that is not known here.
    """
    found = {}
    for theirs, ours, default, words, null in keys:
        value = published.get(theirs)
        if value is None and not (null and theirs in published):
            value = default
        if value is NEEDED:
            raise UserError(f"config.init: the checkpoint's config.json lacks '{theirs}'")
        if words is not None:
            if value not in words:
                known = ", ".join(map(repr, words))
                raise UserError(
                    f"config.init: {theirs} {value!r} is not known here"
                    f"{did_you_mean(str(value), map(str, words))}; {known} are"
                )
            value = words[value]
        found[ours] = tuple(value) if isinstance(value, list) else value
    return found


def write(keys: Sequence[Key], model: Mapping[str, Any]) -> dict[str, Any]:
    """The way back; UserError where config.json has no word for what the model says."""
    found = {}
    for theirs, ours, _, words, _ in keys:
        value = model[ours]
        if words is not None:
            back = {our_word: their_word for their_word, our_word in words.items()}
            if value not in back:
                raise UserError(
                    f"export: {theirs} has no word for model.{ours} {value!r}; "
                    f"it has some for {', '.join(map(repr, back))}"
                )
            value = back[value]
        found[theirs] = list(value) if isinstance(value, tuple) else value
    return found


def read_biases(
    switches: Mapping[str, Sequence[str]], published: Mapping[str, Any]
) -> tuple[str, ...]:
    """The biases of ours (see `models.transformer.BIASES`) that keys of a config.json switch on."""
    on = {part for key, parts in switches.items() if published.get(key) for part in parts}
    return tuple(part for part in BIASES if part in on)


def write_biases(
    switches: Mapping[str, Sequence[str]], biases: Sequence[str]
) -> tuple[dict[str, bool], tuple[str, ...]]:
    """The way back: the keys, and the biases that none of them switches."""
    said, left = {}, set(biases)
    for key, parts in switches.items():
        said[key] = set(parts) <= left
        left -= set(parts) if said[key] else set()
    return said, tuple(part for part in BIASES if part in left)


def check(fixed: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Raises UserError where a config.json says otherwise than what our model always computes."""
    for key, value in fixed.items():
        if published.get(key) not in (None, value):
            raise UserError(f"config.init: {key} {published[key]!r} is not known; {value!r} is")


def check_heads(model: Mapping[str, Any]) -> None:
    """Raises UserError where heads do not share the width evenly: no word of config.json says it."""
    width, heads, own = model["width"], model["heads"], model.get("head_width")
    if own not in (None, width / heads):
        raise UserError(
            f"export: config.json has no word for model.head_width: {heads} heads of {own} in a width of {width}"
        )


def outputs_of(published: Mapping[str, Any], default: int) -> int:
    """How many classes a config.json tells: by the names of its labels, or by their number."""
    return len(published.get("id2label") or ()) or published.get("num_labels") or default


def labels_of(outputs: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The labels of a config.json; transformers counts them to know the size of the head.

    names: of the classes; default: those that transformers makes up.
    """
    names = names if names and len(names) == outputs else [f"LABEL_{i}" for i in range(outputs)]
    return dict(
        id2label={str(i): name for i, name in enumerate(names)},
        label2id={name: i for i, name in enumerate(names)},
    )
