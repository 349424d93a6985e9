"""Devices that are not there: what `--topology` names, and how a process must be started to have them.

cpu:8          eight simulated devices
v5e:4x4        a TPU slice, compiled for by libtpu; v5e:16 takes the most even shape
2xv5e:4x4      two slices, joined by the slow network
h200:16        GPUs, eight a node, compiled for by JAX's CUDA plugin
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError, did_you_mean, first_line, to_install
from bigjax.plan.chips import CHIPS, Chip, target

MOST = 16_384  # devices
ASSEMBLER = """#!/bin/sh
# XLA asks for a version, and for a file at what -o names.
echo "Cuda compilation tools, release 13.0, V13.0.88"
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then : > "$2"; fi
  shift
done
"""
FORMS = "write cpu:8, v5e:4x4, 2xv5e:4x4 or h200:8"
_NAME = re.compile(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)")


@dataclass(frozen=True)
class Topology:
    """name: as it was given. chip: its figures; None for a CPU.

    slices, shape: of a TPU; a GPU's or CPU's shape is (devices,).
    """

    name: str
    word: str
    chip: Chip | None
    slices: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Devices."""
        return self.slices * math.prod(self.shape)

    @property
    def platform(self) -> str:
        return "cpu" if self.chip is None else "tpu" if self.chip.shape else "gpu"

    def node(self, device: Any) -> Any:
        """What a device shares the fast network with."""
        if self.platform == "tpu":
            return getattr(device, "slice_index", 0) or 0
        return device.process_index

    def of_size(self, devices: int) -> Topology:
        """The same chips, another number of them."""
        return parsed(f"{self.word}:{devices}")


def parsed(name: str) -> Topology:
    """The topology of a name.

    Raises:
      UserError: no such form, no such chip, or a shape that it does not have.
    """
    found = _NAME.fullmatch(name.strip().lower())
    if not found:
        word = re.sub(r"^\d+x", "", name.strip().lower()).partition(":")[0]
        hint = did_you_mean(word, [*CHIPS, "cpu"]) if word not in CHIPS else ""
        raise UserError(f"--topology: {name!r} is no topology{hint}; {FORMS}")
    slices, word, sizes = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    known = ("cpu", *CHIPS)
    if word not in known:
        raise UserError(
            f"--topology: no chip {word!r}{did_you_mean(word, known)}; chips: {', '.join(known)}"
        )
    chip = CHIPS.get(word)
    if not 0 < slices * math.prod(sizes) <= MOST:
        raise UserError(f"--topology: {name!r} must have 1 to {MOST:,} devices")
    if chip is None or not chip.shape:
        if len(sizes) > 1 or slices > 1:
            raise UserError(f"--topology: {name!r}: {word} takes a count, such as {word}:8")
        _check_nodes(word, chip, sizes[0])
    elif len(sizes) == 1 and sizes[0] > 1:
        sizes = even_shape(sizes[0], chip.shape)
    elif len(sizes) != chip.shape and math.prod(sizes) > 1:
        example = "x".join(["4"] * chip.shape)
        raise UserError(
            f"--topology: {name!r}: a slice of {word} has {chip.shape} dimensions, such as "
            f"{word}:{example}"
        )
    if chip is not None and chip.shape:
        sizes = (*sizes, *(1,) * (chip.shape - len(sizes)))
    return Topology(name, word, chip, slices, sizes)


def _check_nodes(word: str, chip: Chip | None, devices: int) -> None:
    if chip is not None and devices > chip.node and devices % chip.node:
        below = devices // chip.node * chip.node
        raise UserError(
            f"--topology: {word}:{devices} leaves a node of {chip.node} in part; {word}:{below} or "
            f"{word}:{below + chip.node} would do"
        )


def even_shape(devices: int, dimensions: int) -> tuple[int, ...]:
    """The slice shape of so many chips whose sides are nearest to each other: (2, 2, 4), (2, 2, 1)."""
    found = min(_shapes(devices, dimensions), key=sum)
    return tuple(sorted(found, key=lambda side: (side == 1, side)))


def _shapes(devices: int, dimensions: int) -> list[tuple[int, ...]]:
    if dimensions == 1:
        return [(devices,)]
    return [
        (side, *rest)
        for side in range(1, devices + 1)
        if devices % side == 0
        for rest in _shapes(devices // side, dimensions - 1)
    ]


def environment(topology: Topology, folder: Path) -> dict[str, str]:
    """The environment of a process that has these devices: nothing of this process's JAX is touched.

    folder: the process's own.

    Raises:
      UserError: what compiles for them is not installed; says the command.
    """
    check_installed(topology)
    count = topology.size if topology.platform == "cpu" else 1
    name = "--xla_force_host_platform_device_count"
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(name)]
    flags.append(f"{name}={count}")
    if topology.platform == "gpu":
        flags.append(f"--xla_gpu_cuda_data_dir={stand_in_toolkit(folder)}")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "NPROC": str(2 * count),
        "TPU_SKIP_MDS_QUERY": "1",  # there is no cloud to ask
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is driven, so several plans may run at once
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "BIGJAX_COMPILED": "off",
        "JAX_TRACEBACK_FILTERING": "off",  # so that the last line says what happened
    }


def stand_in_toolkit(folder: Path) -> Path:
    """What XLA wants of a CUDA toolkit, which need not be installed: an assembler and a library of device
    functions. These do nothing, as the machine code that they would make is run by nobody; they come
    after all that decides on buffers and collectives."""
    assembler = folder / "bin" / "ptxas"
    library = folder / "nvvm" / "libdevice" / "libdevice.10.bc"
    for file, text in ((assembler, ASSEMBLER), (library, "; an LLVM module without a function\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assembler.chmod(0o755)
    return folder


def check_installed(topology: Topology) -> None:
    """Raises a UserError with the pip command where the compiler for these devices is missing."""
    if topology.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        package = _wanted_by_jax("libtpu")
    elif topology.platform == "gpu" and not _has_cuda():
        package = f"jax-cuda13-pjrt=={metadata.version('jax')}"
    else:
        return
    command = to_install(f"--no-deps '{package}'")
    raise UserError(f"--topology={topology.name}: its compiler is not installed here: {command}")


def _wanted_by_jax(package: str) -> str:
    """The requirement of the installed JAX on an optional package: "libtpu==0.0.42.*"."""
    for line in metadata.requires("jax") or ():
        if line.startswith(package):
            return line.partition(";")[0].strip()
    return package


def _has_cuda() -> bool:
    names = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(name) is not None for name in names
    )


def devices_of(topology: Topology) -> Sequence[Any]:
    """The devices, in a process started with `environment`.

    Raises:
      UserError: the compiler knows no such topology; its own message is kept.
    """
    import jax
    from jax.experimental import topologies

    if topology.platform == "cpu":
        return jax.devices("cpu")[: topology.size]
    name, options = _asked_of_compiler(topology)
    platform = {"tpu": "tpu", "gpu": "cuda"}[topology.platform]
    try:
        return topologies.get_topology_desc(name, platform, **options).devices
    except Exception as error:  # each compiler has its own kinds
        raise UserError(
            f"--topology={topology.name}: the compiler says: {first_line(error)}"
        ) from None


def _asked_of_compiler(topology: Topology) -> tuple[str, dict[str, Any]]:
    if topology.platform == "gpu":
        nodes = max(1, topology.size // topology.chip.node)
        options = {
            "target_config": target(topology.word),
            "topology": f"1x{nodes}x{topology.size // nodes}",
        }
        return "", options
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if math.prod(topology.shape) < 4:  # part of a host
        options["chips_per_host_bounds"] = (*topology.shape, *(1,) * (3 - len(topology.shape)))
    if topology.word == "v4":
        options["chip_config_name"] = "megacore"  # a chip is one device, as JAX has it by default
    return f"{topology.word}:{'x'.join(map(str, topology.shape))}", options
