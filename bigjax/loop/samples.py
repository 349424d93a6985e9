"""The evaluator of generated pictures: a grid for a person, and what a classifier makes of them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.assemble import Setup
from bigjax.build.weights import run_folder
from bigjax.core.errors import UserError
from bigjax.core.marks import RunReference
from bigjax.data.sources import Arrays
from bigjax.data.transforms import Normalize
from bigjax.loop.evaluators import Evaluator, Seen
from bigjax.loop.open import open_run
from bigjax.mesh import distributed
from bigjax.methods.flow_matching import UNCONDITIONAL, FlowMatching, guided, sample
from bigjax.run import pictures as files

SHOWN = 10  # pictures of each class in the grid


@dataclasses.dataclass(frozen=True)
class Samples(Evaluator):
    """Draws pictures from a flow, class by class, and writes `samples/NAME/STEP.png`, a row a class.

    The report shows the newest; NAME is the evaluator's.

    Metrics: "deviation", of a pixel between the pictures of one class, on average, black being 0 and
    white 1: a model that draws one picture of each class has 0; the data's own is worth comparing.
    With a classifier "accuracy": how often it finds the class that was asked for, and
    "accuracy_per_class".

    classifier: the folder of a run that classifies such pictures, as the data source gives them; "../NAME"
      is an earlier stage of a pipeline.
    per_class: pictures drawn of each class.
    steps: of the midpoint rule. guidance: w of `bigjax.methods.flow_matching.guided`.
    white: the brightest a pixel of the data source can be; black is 0.
    """

    classifier: RunReference | None = None
    per_class: int = 100
    steps: int = 20
    guidance: float = 1.0
    white: float = 255.0

    def __post_init__(self) -> None:
        if self.per_class < 1 or self.steps < 1:
            raise UserError("per_class and steps must be at least 1")
        if self.guidance < 0:
            raise UserError(f"guidance: {self.guidance} must be 0 or more")
        if self.white <= 0:
            raise UserError(f"white: {self.white} must be more than 0")

    def check(self, setup: Setup, folder: Path) -> None:
        super().check(setup, folder)
        method, source = setup.program.method, setup.sources["train"]
        if not isinstance(method, FlowMatching):
            raise UserError(
                f"samples are drawn from a flow: config.method.type must be flow_matching, not "
                f"{type(method).__name__}"
            )
        dropout = setup.values["method"]["label_dropout"]  # the method's own may be another run's
        if self.guidance and (method.label is None or dropout == 0):
            raise UserError(
                "guidance needs a model that has learned both with labels and without: set "
                "config.method.label and label_dropout, or guidance=0"
            )
        if method.label is not None and source.num_classes is None:
            raise UserError("the data do not say how many classes there are")
        for transform in setup.program.preprocess:
            if not isinstance(transform, Normalize) or transform.key != method.input:
                raise UserError(
                    f"{type(transform).__name__} in config.data.preprocess cannot be undone, so that "
                    f"no picture can be made; use normalize of '{method.input}'"
                )
        if self.classifier is not None:
            if method.label is None:
                raise UserError("classifier: config.method.label is None, so no class is asked for")
            run_folder(folder, self.classifier, "classifier")

    def evaluate(self, seen: Seen) -> dict[str, Any]:
        pictures, labels = self.draw(seen)
        shown = pictures[:, :SHOWN] / self.white
        grid = files.grid(shown.reshape(-1, *shown.shape[2:]), columns=shown.shape[1])
        files.save(seen.folder, seen.step, seen.name, grid)
        values = {"deviation": float(np.std(pictures / self.white, axis=1).mean())}
        if self.classifier is None:
            return values
        hits = self.classified(seen, pictures, labels) == labels
        return values | {
            "accuracy": float(hits.mean()),
            "accuracy_per_class": hits.mean(axis=1).tolist(),
        }

    def draw(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """(pictures (K, per_class, H, W, C) as the data source gives them, their classes (K, per_class))."""
        program, source = seen.setup.program, seen.setup.sources["train"]
        method = program.method
        classes = [UNCONDITIONAL] if method.label is None else range(source.num_classes)
        shape, dtype = source.features[method.input]
        variables, drawn = seen.variables, []
        labels = np.repeat(np.asarray(classes, np.int32)[:, None], self.per_class, axis=1)
        for number, row in enumerate(labels):
            noise = jax.random.normal(
                jax.random.fold_in(seen.rng, number), (self.per_class, *shape)
            )
            found = _sampled(program.model, variables, noise, row, self.steps, self.guidance)
            drawn.append(distributed.whole(found))
        pictures = np.stack(drawn)
        for transform in reversed(program.preprocess):
            pictures = transform.inverse(pictures)
        pictures = np.clip(pictures, 0, self.white)
        return (pictures.round() if dtype.kind in "iu" else pictures).astype(dtype), labels

    def classified(self, seen: Seen, pictures: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The class that the classifier gives each picture, int (K, per_class)."""
        assert self.classifier is not None
        run = open_run(run_folder(seen.folder, self.classifier, "classifier"), splits=())
        method = seen.setup.program.method
        rows = Arrays(
            {
                method.input: pictures.reshape(-1, *pictures.shape[2:]),
                method.label: labels.reshape(-1),
            }
        )
        found = [one["predicted"]["class"] for one in run.predictions(rows)]
        return np.concatenate(found).reshape(labels.shape)


@functools.partial(jax.jit, static_argnames=("model", "steps", "guidance"))
def _sampled(
    model: Any, variables: Any, noise: jax.Array, labels: jax.Array, steps: int, guidance: float
) -> jax.Array:
    def velocity(x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return model.apply(variables, x, t, labels, train=False)

    return sample(guided(velocity, guidance), noise, labels, steps)
