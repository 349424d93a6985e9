"""From a config to the jitted functions of a run: model, task, optimizer, state layout, steps.

Configs that differ only in traced scalars (learning rate, temperature, seed, ...) share one program,
and so one compilation, within a process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from bigjax.build.parts import Parts, key_data, make_parts, traced_hyper
from bigjax.config.resolve import Config
from bigjax.core import precision, steps
from bigjax.core.state import TrainState
from bigjax.mesh import offload, sharding
from bigjax.mesh.placement import Placement, vocabulary
from bigjax.methods import distill
from bigjax.run.checkpoint import abstract_with


@dataclass(frozen=True)
class Program:
    """The pure functions of a run, jitted, with the layout of what they take and give.

    Attributes:
      init: (rng key data, hyper) -> TrainState, sharded from the first byte.
      init_from: (variables, rng key data, hyper) -> TrainState that starts from these variables.
      train_step: (state, batch, frozen) -> (state, metrics); the state is donated.
      diagnose: (state, batch, frozen) -> where the numbers of a step stop being finite.
      eval_step: (state, batch) -> (statistics, collected).
      predict_step: (state, batch) -> predictions.
      evaluation_variables: (state) -> the Linen variables that a run is judged by.
      state: the abstract TrainState, with shardings.
      teacher: the abstract variables of the teacher, with shardings, or None.
      placed: parameter path -> where it lies and the rule that says so.
    """

    mesh: Mesh
    task: Any
    init: Callable[..., TrainState]
    init_from: Callable[..., TrainState]
    train_step: Callable[..., Any]
    diagnose: Callable[..., Any]
    eval_step: Callable[..., Any]
    predict_step: Callable[..., Any]
    evaluation_variables: Callable[..., Any]
    state: TrainState
    teacher: Any
    placed: dict[str, Placement]


_PROGRAMS: dict[Any, Program] = {}


def build_program(
    config: Config, source: Any, teacher: Config | None = None, mesh: Mesh | None = None
) -> Program:
    """The program of a config, from this process's cache if an equal one was built.

    Args:
      config: the run's config.
      source: the train split; its features shape the batch, its length the schedule.
      teacher: the config of the teacher's run, for distillation.
      mesh: where it runs; default what `config.mesh` says, over all devices.
    """
    mesh = sharding.make_mesh(config.section("mesh")) if mesh is None else mesh
    total_steps = config.section("train").total_steps(len(source))
    key = (
        config.program_fingerprint,
        teacher and teacher.program_fingerprint,
        total_steps,
        source.fingerprint(),
        mesh,
    )
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _build(config, source, teacher, total_steps, mesh)
    return _PROGRAMS[key]


def _build(
    config: Config, source: Any, teacher: Config | None, total_steps: int, mesh: Mesh
) -> Program:
    train, options = config.section("train"), config.section("sharding")
    sharding.check_batch("config.train.batch_size", train.batch_size, train.accumulate, mesh)
    parts = make_parts(config, source, total_steps)
    abstract = jax.eval_shape(parts.init, key_data(0), traced_hyper(config))
    placed = parts.placements(parts.model, options, mesh)
    layout = on_device = sharding.layout(placed, abstract, mesh)
    replicated, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    objective, frozen = _objective(parts, teacher, mesh)
    frozen_layout = jax.tree.map(lambda leaf: leaf.sharding, frozen)

    by_hand = options.mode == "shard_map"
    if by_hand:
        sharding.check_per_device(placed, mesh)
    functions = _steps(parts, objective, config, sharding.per_device(mesh) if by_hand else None)
    constrained = sharding.activations(mesh, vocabulary(parts.model, options))
    for name in functions:
        # Inside shard_map an array is a device's own and has no layout to constrain.
        if not (by_hand and name in ("train_step", "diagnose")):
            functions[name] = constrained(functions[name])
    if options.offload_optimizer:
        layout = offload.on_host(on_device, abstract, mesh)
        functions = {name: offload.fetching(f, on_device) for name, f in functions.items()}

    takes = {"train_step": (layout, rows, frozen_layout), "diagnose": (layout, rows, frozen_layout)}
    takes["evaluation_variables"] = (layout,)
    # The variables stay where they lie.
    gives = {"train_step": (layout, replicated), "evaluation_variables": None}
    jitted = {
        name: jax.jit(
            function,
            in_shardings=takes.get(name, (layout, rows)),
            out_shardings=gives.get(name, replicated),
            donate_argnums=0 if name == "train_step" else (),
        )
        for name, function in functions.items()
    }
    return Program(
        mesh=mesh,
        task=parts.task,
        init=jax.jit(parts.init, in_shardings=replicated, out_shardings=layout),
        init_from=jax.jit(parts.init_from, out_shardings=layout),
        **jitted,
        state=abstract_with(layout, abstract),
        teacher=frozen,
        placed=placed,
    )


def _objective(
    parts: Parts, teacher: Config | None, mesh: Mesh
) -> tuple[steps.Objective, dict[str, Any] | None]:
    """What the run descends, and the abstract variables of its teacher (None without one)."""
    if teacher is None:
        return steps.supervised(parts.applied, parts.task), None
    model = teacher.make("model")
    applied = precision.ModelInPrecision(model, teacher.section("precision"))
    frozen = jax.eval_shape(functools.partial(parts.variables, model), jax.random.key(0))
    placed = parts.placements(model, teacher.section("sharding"), mesh)
    objective = distill.distillation(parts.applied, parts.task, applied)
    return objective, abstract_with(sharding.layout(placed, frozen, mesh), frozen)


def _steps(
    parts: Parts, objective: steps.Objective, config: Config, distribute: Callable[..., Any] | None
) -> dict[str, Callable[..., Any]]:
    """The pure functions of a run, by the names they have in `Program`."""
    train, check = config.section("train"), config.section("check")
    options: dict[str, Any] = dict(
        transforms=(*parts.augment, *parts.preprocess), accumulate=train.accumulate
    )
    if distribute is not None:
        options["distribute"] = distribute
    evaluated = (parts.applied, parts.task, parts.optimizer)
    return {
        "train_step": steps.build_train_step(
            objective,
            parts.optimizer,
            **options,
            ema_decay=train.ema_decay,
            check=None if check.policy == "off" else check,
        ),
        "diagnose": steps.build_diagnosis(
            steps.build_gradients(objective, parts.optimizer, **options)
        ),
        "eval_step": steps.build_eval_step(*evaluated, transforms=parts.preprocess),
        "predict_step": steps.build_predict_step(*evaluated, transforms=parts.preprocess),
        "evaluation_variables": steps.build_evaluation_variables(parts.optimizer),
    }
