# SPDX-License-Identifier: Apache-2.0
"""Writing results: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Callable, Optional, Union

from hmsa.errors import DataError, UsageError


def cache_folder() -> Path:
    """HMSA_CACHE, else `hmsa` in the user's cache folder; it need not exist. OSError if the user has no home."""
    if os.environ.get("HMSA_CACHE"):
        return Path(os.environ["HMSA_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "hmsa"
    try:
        return Path.home() / ".cache" / "hmsa"
    except RuntimeError as error:
        raise FileNotFoundError("there is no home folder") from error


def writable_folder(path: str | Path) -> Path:
    """Make a folder and make sure that files can be written to it, before hours of work depend on it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        found = "a link to nowhere" if folder.is_symlink() else "a file"
        raise DataError(f"{folder}: expected a folder to write to, found {found}: name another") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot write to this folder ({error.strerror}); choose another") from error
    return folder


LOCK_FILE = ".run.lock"
"""In a folder that one process at a time writes to. What a killed one leaves is free for the next."""


class FolderLock:
    """A folder for one process alone, from `take` until the context ends, or the process, in whatever way."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._descriptor: Optional[int] = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def take(self) -> bool:
        """False if another process has it. OSError if files cannot be locked there, as on some network file systems."""
        while self._descriptor is None:
            descriptor = self._locked()
            if descriptor is None:
                return False
            if self._path.exists():
                self._descriptor = descriptor
            else:  # another process had it, and deleted it after it was opened here
                os.close(descriptor)
        return True

    def _locked(self) -> Optional[int]:
        """The file, open; None if another process has it."""
        # Open for reading it keeps nobody from making the disk read-only; NFS locks what is open for writing alone.
        for mode in (os.O_RDONLY, os.O_RDWR):
            descriptor = os.open(self._path, mode | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return None
                if error.errno != errno.EBADF or mode == os.O_RDWR:
                    raise
        return None


def output_file(path: str) -> Path:
    """Make sure that a file can be written at `path`, before hours of work depend on it; its folder is made.

    Raises:
        UsageError: a folder, a device, or a name that no file can have.
        DataError: its folder cannot be written to.
    """
    file = Path(path)
    try:
        if path.endswith(("/", os.sep)) or file.is_dir():
            raise UsageError(f"{path or '.'}: expected a file to write, found a folder: name a file in it")
        if file.exists() and not file.is_file():
            raise UsageError(f"{path}: expected a file to write, found a device or a pipe: name a file")
        writable_folder(file.parent)
        _partial(file).touch()
        _partial(file).unlink()
    except OSError as error:
        raise UsageError(f"{path}: expected a file to write, but: {error.strerror}; name another") from error
    return file


def free_name(path: Path) -> Path:
    """`path` with the first number that makes it new: evaluation.1.json for evaluation.json."""
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _partial(path: Path) -> Path:
    # One writer a name: the process id keeps ranks apart.
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_atomically(
    path: str | Path,
    content: bytes | Callable[[IO[bytes]], None],
    *,
    durable: bool = False,
    keep_earlier: bool = False,
) -> Optional[Path]:
    """Write a file that appears complete or not at all, replacing an older one; parent folders are made.

    Args:
        content: the bytes, or what writes them to the file it is given.
        durable: whether to wait until it is on the disk, which takes milliseconds a file.
        keep_earlier: whether what was there is kept, see `free_name`.

    Returns:
        Where what was there is kept; None if nothing was, or is not.
    """
    kept = None
    path = Path(path)
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
        if durable:
            flush_to_disk(partial)
        if keep_earlier and os.path.lexists(path):
            kept = path.rename(free_name(path))
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return kept


@contextlib.contextmanager
def disk_errors(path: str | Path, advice: str = "choose another place") -> Iterator[None]:
    """A DataError in place of an OSError, as `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {advice}") from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk, where a power failure cannot undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_whole(path: Path) -> None:
    """OSError if a file can become no longer: whoever wrote it in C++ may have ended there without a word."""
    size, more = path.stat().st_size, bytes(1 << 16)
    with path.open("ab", buffering=0) as file:
        try:
            if file.write(more) < len(more):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            file.truncate(size)


def sha256(path: Union[str, Path]) -> str:
    """The file's SHA-256 in hexadecimal. DataError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()
