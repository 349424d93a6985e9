"""Published sums of objectives, as the values that `config.method` takes: `dict(type="distill", **tinybert(4, 12))`."""

from __future__ import annotations

from typing import Any


def distilbert(
    layers: int, teacher_layers: int, segments: str | None = "segments"
) -> dict[str, Any]:
    """5 soft targets (T = 2) + 2 masked LM + 1 cosine of the last hidden states.

    Sanh et al. 2019, section 2, "triple loss"; the weights are those of the authors' published command.
    For the student's first weights: `config.init.layers`, every other block of the teacher.
    """
    last = ((layers - 1, teacher_layers - 1),)
    return {
        "alpha": 1.0,
        "objectives": {
            "soft": {"type": "soft", "weight": 5.0, "temperature": 2.0},
            "labels": {"type": "labels", "weight": 2.0},
            "cosine": {
                "type": "hidden_states",
                "layers": last,
                "distance": "cosine",
                "projection": False,
                "segments": segments,
            },
        },
    }


def tinybert(layers: int, teacher_layers: int, segments: str | None = "segments") -> dict[str, Any]:
    """Embeddings, hidden states, attention scores and predictions, each with weight 1.

    Jiao et al. 2020, eqs. 7 to 11; block m of the student learns from block m g, g = teacher_layers / layers
    (their "uniform" mapping). What a first stage without predictions needs is the same less "soft".
    """
    each = teacher_layers // layers
    pairs = tuple((block, (block + 1) * each - 1) for block in range(layers))
    of_layers = {"layers": pairs, "segments": segments}
    embeddings = {"layers": ((0, 0),), "module": "embedding_norm", "segments": segments}
    return {
        "alpha": 1.0,
        "objectives": {
            "embeddings": {"type": "hidden_states", **embeddings},
            "hidden": {"type": "hidden_states", **of_layers},
            "attention": {"type": "attention_scores", **of_layers},
            "soft": {"type": "soft", "temperature": 1.0},
        },
    }


def minilm(
    layers: int, teacher_layers: int, heads: int, segments: str | None = "segments"
) -> dict[str, Any]:
    """Attention and values of the last block alone, without labels (Wang et al. 2020, eq. 8)."""
    last = ((layers - 1, teacher_layers - 1),)
    relations = {"type": "relations", "layers": last, "heads": heads, "segments": segments}
    return {"alpha": 1.0, "objectives": {"relations": relations}}
