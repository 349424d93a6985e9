"""A program of StableHLO, by `jax.export`: it runs wherever JAX does, without bigjax, Flax or a config.

The program is data. Nothing of it is run by reading it; what it may call on the machine is looked at
before it is compiled, as it may be a stranger's.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.core.errors import UserError, first_line, needed
from bigjax.core.rules import paths
from bigjax.export.answer import Answer, Spec, program_of
from bigjax.export.card import Card
from bigjax.pretrained.export import WEIGHTS, save_tensors

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST = 2**31 - 2**20  # bytes of one program: flatbuffers' offsets have 31 bits
# What a program may call by name: XLA's own, which touch nothing but their operands. Others, such as
# calls back into Python, are addresses in the process that wrote the program.
HARMLESS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement"}
HARMLESS |= {"cu_threefry2x32_ffi", "TopK", "mhlo.topk", "mhlo.erf", "shape_assertion"}


def write(
    answer: Answer, names: Mapping[str, Spec], variables: Any, folder: Path, inside: bool
) -> str:
    """Writes the program; its weights inside it, or in model.safetensors beside it.

    Returns:
      its sha256: damaged bytes can crash MLIR's parser, and are not to reach it.

    Raises:
      UserError: flatbuffers is not installed; the weights are more than a program can hold.
    """
    _need_flatbuffers()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if inside and size > LARGEST:
        raise UserError(
            f"--format=stablehlo: the weights, {size:,} bytes, are more than a program can hold; "
            "give --format=stablehlo:beside"
        )
    function, arguments = program_of(answer, names, variables, inside)
    if not inside:
        function = _by_path(function, variables)
        arguments = (paths(arguments[0]), *arguments[1:])
        save_tensors(folder / WEIGHTS, paths(variables))
    with _without_places():
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    content = exported.serialize()
    (folder / PROGRAM).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read(card: Card) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """`run(inputs)` of a program that `write` wrote, or a stranger.

    Raises:
      UserError: it cannot be read, takes or gives something else than the card says, or calls what it
        must not.
    """
    _need_flatbuffers()
    folder, names = card.folder, card.inputs
    path, weights = folder / PROGRAM, ()
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != card.values.get("sha256"):
            raise UserError(f"{path}: is not what its card says (sha256): damaged, or another's")
        exported = jax.export.deserialize(bytearray(content))
        text = exported.mlir_module()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception as error:  # flatbuffers and MLIR raise many kinds for what is not theirs
        reason = first_line(error)
        raise UserError(f"{path}: no program of StableHLO ({reason[:120]})") from None
    if strange := sorted(called(text) - HARMLESS):
        raise UserError(f"{path}: calls '{strange[0]}' on the machine that runs it: refused")
    if exported.platforms and jax.default_backend() not in (*exported.platforms, "gpu"):
        raise UserError(
            f"{path}: is for {', '.join(exported.platforms)}, not {jax.default_backend()}"
        )
    if (folder / WEIGHTS).exists():
        weights = (_weights(folder / WEIGHTS),)
    given = (*weights, {n: jax.ShapeDtypeStruct((1, *s), t) for n, (s, t) in names.items()})
    leaves, tree = jax.tree.flatten((given, {}))
    said = [(x.shape[1:], x.dtype) for x in exported.in_avals]
    if exported.in_tree != tree or said != [(x.shape[1:], x.dtype) for x in leaves]:
        raise UserError(f"{path}: takes other inputs than its card says: {', '.join(names)}")
    outputs = card.values["signature"]["outputs"]
    if exported.out_tree != jax.tree.structure(dict.fromkeys(outputs, 0)):
        raise UserError(f"{path}: gives other outputs than its card says: {', '.join(outputs)}")
    call = jax.jit(exported.call)
    return lambda inputs: call(*weights, dict(inputs))


def called(text: str) -> set[str]:
    """The targets of all custom calls in the text of a module; "?" for one whose name is not found."""
    found = re.findall(r"custom_call\b[^@\n]{0,8}@(\"[^\"]+\"|[\w.$-]+)", text)
    found += re.findall(r"call_target_name\s*=\s*\"([^\"]+)\"", text)
    missed = text.count("custom_call") > len(found)
    return {name.strip('"') for name in found} | ({"?"} if missed else set())


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """A program says of each operation in which file of this machine it was written; here it does not."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _by_path(function: Callable[..., Any], variables: Any) -> Callable[..., Any]:
    """The function of a tree of weights as one of {path: array}, as the file has them."""
    tree, names = jax.tree.structure(variables), list(paths(variables))
    return lambda weights, inputs: function(
        jax.tree.unflatten(tree, [weights[name] for name in names]), inputs
    )


def _weights(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _need_flatbuffers() -> None:
    needed("flatbuffers", "--format=stablehlo needs")  # jax.export does, and does not say so
