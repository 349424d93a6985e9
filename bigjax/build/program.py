"""From a config to the jitted functions of a run: model, task, method, state layout, steps.

Configs that differ only in traced scalars (learning rate, temperature, seed, ...) share one program,
and so one compilation, within a process.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax.build.classes import Translated, Words
from bigjax.build.kept import keeping
from bigjax.build.parts import (
    Parts,
    example_batch,
    key_data,
    make_parts,
    make_reference,
    method_hyper,
    split_key,
    traced_hyper,
)
from bigjax.config.config import Config
from bigjax.core import settings, steps
from bigjax.core.adapt import BASE, MODEL
from bigjax.core.errors import UserError
from bigjax.core.exact import exactly
from bigjax.core.method import Call, Facts, Reference
from bigjax.core.precision import stored_params
from bigjax.core.rules import map_with_path, paths
from bigjax.core.state import TrainState
from bigjax.mesh import offload, sharding
from bigjax.mesh.placement import Placement, Vocabulary, vocabulary
from bigjax.models.pipeline import pipeline_of
from bigjax.run.checkpoint import abstract_with

# XLA for CPUs takes barriers away before it fuses: the gradient of a residual stream is then computed
# again, from the last block on, in every kernel that reads it (a GPT's step takes a quarter longer), and what
# is made again in the backward pass is joined with what was made, and so kept. Not so here.
APART = {"xla_disable_hlo_passes": "cse_barrier_expander"}
# It orders a program for many threads rather than for little memory; not where that is the point.
RECOMPUTING = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclass(frozen=True)
class Program:
    """The pure functions of a run, jitted, with the layout of what they take and give.

    Attributes:
      init: (rng key data, hyper) -> (TrainState, base), sharded from the first byte.
      init_from: (variables, rng key data, hyper) -> the same, starting from these variables, which
        are donated where they can be.
      scratch: (rng key data, paths) -> path -> that leaf of the model's variables, from scratch.
      train_step: (state, batch, frozen) -> (state, metrics); the state is donated.
      diagnose: (state, batch, frozen) -> where the numbers of a step stop being finite.
      eval_step: (state, batch, frozen) -> (statistics, collected).
      predict_step: (state, batch, frozen) -> predictions.
      evaluation_variables: (state, frozen) -> the Linen variables that a run is judged by.
      state: the abstract TrainState, with shardings.
      frozen: name -> abstract variables that are read but never trained, with shardings.
      references: name -> the model that is read, where its variables are in `frozen`.
      variables: the abstract variables of the model, with shardings.
      preprocess: transforms of every batch, fitted to the train split.
      placed: parameter path -> where it lies and the rule that says so.
      formula: batch -> a step's FLOPs by the model's own formula.
      pipeline: stages, microbatches, rounds and bubble of the blocks, or None (see `bigjax.models.pipeline`).
      options: the compiler's for a train step, and for what `together` makes of the program, or None.
      trials: how many runs these functions train at once (see `bigjax.build.together`), or None.
    """

    mesh: Mesh
    task: Any
    method: Any
    model: Any
    init: Callable[..., tuple[TrainState, Any]]
    init_from: Callable[..., tuple[TrainState, Any]]
    scratch: Callable[..., dict[str, jax.Array]]
    train_step: Callable[..., Any]
    diagnose: Callable[..., Any]
    eval_step: Callable[..., Any]
    predict_step: Callable[..., Any]
    evaluation_variables: Callable[..., Any]
    state: TrainState
    frozen: dict[str, Any]
    references: dict[str, Reference]
    variables: Any
    preprocess: tuple[Any, ...]
    placed: dict[str, Placement]
    formula: Callable[[Any], dict[str, float]]
    pipeline: dict[str, Any] | None = None
    options: dict[str, str] | None = None
    trials: int | None = None


_PROGRAMS: dict[Any, Program] = {}


def build_program(
    config: Config,
    source: Any,
    references: Mapping[str, Config] | None = None,
    mesh: Mesh | None = None,
    words: Mapping[str, Words] | None = None,
) -> Program:
    """The program of a config, from this process's cache if an equal one was built.

    Args:
      source: the train split; its features shape the batch, its length the schedule.
      references: field of the method -> config of the run that it names.
      mesh: where it runs; default what `config.mesh` says, over all devices.
      words: field of the method -> what the outputs of the run that it names mean, where that is known.
    """
    references, words = references or {}, words or {}
    mesh = sharding.make_mesh(config.section("mesh")) if mesh is None else mesh
    total_steps = config.section("train").total_steps(len(source))
    key = (
        config.program_fingerprint,
        tuple((name, run.program_fingerprint) for name, run in sorted(references.items())),
        total_steps,
        source.fingerprint(),
        mesh,
        tuple(sorted(words.items())),
    )
    if key not in _PROGRAMS:
        built = _build(config, source, references, total_steps, mesh, words)
        _PROGRAMS[key] = keeping(built, key, [config, *references.values()])
    return _PROGRAMS[key]


def _build(
    config: Config,
    source: Any,
    references: Mapping[str, Config],
    total_steps: int,
    mesh: Mesh,
    words: Mapping[str, Words],
) -> Program:
    train, options = config.section("train"), config.section("sharding")
    rows = sharding.check_batch("config.train.batch_size", train.batch_size, train.accumulate, mesh)
    parts = make_parts(config, source, total_steps)
    network = parts.network
    variables = jax.eval_shape(network.variables, jax.random.key(0))
    frozen, calls, recipe_references = read_references(config, references, source, mesh, words)
    calls["model"] = network.call(variables)
    for name in references:  # but for those whose outputs are columns of the source
        if any(column.startswith(f"{name}/") for column in source.features):
            del frozen[name], recipe_references[name]
    facts = _facts(config, parts, source, variables, total_steps, mesh, calls)
    network.method.check(facts)
    parts = parts.with_own_leaves(facts)
    abstract, base = jax.eval_shape(parts.init, key_data(0), traced_hyper(config))
    placed = parts.placements(options, mesh, abstract.params, base)
    sharding.check_axes(mesh, placed, network.model)
    stages, pipeline = mesh.shape["pipeline"], None
    if stages > 1:
        pipeline = pipeline_of(stages, rows, options.microbatches, options.rounds)
    layout = sharding.layout(placed, abstract, mesh)
    frozen |= {BASE: _placed(placed, base, mesh)} if base else {}
    recipe = _on_mesh(_recipe(config, parts, recipe_references, total_steps), mesh, placed, options)
    functions = _functions(recipe, mesh, vocabulary(network.model, options), options)
    if stages * mesh.shape["sequence"] > 1:
        # What model and method refuse of these axes, before a device is touched.
        batch = jax.eval_shape(lambda: example_batch(network.features, train.batch_size))
        jax.eval_shape(functions["train_step"], abstract, batch, frozen)
    if options.offload_optimizer:
        on_device, layout = layout, offload.on_host(layout, abstract, mesh)
        functions = {name: offload.fetching(f, on_device) for name, f in functions.items()}
    variables = _placed(placed, variables, mesh)
    compiling = _options(mesh, parts.adaptation.recomputed)
    return Program(
        mesh=mesh,
        task=network.task,
        method=network.method,
        model=network.applied,
        **_beginnings(parts, abstract, base, variables, (layout, frozen.get(BASE, {})), mesh),
        **_jitted(functions, layout, frozen, mesh, compiling),
        state=abstract_with(layout, abstract),
        frozen=frozen,
        references=recipe_references,
        variables=variables,
        preprocess=network.preprocess,
        placed=placed,
        formula=network.flops,
        pipeline=pipeline,
        options=compiling,
    )


def _facts(
    config: Config,
    parts: Parts,
    source: Any,
    variables: Any,
    total_steps: int,
    mesh: Mesh,
    calls: Mapping[str, Call],
) -> Facts:
    """What a method and its adapters may refuse by."""
    network = parts.network
    return Facts(
        task=network.task,
        source=source,
        model=network.applied,
        variables=variables,
        transforms=(*parts.augment, *network.preprocess),
        train=config.section("train"),
        sharding=config.section("sharding"),
        precision=parts.policy,
        total_steps=total_steps,
        mesh=mesh.shape,
        calls=calls,
    )


def read_references(
    config: Config, runs: Mapping[str, Config], source: Any, mesh: Mesh, words: Mapping[str, Words]
) -> tuple[dict[str, Any], dict[str, Call], dict[str, Any]]:
    """(name -> abstract variables with shardings, name -> how its model is called, name -> `Reference`)
    of the runs that are read.
    """
    frozen, calls, references = {}, {}, {}
    for name, run in runs.items():
        network, references[name] = make_reference(
            name, config, run, source, words.get(name, Words())
        )
        abstract = jax.eval_shape(network.variables, jax.random.key(0))
        kept = functools.partial(stored_params, run.section("precision"))
        abstract = {**abstract, "params": jax.eval_shape(kept, abstract["params"])}
        if (mapped := words.get(name, Words()).mapped) is not None:
            ids = {"ids": jax.ShapeDtypeStruct((mapped,), np.int32)}
            abstract = {**abstract, Translated.COLLECTION: ids}
        try:
            placed = network.placements(run.section("sharding"), mesh)
            frozen[name] = _placed(placed, abstract, mesh)
        except UserError as error:
            raise UserError(f"config.method.{name}: its own {error}") from None
        calls[name] = network.call(abstract)
    return frozen, calls, references


def _recipe(
    config: Config, parts: Parts, references: Mapping[str, Any], total_steps: int
) -> steps.Recipe:
    train, check, network = config.section("train"), config.section("check"), parts.network
    return steps.Recipe(
        method=network.method,
        model=network.applied,
        task=network.task,
        optimizer=parts.optimizer,
        adaptation=parts.adaptation,
        references=references,
        hyper=method_hyper(config),
        augment=parts.augment,
        preprocess=network.preprocess,
        accumulate=train.accumulate,
        ema_decay=train.ema_decay,
        check=None if check.policy == "off" else check,
        total_steps=total_steps,
        parts=tuple(config.get("data.mixture") or ()),
    )


def _on_mesh(
    recipe: steps.Recipe, mesh: Mesh, placed: Mapping[str, Placement], options: settings.Sharding
) -> steps.Recipe:
    """The recipe with what the mesh asks of a step: weights gathered; by hand, each device's own part."""
    recipe = dataclasses.replace(recipe, gathered=sharding.gathering(mesh, placed))
    if options.mode != "shard_map":
        return recipe
    sharding.check_per_device(placed, mesh)
    return dataclasses.replace(recipe, distribute=sharding.per_device(mesh))


def _functions(
    recipe: steps.Recipe, mesh: Mesh, words: Vocabulary, options: settings.Sharding
) -> dict[str, Callable[..., Any]]:
    """The pure functions of a run, by the names they have in `Program`, their activations laid out."""
    functions = {
        "train_step": steps.build_train_step(recipe),
        "diagnose": steps.build_diagnosis(recipe),
        "eval_step": steps.build_eval_step(recipe),
        "predict_step": steps.build_predict_step(recipe),
        "evaluation_variables": steps.build_evaluation_variables(recipe),
    }
    constrained = sharding.activations(mesh, words, options)
    # Inside shard_map an array is a device's own and has no layout to constrain.
    alone = ("train_step", "diagnose") if options.mode == "shard_map" else ()
    return {name: f if name in alone else constrained(f) for name, f in functions.items()}


def _beginnings(
    parts: Parts,
    abstract: TrainState,
    base: Any,
    variables: Any,
    result: tuple[Any, Any],
    mesh: Mesh,
) -> dict[str, Callable[..., Any]]:
    """What makes a first state, jitted, by the names in `Program`.

    variables: the model's abstract ones, with shardings. result: the layout of the state, the abstract base.
    """
    outputs = (result[0], _layout_of(result[1]))
    # A leaf that is held otherwise than it comes, in few bits or factors, has nothing to give on.
    held = {*paths(base), *paths(abstract.params.get(MODEL, {}))}
    given_on = not parts.adaptation.parts or held >= set(paths(variables["params"]))
    return {
        "init": _jit_once(
            parts.init, in_shardings=sharding.replicated(mesh), out_shardings=outputs
        ),
        "init_from": _jit_once(
            parts.init_from, out_shardings=outputs, donate_argnums=0 if given_on else ()
        ),
        "scratch": functools.partial(_scratch, parts, variables),
    }


def _jitted(
    functions: Mapping[str, Callable[..., Any]],
    layout: Any,
    frozen: Any,
    mesh: Mesh,
    compiling: dict[str, str] | None,
) -> dict[str, Callable[..., Any]]:
    """The functions jitted, each with where its arguments and results lie.

    compiling: the compiler's options for a train step.
    """
    rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    trains = (layout, rows, _layout_of(frozen))
    # Evaluation reads of the frozen variables those of the model itself, wherever they lie: it is
    # given all of them after a step, and no teacher's when a run is opened.
    takes = {"train_step": trains, "diagnose": trains, "evaluation_variables": (layout, None)}
    gives = {"train_step": (layout, replicated), "evaluation_variables": None}  # None: as they lie
    jitted = {
        name: jax.jit(
            function,
            in_shardings=takes.get(name, (layout, rows, None)),
            out_shardings=gives.get(name, replicated),
        )
        for name, function in functions.items()
    }
    # The one of the two that may be called within another program has no options of the compiler.
    jitted["train_step"] = jax.jit(
        jitted["train_step"],
        in_shardings=trains,
        out_shardings=gives["train_step"],
        donate_argnums=0,
        compiler_options=compiling,
    )
    return jitted


def _options(mesh: Mesh, recomputed: bool) -> dict[str, str] | None:
    """The compiler's options for a train step; recomputed: its backward pass makes parameters again."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {**APART, **(RECOMPUTING if recomputed else {})}


def _jit_once(function: Callable[..., Any], **layout: Any) -> Callable[..., Any]:
    """Jits what makes a first state. On a CPU its draws compile sooner at LLVM's level 1 than at 2 and
    3, and run as fast; at 0 they are several times slower."""
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(exactly(function), compiler_options=options, **layout)


def _placed(placed: Mapping[str, Placement], abstract: Any, mesh: Mesh) -> Any:
    return abstract_with(sharding.layout(placed, abstract, mesh), abstract)


def _layout_of(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _scratch(parts: Parts, variables: Any, rng: Any, wanted: Iterable[str]) -> dict[str, jax.Array]:
    """Some leaves of the model's variables, as `Parts.init` would make them; no others are made."""
    wanted = set(wanted)
    if not wanted:
        return {}

    def some(rng: jax.Array) -> dict[str, jax.Array]:
        leaves = paths(parts.network.variables(split_key(rng)[0]))
        return {path: leaves[path] for path in sorted(wanted)}

    layout = {path: leaf.sharding for path, leaf in paths(variables).items() if path in wanted}
    return _jit_once(some, out_shardings=layout)(rng)


def from_leaves(abstract: Any, leaves: Mapping[str, jax.Array]) -> Any:
    """The tree of `abstract` with the leaves of these paths."""
    return map_with_path(lambda path, _: leaves[path], abstract)
