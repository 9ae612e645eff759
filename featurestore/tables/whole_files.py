"""Files and folders that appear whole or not at all, and the one sweep of what a crash left.

Bottom of `tables`; imports nothing of ours. What is being written has a name that starts with a
dot and ends in `.half`, and its writer holds a lock on it, which the kernel lets go of when the
writer ends, however it ends. So whoever can take the lock knows that nobody will finish it. What is
state belongs to its owner alone: folders are 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF = ".half"
"""What the name of everything ends in that is not finished."""

_OPEN_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing, its owner's alone; return it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    make_private(path, 0o700)
    return path


def make_private(path: Path, mode: int = 0o600) -> None:
    """Take from a file or folder of ours what others may do with it; what is not there stays so."""
    with suppress(OSError):
        state = path.stat()
        if state.st_mode & 0o077 and state.st_uid == os.getuid():
            path.chmod(mode)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever reads half of it, and that a lost machine has all of it."""
    with whole_file(path) as half:
        half.write_bytes(data)


@contextmanager
def whole_file(path: Path, *, private: bool = True) -> Iterator[Path]:
    """Give the place of a file that becomes `path` when the block ends well.

    The block may write to the place, but not replace it: the lock is that file's.

    Args:
        path: The file, new or old.
        private: It is its owner's alone; else it is what new files of this process are.
    """
    with half_file(path, private=private) as half:
        yield half
        finish(half, path)


@contextmanager
def half_file(path: Path, *, private: bool = True) -> Iterator[Path]:
    """Give the place of a file whose name is not known before it is written: see `finish`."""
    if private:
        private_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    half, descriptor = _locked_file(path, 0o600 if private else 0o666)
    try:
        yield half
    finally:
        half.unlink(missing_ok=True)
        os.close(descriptor)


def finish(half: Path, path: Path) -> None:
    """Give a half file its name, for good."""
    synchronize(half)
    os.replace(half, path)  # noqa: PTH105 - says that it replaces
    synchronize(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder that becomes `path` when the block ends well; the first of equals stays."""
    private_folder(path.parent)
    half, descriptor = _locked_folder(path.parent, path.name)
    try:
        yield half
        for file in half.iterdir():
            file.chmod(0o600)
            synchronize(file)
        os.fsync(descriptor)
        try:
            half.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        synchronize(path.parent)
    finally:
        shutil.rmtree(half, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def half_folder(path: Path) -> Iterator[Path]:
    """Give the place of a folder, beside `path` and not its owner's alone, that goes afterwards.

    The block moves it, or what it made in it, to where that belongs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half, descriptor = _locked_folder(path.parent, path.name, 0o777)
    try:
        yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)
        os.close(descriptor)


class TemporaryFolder:
    """A folder that goes when it is closed, or with the sweep after a crash.

    Args:
        purpose: Part of its name.
        parent: Where it is made; the system's folder for such things, when absent.

    Attributes:
        path: It.
    """

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        above = Path(tempfile.gettempdir()) if parent is None else private_folder(parent)
        self.path, self._descriptor = _locked_folder(above, f"steadfeast-{purpose}")

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it; again does nothing."""
        if self._descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1


def synchronize(path: Path) -> None:
    """Have the disk hold a file, or a folder's names: a rename alone does not promise that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def abandoned(root: Path) -> list[Path]:
    """Return what is half done under a folder, at any depth, and whose writer has ended."""
    found = []
    for folder, folders, files in os.walk(root):
        for name in [name for name in folders if is_half(name)]:
            folders.remove(name)
            found.append(Path(folder) / name)
        found += [Path(folder) / name for name in files if is_half(name)]
    return [path for path in found if _is_dead(path)]


def sweep(root: Path) -> list[Path]:
    """Remove what `abandoned` returns, under a folder and in the system's for temporary files."""
    left = abandoned(root)
    shared = Path(tempfile.gettempdir())
    left += [path for path in shared.glob(f".steadfeast-*{HALF}") if _is_dead(path)]
    _remove(left)
    return left


def sweep_beside(path: Path) -> None:
    """Remove what was to become `path`, or to be in it if it is a folder, and will not."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    mine = [one for one in beside if is_half(one.name) and one.name.startswith(f".{path.name}.")]
    _remove([one for one in mine if _is_dead(one)])
    if path.is_dir():
        _remove(abandoned(path))


def _remove(left: list[Path]) -> None:
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # a disk that is only read
                path.unlink()


def is_half(name: str) -> bool:
    """Tell the name of something that is being written."""
    return name.startswith(".") and name.endswith(HALF)


def _half_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}{HALF}")


def _locked_file(path: Path, mode: int) -> tuple[Path, int]:
    while True:
        half = _half_of(path)
        descriptor = os.open(half, _OPEN_FILE, mode)
        if _locks(half, descriptor):
            return half, descriptor


def _locked_folder(parent: Path, name: str, mode: int = 0o700) -> tuple[Path, int]:
    while True:
        half = _half_of(parent / name)
        half.mkdir(mode=mode)
        try:
            descriptor = os.open(half, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # a sweep was faster
            continue
        if _locks(half, descriptor):
            return half, descriptor


def _locks(half: Path, descriptor: int) -> bool:
    """Take the lock; say whether what it locks is still there: a sweep may have been faster."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    if half.exists():
        return True
    os.close(descriptor)
    return False


def _is_dead(path: Path) -> bool:
    try:
        if path.stat().st_uid != os.getuid():
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # finished meanwhile
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
