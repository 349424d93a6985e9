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

from bigjax.config.signature import bind, parameters
from bigjax.core import settings
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.losses import Loss
from bigjax.core.marks import ModelReference, Traced
from bigjax.core.method import Batch, Cached, Call, Facts, Method, Scope
from bigjax.methods.distill import cached, features
from bigjax.methods.distill.features import WithFeatures
from bigjax.methods.distill.objectives import EMA, ONLY_TEACHER, Objective, Seen, Soft
from bigjax.methods.distill.written import Written


@dataclasses.dataclass(frozen=True)
class Distill(Method):
    """(1 - alpha) loss(labels, student) + alpha sum_i weight_i scale_i O_i(teacher, student).

    Without `objectives`, the one O is the task's divergence D(teacher, student; T) times T^2 (Hinton,
    Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2): for classes
    KL(softmax(t / T) || softmax(s / T)), see `Task.divergence`. All terms are sums over the units of the
    task's loss (examples or tokens), divided once by their weight.

    teacher: the teacher's run folder; "../NAME" names an earlier stage of a pipeline. A published checkpoint,
        or what is otherwise than in the run: a dict, see `bigjax.core.settings.Teacher`.
    teachers: name -> the same, where there are several: each objective says which it listens to.
    temperature: T; that of every objective which says none of its own.
    alpha: weight of the teacher's terms; the labels' has 1 - alpha.
    objectives: name -> what is compared and how much it counts, see `objectives`.
    classes: this run's name of a class -> the teachers', where they differ. Outputs are matched by name;
        a teacher with more classes is taken as it judges among this run's.
    tokens: where the teachers' tokenizer is another one whose tokens can be told apart by ours: a file .npy,
        int (V,), of the teachers' id of each of our V tokens; "../NAME" is seen from the run's folder.
    cache: a folder in which the teachers' outputs on the train split are written once, and read in place of
        the teachers; "../NAME" is seen from the run's. cache_top: of how many classes, see `cached`.
        cache_views: on the very augmented examples of every epoch of this run (its seed, its length).
    written: text of a model's own in place of the data's, a dict: see `bigjax.methods.distill.written`.
    """

    teacher: ModelReference | None = None
    temperature: Traced = 2.0
    alpha: Traced = 0.5
    teachers: Mapping[str, ModelReference] = dataclasses.field(default_factory=dict)
    objectives: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokens: str | None = None
    cache: str | None = None
    cache_top: int | None = None
    cache_views: bool = False
    written: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature: {self.temperature!r} must be more than 0")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha: {self.alpha} must lie between 0 and 1")
        if self.cache_views and self.cache is None:
            raise UserError("cache_views: of a `cache`; name its folder")
        if self.cache_top is not None and (self.cache is None or self.cache_top < 1):
            raise UserError(f"cache_top: {self.cache_top} must be at least 1, of a `cache`")
        for key, one in (("teacher", self.teacher), *self.teachers.items()):
            if isinstance(one, Mapping):
                where = key if key == "teacher" else f"teachers.{key}"
                bind(where, "a teacher", parameters(settings.Teacher), one)
        for taken in {"source", EMA} & self.teachers.keys():
            raise UserError(f"teachers.{taken}: no teacher can be called so; give it another name")
        self._written  # noqa: B018 (a wrong keyword is told of before anything runs)
        if not self.references and not self.objectives:
            raise UserError("teacher: name the run that teaches, its folder")
        for name, objective in self._objectives.items():
            if objective.LISTENS and objective.teacher not in (*self.references, EMA):
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
        return Cached(self.cache, self.cache_top, self.cache_views) if self.cache else None

    @property
    def renamed(self) -> Mapping[str, str]:
        return self.classes

    @property
    def vocabulary(self) -> str | None:
        return self.tokens

    @property
    def _objectives(self) -> Mapping[str, Objective]:
        return self.objectives or {"teacher_kl": Soft(teacher=next(iter(self.references)))}

    @property
    def _written(self) -> Written | None:
        if self.written is None:
            return None
        found = Written(**bind("written", "text", parameters(Written), self.written))
        found.check_writer(self.references)
        return found

    def check(self, facts: Facts) -> None:
        if self._written is not None:
            self._written.check(facts, self.cache)
        for name, objective in self._objectives.items():
            try:
                objective.check(facts)
                self._check_teacher(objective, facts)
                for shapes in self._shapes(objective, facts):
                    objective.check_shapes(*shapes)
            except UserError as error:
                raise UserError(f"config.method.objectives.{name}: {error}") from None

    def _check_teacher(self, objective: Objective, facts: Facts) -> None:
        """Refuses a teacher that cannot give what the objective compares."""
        if not objective.LISTENS:
            return
        if objective.teacher == EMA and facts.train.ema_decay is None:
            raise UserError("the teacher 'ema' is kept by config.train.ema_decay: set it")
        if self.cache and objective.teacher != EMA:
            if objective.features:
                raise UserError("the cache holds no features; leave out method.cache")
            if self.cache_top and objective.NEEDS_ALL:
                raise UserError("needs all of the teacher's outputs; leave out method.cache_top")
        theirs = self._call(objective.teacher, facts)
        ours, path = features.shapes(facts.calls["model"]), objective.student_output
        if path is not None:
            features.find(ours, path, "student_output")
        # The number of outputs matters where they are compared one by one.
        if not (objective.features or facts.task.COMPARES_EXAMPLES):
            wide, own = (
                x.get(at, (None,)) for x, at in ((features.shapes(theirs), ""), (ours, path or ""))
            )
            if wide[-1] != own[-1]:
                raise UserError(
                    f"the teacher '{objective.teacher}' has {wide[-1]} outputs, the student {own[-1]}, "
                    "and no names say which are the same"
                )

    def _call(self, teacher: str, facts: Facts) -> Call:
        return facts.calls["model" if teacher == EMA else self.references[teacher]]

    def parameters(self, rng: jax.Array, facts: Facts) -> dict[str, Any]:
        found = {}
        for i, (name, objective) in enumerate(self._objectives.items()):
            for shapes in self._shapes(objective, facts)[:1]:
                if own := objective.parameters(jax.random.fold_in(rng, i), *shapes):
                    found[name] = own
        return found

    def _shapes(self, objective: Objective, facts: Facts) -> list[tuple[Any, Any]]:
        """Shapes of the pairs of features that an objective compares, the teacher's and the student's."""
        if not objective.features:
            return []
        calls = (self._call(objective.teacher, facts), facts.calls["model"])
        keys = ("teacher_feature", "student_feature")
        return [
            tuple(
                features.find(features.shapes(call), path, key)
                for call, path, key in zip(calls, pair, keys, strict=True)
            )
            for pair in objective.features
        ]

    def init(self, rng: jax.Array, variables: Any, rows: int) -> Any:
        kept = {name: objective.memory() for name, objective in self._objectives.items()}
        return {name: memory for name, memory in kept.items() if memory is not None} or None

    def prepare(self, params: Any, batch: Batch, scope: Scope) -> tuple[Batch, Any]:
        memory = scope.memory
        if memory is not None:
            memory = {
                name: self._now(name, self._objectives[name], scope).turned(own)
                for name, own in memory.items()
            }
        if self._written is not None:
            batch = self._written.batch(self.references, params, batch, scope)
        return batch, memory

    def loss(self, params: Any, batch: Batch, scope: Scope) -> Loss:
        alpha, objectives = scope.hyper["alpha"], self._objectives
        scope = self._showing_features(scope)
        (outputs, inside), collections = scope.apply(params, batch)
        (total, weight), metrics = scope.loss(outputs, batch)
        metrics = {**metrics, "label_loss": (total, weight)}
        total = (1 - alpha) * total
        heard = dict.fromkeys(one.teacher for one in objectives.values() if one.LISTENS)
        taught = {name: self._taught(name, batch, scope, outputs) for name in heard}
        memory = scope.memory
        for name, objective in objectives.items():
            now = self._now(name, objective, scope)
            theirs, inside_theirs = taught.get(now.teacher, (None, {}))
            seen = Seen(
                task=scope.task,
                batch=batch,
                teacher=theirs,
                student=outputs if now.student_output is None else inside[now.student_output],
                features=[(inside_theirs[t], inside[s]) for t, s in now.features],
                own=scope.own.get(name),
                memory=(memory or {}).get(name),
            )
            pair = now.pair(seen)
            if seen.memory is not None:
                memory = {**memory, name: now.remembered(seen)}
            metrics[f"objectives/{name}" if self.objectives else name] = pair
            total += alpha * (now.weight * now.scale) * pair[0]
        return Loss(total, weight, metrics, collections, memory)

    def _taught(self, name: str, batch: Batch, scope: Scope, outputs: Any) -> tuple[Any, Any]:
        """(a teacher's outputs, its features), of the batch's columns or of the teacher itself.

        The barrier keeps the two programs the same from here on, and so a cached step the online one.
        """
        if name == EMA:
            averaged = jax.lax.stop_gradient({"params": scope.ema, **scope.collections})
            return scope.model.apply(averaged, *scope.task.inputs(batch), train=False)
        key = self.references[name]
        if key in scope.references:
            return jax.lax.optimization_barrier(scope.read(key, batch))
        found = cached.outputs(key, batch, outputs)
        return jax.lax.optimization_barrier((found, {}))

    def _showing_features(self, scope: Scope) -> Scope:
        """The scope with models that also give the features which objectives compare."""
        objectives = self._objectives.values()

        def showing(model: Any, paths: set[str]) -> WithFeatures:
            return WithFeatures(model, tuple(sorted(paths)))

        def of_teacher(name: str) -> set[str]:
            return {path for o in objectives if o.teacher == name for path, _ in o.features}

        references = {}
        for name, key in self.references.items():
            if key in scope.references:  # not cached
                reference = scope.references[key]
                shown = showing(reference.model, of_teacher(name))
                references[key] = dataclasses.replace(reference, model=shown)
        own = {path for o in objectives for _, path in o.features} | of_teacher(EMA)
        own |= {o.student_output for o in objectives if o.student_output is not None}
        return scope.replace(model=showing(scope.model, own), references=references)

    def _now(self, name: str, objective: Objective, scope: Scope) -> Objective:
        """The objective with the values of this step in place of its traced fields."""
        own = f"objectives.{name}."
        hyper = {k.removeprefix(own): v for k, v in scope.hyper.items() if k.startswith(own)}
        objective = dataclasses.replace(objective, **hyper)
        return objective.at(scope.step, scope.total_steps, scope.hyper["temperature"])
