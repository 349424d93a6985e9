"""Knowledge distillation: a student learns from the outputs of other runs' models.

A teacher is `frozen["teacher"]` (or "teachers.NAME"): read by the step, never in the optimizer state, never
in a checkpoint. It sees the very examples that the student sees, after augmentation, in its own
preprocessing; no gradient reaches it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.losses import Loss
from bigjax.core.marks import RunReference, Traced
from bigjax.core.method import Batch, Cached, Facts, Method, Scope
from bigjax.methods.distill import cached, features
from bigjax.methods.distill.features import WithFeatures
from bigjax.methods.distill.objectives import ONLY_TEACHER, Objective, Seen, Soft


@dataclasses.dataclass(frozen=True)
class Distill(Method):
    """(1 - alpha) loss(labels, student) + alpha sum_i weight_i scale_i O_i(teacher, student).

    Without `objectives`, the one O is the task's divergence D(teacher, student; T) times T^2 (Hinton,
    Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2): for classes
    KL(softmax(t / T) || softmax(s / T)), see `Task.divergence`. All terms are sums over the units of the
    task's loss (examples or tokens), divided once by their weight.

    teacher: the teacher's run folder; "../NAME" names an earlier stage of a pipeline.
    teachers: name -> folder, where there are several: each objective says which it listens to.
    temperature: T; that of every objective which says none of its own.
    alpha: weight of the teacher's terms; the labels' has 1 - alpha.
    objectives: name -> what is compared and how much it counts, see `objectives`.
    classes: this run's name of a class -> the teachers', where they differ. Outputs are matched by name;
        a teacher with more classes is taken as it judges among this run's.
    cache: a folder in which the teachers' outputs on the train split are written once, and read in place of
        the teachers; "../NAME" is seen from the run's. cache_top: of how many classes, see `cached`.
    """

    teacher: RunReference | None = None
    temperature: Traced = 2.0
    alpha: Traced = 0.5
    teachers: Mapping[str, RunReference] = dataclasses.field(default_factory=dict)
    objectives: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache: str | None = None
    cache_top: int | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature: {self.temperature!r} must be more than 0")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha: {self.alpha} must lie between 0 and 1")
        if self.cache_top is not None and (self.cache is None or self.cache_top < 1):
            raise UserError(f"cache_top: {self.cache_top} must be at least 1, of a `cache`")
        if not self.references:
            raise UserError("teacher: name the run that teaches, its folder")
        for name, objective in self._objectives.items():
            if objective.teacher not in self.references:
                known = ", ".join(self.references)
                hint = did_you_mean(objective.teacher, self.references)
                raise UserError(
                    f"objectives.{name}.teacher: no '{objective.teacher}'{hint}; known: {known}"
                )

    @property
    def references(self) -> dict[str, str]:
        """Name of a teacher -> its name among `Scope.references`."""
        found = {ONLY_TEACHER: "teacher"} if self.teacher is not None else {}
        return found | {name: f"teachers.{name}" for name in self.teachers}

    @property
    def cached(self) -> Cached | None:
        return Cached(self.cache, self.cache_top) if self.cache else None

    @property
    def renamed(self) -> Mapping[str, str]:
        return self.classes

    @property
    def _objectives(self) -> Mapping[str, Objective]:
        return self.objectives or {"teacher_kl": Soft(teacher=next(iter(self.references)))}

    def check(self, facts: Facts) -> None:
        for name, objective in self._objectives.items():
            try:
                objective.check(facts)
                self._check_outputs(objective, facts)
                if self.cache and objective.features:
                    raise UserError("the cache holds no features; leave out method.cache")
                if self.cache_top and objective.NEEDS_ALL:
                    raise UserError(
                        "needs all of the teacher's outputs; leave out method.cache_top"
                    )
                if objective.features:
                    objective.check_shapes(*self._shapes(objective, facts))
            except UserError as error:
                raise UserError(f"config.method.objectives.{name}: {error}") from None

    def _check_outputs(self, objective: Objective, facts: Facts) -> None:
        """Refuses a teacher whose outputs are more or fewer, where they are compared one by one."""
        if objective.features or facts.task.COMPARES_EXAMPLES:
            return
        calls = facts.calls[self.references[objective.teacher]], facts.calls["model"]
        theirs, ours = (features.shapes(call).get("", (None,)) for call in calls)
        if theirs[-1] != ours[-1]:
            raise UserError(
                f"the teacher '{objective.teacher}' has {theirs[-1]} outputs, the student {ours[-1]}, and "
                "no names say which are the same"
            )

    def parameters(self, rng: jax.Array, facts: Facts) -> dict[str, Any]:
        found = {}
        for i, (name, objective) in enumerate(self._objectives.items()):
            if objective.features:
                shapes = self._shapes(objective, facts)
                if own := objective.parameters(jax.random.fold_in(rng, i), *shapes):
                    found[name] = own
        return found

    def _shapes(self, objective: Objective, facts: Facts) -> tuple[Any, Any]:
        """Shapes of the features that an objective compares, the teacher's and the student's."""
        calls = (facts.calls[self.references[objective.teacher]], facts.calls["model"])
        keys = ("teacher_feature", "student_feature")
        return tuple(
            features.find(features.shapes(call), path, key)
            for call, path, key in zip(calls, objective.features, keys, strict=True)
        )

    def loss(self, params: Any, batch: Batch, scope: Scope) -> Loss:
        alpha, objectives = scope.hyper["alpha"], self._objectives
        scope = self._showing_features(scope)
        (outputs, inside), collections = scope.apply(params, batch)
        (total, weight), metrics = scope.loss(outputs, batch)
        metrics = {**metrics, "label_loss": (total, weight)}
        total = (1 - alpha) * total
        heard = dict.fromkeys(objective.teacher for objective in objectives.values())
        taught = {name: self._taught(name, batch, scope, outputs) for name in heard}
        for name, objective in objectives.items():
            now = self._now(name, objective, scope)
            theirs, inside_theirs = taught[now.teacher]
            seen = Seen(scope.task, batch, theirs, outputs)
            if now.features:
                compared = (inside_theirs[now.features[0]], inside[now.features[1]])
                seen = seen._replace(features=compared, own=scope.own.get(name))
            pair = now.pair(seen)
            metrics[f"objectives/{name}" if self.objectives else name] = pair
            total += alpha * (now.weight * now.scale) * pair[0]
        return Loss(total, weight, metrics, collections)

    def _taught(self, name: str, batch: Batch, scope: Scope, outputs: Any) -> tuple[Any, Any]:
        """(a teacher's outputs, its features), of the batch's columns or of the teacher itself.

        The barrier keeps the two programs the same from here on, and so a cached step the online one.
        """
        key = self.references[name]
        if key in scope.references:
            return jax.lax.optimization_barrier(scope.read(key, batch))
        found = cached.outputs(key, batch, outputs.shape[-1])
        return jax.lax.optimization_barrier((found, {}))

    def _showing_features(self, scope: Scope) -> Scope:
        """The scope with models that also give the features which objectives compare."""
        wanted = [(o.teacher, *o.features) for o in self._objectives.values() if o.features]

        def showing(model: Any, paths: set[str]) -> WithFeatures:
            return WithFeatures(model, tuple(sorted(paths)))

        references = {}
        for name, key in self.references.items():
            if key not in scope.references:  # cached
                continue
            theirs = {path for teacher, path, _ in wanted if teacher == name}
            reference = scope.references[key]
            references[key] = dataclasses.replace(reference, model=showing(reference.model, theirs))
        own = showing(scope.model, {path for _, _, path in wanted})
        return scope.replace(model=own, references=references)

    def _now(self, name: str, objective: Objective, scope: Scope) -> Objective:
        """The objective with the values of this step in place of its traced fields."""
        own = f"objectives.{name}."
        hyper = {k.removeprefix(own): v for k, v in scope.hyper.items() if k.startswith(own)}
        objective = dataclasses.replace(objective, **hyper)
        return objective.at(scope.step, scope.total_steps, scope.hyper["temperature"])
