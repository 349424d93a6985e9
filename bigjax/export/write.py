"""A run made into a folder that is enough by itself: checked against the run before it has its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.export import onnx, stablehlo
from bigjax.export.answer import OUTPUTS, Answer, answer_of
from bigjax.export.card import CARD, card_of, signature
from bigjax.export.open import on_cpu, open_exported
from bigjax.export.weights import GGUF
from bigjax.methods.quantized import Intercepted
from bigjax.pretrained.export import fill_own, fill_published
from bigjax.pretrained.families import folder_of
from bigjax.pretrained.gguf_write import write_gguf
from bigjax.run.files import publish, write_json

ROWS = 3  # of the train split, that an export is compared on
# kind -> its choices, the first the default
FORMATS = {
    "safetensors": (),
    "stablehlo": ("inside", "beside"),
    "onnx": (),
    "gguf": ("f16", "q8_0", "q4_0"),
    "peft": (),  # adapters alone, see `adapters`
}
# How far the largest output may be off, as a part of the largest one in size (of 1, if that is more).
EXACT, HALF = 1e-5, 2e-2
# SmolLM2-135M was 0.029 off in q8_0 and 0.39 in q4_0, a tiny model of random weights 0.004 in q8_0.
BANDS = {"gguf:f16": 2e-3, "gguf:q8_0": 1e-1, "gguf:q4_0": 0.5}


@dataclasses.dataclass(frozen=True)
class Format:
    """What `--format` asks for, "KIND" or "KIND:CHOICE"."""

    kind: str
    choice: str = ""

    def __str__(self) -> str:
        return ":".join(filter(None, (self.kind, self.choice)))


def parsed_format(text: str) -> Format:
    """Raises UserError, with the nearest name, for what is no format."""
    kind, colon, choice = text.partition(":")
    if kind not in FORMATS:
        known = ", ".join(":".join((k, "|".join(c))) if c else k for k, c in FORMATS.items())
        raise UserError(f"--format={text}: unknown{did_you_mean(kind, FORMATS)}; known: {known}")
    choices = FORMATS[kind]
    if colon and choice not in choices:
        known = ", ".join(choices) or "none"
        raise UserError(
            f"--format={text}: {kind} has the choices {known}{did_you_mean(choice, choices)}"
        )
    return Format(kind, choice or next(iter(choices), ""))


def write_export(
    run: Any, variables: Any, form: Format, family: str | None, folder: Path
) -> Mapping[str, Any]:
    """Writes a run's variables with all that is needed to use them; returns the card.

    The folder appears whole or not at all, and only if what it answers is what the run answers.

    Args:
      run: a `bigjax.loop.open.Opened`. variables: on the host.
      family: whose published layout the weights come in; None: our own names.

    Raises:
      UserError: the folder is there; the format cannot say this model or needs what is not installed;
        what was written answers otherwise than the run.
    """
    if folder.exists():
        raise UserError(f"--output={folder}: is there already")
    if form.kind in ("safetensors", "gguf") and isinstance(run.setup.program.model, Intercepted):
        raise UserError(
            f"--format={form}: holds weights alone, and config.adapt's quantize_inputs changes what layers do; "
            "take stablehlo or onnx"
        )
    source = run.setup.sources["train"]
    answer = answer_of(run.setup.program, source.features)
    if form.kind == "onnx":  # where there are no loops to write text in
        answer = dataclasses.replace(answer, writes=False)
    names = answer.needed(variables)
    if not names:
        raise UserError("export: the model's outputs depend on no feature of the data")
    rows = source.read(np.arange(min(ROWS, len(source))))
    rows = {n: x for n, x in _rows_of(answer, rows).items() if n in names}
    card = card_of(run, answer, str(form), family)
    card["signature"] = signature(answer, variables, names)
    allowed = _allowed(form, run.config.get("precision.policy"))

    def write(private: Path) -> None:
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save(private)
        card["sha256"] = _WRITERS[form.kind](run, answer, names, variables, private, form, family)
        write_json(private / CARD, card)
        off = difference(
            on_cpu(open_exported(private, trust=True).run, rows),
            on_cpu(lambda rows: jax.jit(answer)(variables, rows), rows),
        )
        if not off <= allowed:  # NaN is not
            raise UserError(
                f"--format={form}: what was written answers otherwise than the run: {off:.2g} off on "
                f"{len(next(iter(rows.values())))} rows, {allowed:g} is allowed; nothing is kept"
            )
        card["checked"] = dict(rows=ROWS, largest_difference=float(f"{off:.2g}"), allowed=allowed)
        write_json(private / CARD, card)

    publish(folder, write)
    return card


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest difference of floating-point outputs, as a part of the largest in size, or of 1."""
    worst = 0.0
    for name, value in expected.items():
        if name.partition("/")[0] == OUTPUTS and np.issubdtype(value.dtype, np.floating):
            value, other = np.float64(value), np.float64(found[name])
            same = (value == other) | (np.isnan(value) & np.isnan(other))
            scale = max(1.0, np.max(np.abs(value), where=np.isfinite(value), initial=0.0))
            off = np.where(
                same, 0.0, np.abs(np.where(same, 0.0, value) - np.where(same, 0.0, other))
            )
            worst = float(np.max([worst, np.max(off, initial=0.0) / scale]))
    return worst


def _rows_of(answer: Answer, rows: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Rows of the source; noise where the method makes the model's inputs itself."""
    if all(name in rows for name in answer.features):
        return rows
    rng, made = np.random.default_rng(0), {}
    for name, (shape, dtype) in answer.features.items():
        made[name] = rng.uniform(size=(ROWS, *shape)).astype(dtype)
    return made


def _allowed(form: Format, policy: str) -> float:
    band = BANDS.get(str(form), EXACT)
    return band if policy == "float32" else max(band, HALF)


def _safetensors(run, answer, names, variables, private, form, family) -> None:
    model, source = run.setup.values["model"], run.setup.sources["train"]
    if family is None:
        fill_own(private, variables, model)
    else:
        init = run.config.values.get("init") or {}
        origin = folder_of(init["source"]) if init.get("family") else None
        fill_published(private, variables, model, family, source, answer.preprocess, origin)


def _stablehlo(run, answer, names, variables, private, form, family) -> str:
    return stablehlo.write(answer, names, variables, private, form.choice == "inside")


def _onnx(run, answer, names, variables, private, form, family) -> None:
    onnx.write(answer, names, variables, private)


def _gguf(run, answer, names, variables, private, form, family) -> None:
    if family != "llama":
        what = family or f"a model of type '{run.setup.values['model']['type']}'"
        raise UserError(f"--format=gguf: can say the family llama alone, not {what}")
    tokenizer = getattr(run.setup.sources["train"], "tokenizer", None)
    write_gguf(private / GGUF, variables, run.setup.values["model"], form.choice, tokenizer)


# Each writes into a folder; what it gives is the program's sha256, where there is one.
_WRITERS: dict[str, Callable[..., str | None]] = {
    "safetensors": _safetensors,
    "stablehlo": _stablehlo,
    "onnx": _onnx,
    "gguf": _gguf,
}
