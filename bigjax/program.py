"""From a config to the jitted functions of a run: model, task, optimizer, state layout, steps.

Configs that differ only in traced scalars (learning rate, temperature, seed, ...) share one program,
and so one compilation, within a process.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigjax import distill, offload, precision, sharding, steps
from bigjax.checkpoint import abstract_with, restore_leaves
from bigjax.config import Config, load
from bigjax.data.transforms import apply_transforms
from bigjax.errors import UserError
from bigjax.optimizers import build as build_optimizer
from bigjax.placement import Placement, logical_names, place, vocabulary
from bigjax.rules import map_with_path, match_rules, paths
from bigjax.state import TrainState, init_state


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


def traced_hyper(config: Config) -> dict[str, np.ndarray]:
    """The config's traced scalars, as the state holds them."""
    names = ["optimizer.learning_rate", "optimizer.weight_decay"]
    if config.values["distill"]:
        names += ["distill.temperature", "distill.alpha"]
    return {name: np.float32(config.get(name)) for name in names}


def key_data(seed: int) -> np.ndarray:
    """The random key of a run, as plain uint32 (2,) data."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def fitted(transforms: tuple[Any, ...], source: Any) -> tuple[Any, ...]:
    """The transforms, those with statistics of their own computed from the train split."""
    return tuple(t.fit(source) if hasattr(t, "fit") else t for t in transforms)


def _build(
    config: Config, source: Any, teacher: Config | None, total_steps: int, mesh: Mesh
) -> Program:
    train = config.section("train")
    sharding.check_batch("config.train.batch_size", train.batch_size, train.accumulate, mesh)
    preprocess = fitted(config.make("data.preprocess"), source)
    augment = config.make("data.augment")
    model, task = config.make("model"), config.make("task")
    optimizer = build_optimizer(
        config.section("optimizer"),
        config.get("optimizer.type"),
        config.keywords("optimizer"),
        total_steps,
    )
    policy = config.section("precision")
    if policy.policy == "full_bfloat16":
        optimizer = precision.MasterCopy(optimizer)

    def boxed_variables(model: Any, init_key: jax.Array) -> Any:
        """The variables as Linen makes them, logical axis names around the parameters."""
        batch = apply_transforms(preprocess, example_batch(source.features, rows=1), init_key)
        params_key, dropout_key = jax.random.split(init_key)
        rngs = {"params": params_key, "dropout": dropout_key}
        return model.init(rngs, *task.inputs(batch), train=False)

    def init_variables(model: Any, init_key: jax.Array) -> Any:
        return nn.unbox(boxed_variables(model, init_key))

    def placements(model: Any, of: Config) -> dict[str, Placement]:
        boxed = jax.eval_shape(functools.partial(boxed_variables, model), jax.random.key(0))
        params, words = boxed["params"], vocabulary(model, of.section("sharding"))
        return place(of.get("sharding.rules"), nn.unbox(params), mesh, logical_names(params), words)

    def init(rng: jax.Array, hyper: dict[str, jax.Array]) -> TrainState:
        init_key, run_key = jax.random.split(jax.random.wrap_key_data(rng))
        return init_from(init_variables(model, init_key), jax.random.key_data(run_key), hyper)

    def init_from(variables: Any, rng: jax.Array, hyper: dict[str, jax.Array]) -> TrainState:
        state = init_state(
            variables, optimizer, rng=rng, hyper=hyper, ema=train.ema_decay is not None
        )
        return state.replace(
            params=precision.stored_params(policy, state.params),
            loss_scale=precision.init_loss_scale(policy),
        )

    abstract = jax.eval_shape(init, key_data(0), traced_hyper(config))
    placed = placements(model, config)
    layout = on_device = sharding.layout(placed, abstract, mesh)
    replicated, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    applied = precision.ModelInPrecision(model, policy)
    objective, frozen, frozen_layout = steps.supervised(applied, task), None, None
    if teacher is not None:
        teacher_model = teacher.make("model")
        applied_teacher = precision.ModelInPrecision(teacher_model, teacher.section("precision"))
        objective = distill.distillation(applied, task, applied_teacher)
        frozen = jax.eval_shape(functools.partial(init_variables, teacher_model), jax.random.key(0))
        teacher_placed = placements(teacher_model, teacher)
        frozen_layout = sharding.layout(teacher_placed, frozen, mesh)
        frozen = abstract_with(frozen_layout, frozen)

    options = dict(transforms=(*augment, *preprocess), accumulate=train.accumulate)
    by_hand = config.get("sharding.mode") == "shard_map"
    if by_hand:
        sharding.check_per_device(placed, mesh)
        options["distribute"] = sharding.per_device(mesh)
    check = config.section("check")
    train_step = steps.build_train_step(
        objective,
        optimizer,
        **options,
        ema_decay=train.ema_decay,
        check=None if check.policy == "off" else check,
    )
    diagnose = steps.build_diagnosis(steps.build_gradients(objective, optimizer, **options))
    constrained = sharding.activations(mesh, vocabulary(model, config.section("sharding")))
    if not by_hand:  # else an array is a device's own and has no layout
        train_step, diagnose = constrained(train_step), constrained(diagnose)
    eval_step = constrained(steps.build_eval_step(applied, task, optimizer, transforms=preprocess))
    predict_step = constrained(
        steps.build_predict_step(applied, task, optimizer, transforms=preprocess)
    )
    if config.get("sharding.offload_optimizer"):
        layout = offload.on_host(on_device, abstract, mesh)
        train_step, diagnose, eval_step, predict_step = (
            offload.fetching(step, on_device)
            for step in (train_step, diagnose, eval_step, predict_step)
        )
    return Program(
        mesh=mesh,
        task=task,
        init=jax.jit(init, in_shardings=replicated, out_shardings=layout),
        init_from=jax.jit(init_from, out_shardings=layout),
        train_step=jax.jit(
            train_step,
            in_shardings=(layout, rows, frozen_layout),
            out_shardings=(layout, replicated),
            donate_argnums=0,
        ),
        diagnose=jax.jit(
            diagnose,
            in_shardings=(layout, rows, frozen_layout),
            out_shardings=replicated,
        ),
        eval_step=jax.jit(
            eval_step,
            in_shardings=(layout, rows),
            out_shardings=replicated,
        ),
        predict_step=jax.jit(
            predict_step,
            in_shardings=(layout, rows),
            out_shardings=replicated,
        ),
        state=abstract_with(layout, abstract),
        teacher=frozen,
        placed=placed,
    )


def example_batch(features: dict[str, Any], rows: int) -> dict[str, jax.Array]:
    """A batch of zeros with a source's features and the keys that the pipeline adds."""
    batch = {name: jnp.zeros((rows, *shape), dtype) for name, (shape, dtype) in features.items()}
    ids = jnp.zeros((rows,), jnp.int32)
    return {**batch, "mask": jnp.ones((rows,), jnp.float32), "sample": ids, "epoch": ids}


def initial_state(config: Config, program: Program, workdir: Path) -> TrainState:
    """The state before step 1: from scratch, or with weights from the run that `config.init` names."""
    state = program.init(key_data(config.seed), traced_hyper(config))
    init = config.section("init")
    if init is None:
        return state
    folder = run_folder(workdir, init.source, "config.init.source")
    variables = {"params": state.params, **state.collections}
    wanted = _source_paths(init.rules, state)
    values = read_leaves(
        folder, {path: paths(variables)[target] for target, path in wanted.items()}
    )
    variables = map_with_path(
        lambda path, leaf: values[wanted[path]] if path in wanted else leaf, variables
    )
    return program.init_from(variables, state.rng, state.hyper)


def _source_paths(rules: Any, state: TrainState) -> dict[str, str]:
    """Path in this run's variables -> path in the source's, for every leaf that a rule takes over."""
    found = {}
    for collection, tree in {"params": state.params, **state.collections}.items():
        matched = match_rules([(p, (p, t)) for p, t in rules], tree, what="config.init.rules")
        for path, (pattern, template) in matched.items():
            if template is not None:
                source = re.fullmatch(pattern, path).expand(template)
                found[f"{collection}/{path}"] = f"{collection}/{source}"
    return found


def with_hyper(state: TrainState, config: Config) -> TrainState:
    """The state with this config's traced scalars, where a resume allows other ones than it saved."""
    place = lambda old, new: jax.device_put(new, old.sharding)  # noqa: E731
    return state.replace(hyper=jax.tree.map(place, state.hyper, traced_hyper(config)))


def run_folder(workdir: Path, path: str, where: str) -> Path:
    """The folder of another run; a path that starts with "." is seen from this run's own folder.

    Raises:
      UserError: there is no run.
    """
    folder = (workdir / path).resolve() if path.startswith(".") else Path(path)
    if not (folder / "config.json").exists():
        raise UserError(f"{where}: {folder} holds no run (no config.json)")
    return folder


def load_teacher(config: Config, program: Program, workdir: Path) -> Any:
    """The teacher's variables from its run's newest checkpoint; None without distillation."""
    if program.teacher is None:
        return None
    folder = run_folder(workdir, config.get("distill.teacher"), "config.distill.teacher")
    return read_variables(folder, program.teacher)


def teacher_config(config: Config, workdir: Path) -> Config | None:
    """The config of the run that `config.distill` names; None without distillation."""
    if config.values["distill"] is None:
        return None
    folder = run_folder(workdir, config.get("distill.teacher"), "config.distill.teacher")
    return load(folder / "config.json")


def read_variables(folder: Path, abstract: Any) -> Any:
    """A run's Linen variables from its newest checkpoint, laid out as `abstract` says."""
    leaves = read_leaves(folder, paths(abstract))
    return map_with_path(lambda path, _: leaves[path], abstract)


def read_leaves(folder: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """Some arrays of a run's newest checkpoint: path in its variables -> array.

    The parameters are the moving average where the run kept one.

    Args:
      folder: the run's folder.
      wanted: path such as "params/dense_0/kernel" -> array or ShapeDtypeStruct that says the
        shape, dtype and sharding to come in.

    Raises:
      UserError: the run lacks a leaf, or has it in another shape.
    """
    params = "ema" if load(folder / "config.json").get("train.ema_decay") else "params"

    def in_state(path: str) -> str:
        collection, _, rest = path.partition("/")
        return f"{params}/{rest}" if collection == "params" else f"collections/{path}"

    restored = restore_leaves(folder, {in_state(path): leaf for path, leaf in wanted.items()})
    return {path: restored[in_state(path)] for path in wanted}
