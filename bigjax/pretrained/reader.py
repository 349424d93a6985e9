"""Published checkpoints as files: names, shapes, and one tensor at a time.

Reads a folder in Hugging Face layout (config.json and safetensors, in one file or in shards), a GGUF
file (Llama family, dequantized tensor by tensor), or a torch state dict through torch's own
`weights_only` loader. Nothing is unpickled here, no code of a checkpoint runs, and no device is touched.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bigjax.core.errors import UserError, did_you_mean, first_line, needed
from bigjax.data.sources import default_data_dir
from bigjax.pretrained.gguf_header import read_header

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What safetensors files call the kinds of numbers that are taken from the mapped file as they lie there.
KINDS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
      path: the folder or file.
      config: what its config.json (or GGUF header) says of the model; {} without one.
      shapes: tensor name -> shape.
      read: tensor name -> the tensor, read when it is asked for; it may lie in the mapped file itself.
      gguf: whether it is a GGUF file, which has names of its own.
    """

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray] = field(repr=False)
    gguf: bool = False


def locate(source: str, where: str = "config.init.source") -> Path:
    """The folder or file that a source names.

    Args:
      source: a path; or the name of weights that `scripts/fetch_data` brought; or, with the package
        huggingface_hub and a network, a Hub id "OWNER/NAME".

    Raises:
      UserError: there is no such thing.
    """
    path = Path(os.path.expanduser(source))
    if path.exists():
        return path
    weights = Path(default_data_dir()) / "weights"
    if (weights / source).exists():
        return weights / source
    here = sorted(p.name for p in weights.glob("*") if p.is_dir())
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return _from_hub(source, where)
    raise UserError(
        f"{where}: no file or folder '{source}', and no weights of that name under {weights}"
        f"{did_you_mean(source, here)}; there: {', '.join(here) or 'none'} "
        f"(`scripts/fetch_data --help` lists those bigjax fetches; the Hub's are OWNER/NAME)"
    )


def open_published(source: str) -> Published:
    """Opens a published checkpoint; reads headers only.

    Raises:
      UserError: there is none, or a file of it is damaged.
    """
    path = locate(source)
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.suffix not in (".safetensors", ".gguf", ".pth", ".pt", ".bin"):
        raise UserError(
            f"config.init.source: {path} is none of .safetensors, .gguf, .pth, .pt, .bin"
        )
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if path.is_file():
        files = [path]
    elif (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not names or not isinstance(names, dict) or not all(map(_is_text, names.values())):
            raise UserError(
                f"{folder / INDEX}: its weight_map should say which file holds which tensor"
            )
        files = [_inside(folder, name) for name in sorted(set(names.values()))]
    else:
        files = [folder / SINGLE] if (folder / SINGLE).exists() else _only_weights(folder)
    if files[0].suffix == ".gguf":
        return _open_gguf(files[0])
    if files[0].suffix in (".pth", ".pt", ".bin"):
        return _open_torch(files[0], config)
    return _open_safetensors(path, files, config)


def _open_safetensors(path: Path, files: list[Path], config: Mapping[str, Any]) -> Published:
    from safetensors import SafetensorError, safe_open

    opened, headers = {}, {}
    for file in files:
        try:
            handle = safe_open(file, framework="numpy")  # checks what the header promises
            with open(file, "rb") as bytes_of:
                data = mmap.mmap(bytes_of.fileno(), 0, access=mmap.ACCESS_READ)
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error})") from None
        header.pop("__metadata__", None)
        headers |= header
        opened |= dict.fromkeys(header, (handle, data, start))
    shapes = {name: tuple(tensor["shape"]) for name, tensor in headers.items()}

    def read(name: str) -> np.ndarray:
        handle, data, start = opened[name]
        kind, at = headers[name]["dtype"], start + headers[name]["data_offsets"][0]
        if kind in KINDS and at % KINDS[kind].itemsize == 0:
            return np.frombuffer(data, KINDS[kind], math.prod(shapes[name]), at).reshape(
                shapes[name]
            )
        try:
            return handle.get_tensor(name)
        except Exception as error:  # a dtype that NumPy lacks, such as 8-bit floats
            raise UserError(
                f"{path}: tensor '{name}' is {kind}, which cannot be read ({first_line(error)})"
            ) from None

    return Published(path, config, shapes, read)


def _open_gguf(path: Path) -> Published:
    import gguf

    blocks = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fields, tensors = read_header(data, blocks)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"{path}: not a readable GGUF file ({first_line(error)})") from None

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        raw = np.frombuffer(data, np.uint8, tensor.size, tensor.start)
        if not raw.size:
            return np.zeros(tensor.shape, np.float32)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        kind = gguf.GGMLQuantizationType(tensor.type)
        try:
            values = gguf.quants.dequantize(rows, kind)
        except NotImplementedError:
            raise UserError(
                f"{path}: tensor '{name}' is {kind.name}, which cannot be read"
            ) from None
        return np.asarray(values, np.float32).reshape(tensor.shape)

    config = {k: x for k, x in fields.items() if not k.startswith("tokenizer.") and x is not None}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Published(path, config, shapes, read, gguf=True)


def _open_torch(path: Path, config: Mapping[str, Any]) -> Published:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a torch file; reading it needs torch: pip install torch (once: "
            "`export` then writes safetensors)"
        ) from None
    try:
        # weights_only: tensors and plain containers; a file that asks for any other code is refused.
        # Files of the format before 2020 are no zip archives and are read whole.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for a bad file
        raise UserError(f"{path}: not a torch state dict ({first_line(error)})") from None
    if not isinstance(state, Mapping) or not all(hasattr(x, "shape") for x in state.values()):
        raise UserError(f"{path}: not a torch state dict (name -> tensor)")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def read(name: str) -> np.ndarray:
        tensor = state[name]
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    return Published(path, config, shapes, read)


def _from_hub(source: str, where: str) -> Path:
    what = f"{where}: there is no folder '{source}', and the Hub needs"
    huggingface_hub = needed("huggingface_hub", what)
    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # no network, no such id, no permission: each its own kind
        raise UserError(f"{where}: cannot fetch '{source}' ({first_line(error)})") from None


def _only_weights(folder: Path) -> list[Path]:
    found = sorted(
        p for p in folder.glob("*") if p.suffix in (".safetensors", ".gguf", ".pth", ".pt", ".bin")
    )
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(
            f"config.init.source: {folder} should hold {SINGLE} or one file of weights; {names}"
        )
    return found


def _inside(folder: Path, name: str) -> Path:
    """A file that an index names; one outside the folder is refused."""
    if Path(name).name != name:
        raise UserError(f"{folder / INDEX}: '{name}' is not a file name")
    if name not in os.listdir(folder):  # which takes a name of any length
        raise UserError(f"{folder / INDEX} names '{name[:80]}', which is not there")
    return folder / name


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold a JSON object")
    return values
