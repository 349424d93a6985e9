"""What a task answers: what a batch means to the model, to the loss and to the reader. Pure.

A task is a frozen dataclass. `inputs`, `loss`, `statistics`, `summarize` and `predict` are its own;
the other answers have defaults. Everything on the device is a plain sum over examples, so that any
mesh and any batch size give the same number. Nothing here knows a device, a file or a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, kl_divergence
from bigjax.models.generate import Sampling
from bigjax.tasks import scores


class Task:
    """The base class of every task.

    input: the batch's key, or keys, that the model is called with.
    COMPARES_EXAMPLES: whether the loss of an example depends on the others of its batch.
    TOKENS: which of its inputs are tokens, where its outputs are logits of tokens.
    PREDICTS: whether `predict` says anything of an example.
    MAIN_METRIC: what a choice is made by where nobody says otherwise, and whether more is better.
    """

    input: str | Sequence[str | None]
    COMPARES_EXAMPLES: ClassVar[bool] = False
    TOKENS: ClassVar[tuple[int, ...]] = ()
    PREDICTS: ClassVar[bool] = True
    MAIN_METRIC: ClassVar[tuple[str, str]] = ("accuracy", "max")

    def inputs(self, batch: Mapping[str, jax.Array]) -> tuple:
        """The model's positional inputs.

        Raises:
          UserError: the batch lacks one; the nearest key is named.
        """
        return scores.inputs(batch, self.input)

    def loss(self, outputs: Any, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The training loss as (sum, weight), and other pairs to show.

        outputs: what the model gave for the batch; batch["mask"] (B,) is 0 for rows of padding.
        """
        raise NotImplementedError

    def statistics(self, outputs: Any, batch: dict) -> Any:
        """Sums over the batch's examples, a tree of arrays: all that `summarize` needs of them."""
        raise NotImplementedError

    def collect(self, outputs: Any, batch: dict) -> dict[str, jax.Array]:
        """Arrays (B, ...) that `summarize` must see whole, example by example."""
        return {}

    def summarize(self, statistics: Any, collected: dict[str, Any]) -> dict[str, Any]:
        """Metric -> number (or nested list), from the statistics of all batches, on the host."""
        raise NotImplementedError

    def predict(self, outputs: Any) -> dict[str, jax.Array]:
        """Predictions of one forward pass, arrays (B, ...)."""
        raise NotImplementedError

    def classes(self, outputs: int) -> tuple[str, int, int | None] | None:
        """Where integer labels are classes: the batch's key, how many a model of so many outputs can
        give, and a label that is not scored, if there is one. Others would be passed over in silence.
        """
        return None

    def outputs(self, source: Any) -> int | None:
        """How many outputs a model needs for the examples of the train split; None: it says nothing."""
        return None

    @property
    def decodes(self) -> bool:
        """Whether evaluation needs what `decode` gives."""
        return False

    @property
    def writes(self) -> bool:
        """Whether `decode` writes token by token, and so asks the model more than once."""
        return False

    def decode(self, apply: Callable[..., Any], variables: Any, batch: dict) -> dict:
        """Predictions that take more than one forward pass, such as written text."""
        return {}

    def rewritten(
        self,
        apply: Callable[..., Any],
        variables: Any,
        batch: dict,
        sampling: Callable[[int], Sampling],
        prompt: int | None,
        key: jax.Array,
    ) -> dict:
        """The batch with text that a model writes in place of its own, of the same shapes.

        sampling: length -> how at most so many tokens are chosen. prompt: tokens of a row that are kept.
        """
        raise NotImplementedError

    def check_rewritten(
        self, features: Mapping[str, Any], prompt: int | None, stop: Sequence[int]
    ) -> None:
        """Refuses what `rewritten` cannot be told, for the features of a source.

        Raises:
          UserError: says what is missing or too much.
        """

    def present(
        self,
        predicted: Mapping[str, np.ndarray],
        batch: Mapping[str, np.ndarray],
        source: Any,
        corpus: Any = None,
    ) -> dict[str, Any]:
        """The columns that a person is shown, from predictions and the batch they were made of.

        source: the train split, with its class names or tokenizer.
        corpus: texts of `task.corpus`, and what `predict` gave of them.
        """
        return dict(predicted)

    def distributions(self, outputs: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """What the outputs say of each unit that the loss counts, as the logits of a softmax.

        Returns:
          (logits (*U, ..., K), mask (*U,)): the units are examples or tokens; axes between are several
          distributions of one unit, such as its labels.

        Raises:
          UserError: the outputs are no distributions.
        """
        raise UserError(
            f"config.method: the outputs of the task {type(self).__name__} are no distributions; "
            "objectives that need some: use 'soft', 'logits' or one of features"
        )

    def units(self, outputs: Any, batch: dict) -> jax.Array:
        """The mask (*U,) of what the loss counts one by one: examples, or tokens."""
        if type(self).distributions is Task.distributions:
            return batch["mask"]
        return self.distributions(outputs, batch)[1]

    def targets(self, outputs: Any, batch: dict) -> jax.Array:
        """The right class in each of `distributions`, int (*U, ...)."""
        raise NotImplementedError

    def divergence(
        self, teacher: Any, student: Any, batch: dict, temperature: jax.Array | float
    ) -> Pair:
        """How far the student's outputs are from the teacher's, as (sum, weight); 0 where equal.

        By default KL(softmax(t / T) || softmax(s / T)) of `distributions`, summed over those of a unit.

        Raises:
          UserError: the task has none.
        """
        self.check_divergence()
        (t, _), (s, mask) = (self.distributions(x, batch) for x in (teacher, student))
        return kl_divergence(t, s, mask, temperature)

    def check_divergence(self) -> None:
        """Refuses a task for which distillation has no meaning yet."""
        own = type(self)
        if own.divergence is Task.divergence and own.distributions is Task.distributions:
            raise UserError(
                f"config.method: the task {own.__name__} has no divergence between a teacher's "
                "outputs and a student's; define `distributions` in it (see bigjax/tasks/base.py)"
            )
