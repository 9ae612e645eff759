"""Who may read and write what: state folders, secrets in files, keys of certificates.

Above `findings`. Looked at after the store was opened, which makes its own folder private.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from steadfeast.doctor.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_SECRETS = {"token", "signing_key", "password"}


def folder_findings(field: str, folder: Path) -> Iterator[Finding]:
    """Look at a state folder; one that is not there yet is made private by its server."""
    if not folder.exists():
        return
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "state-not-writable",
            field,
            f"{folder} cannot be written by this user, so nothing is kept",
            f"give it to who runs Steadfeast: chown -R USER {folder}",
        )
    others = exposed(folder)
    if others:
        yield Finding(
            "state-readable",
            field,
            f"{folder} can be {others} by other users of this machine, and holds served values",
            f"chmod -R go= {folder}",
        )


def secret_findings(file: Path, raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at the secrets of a configuration file.

    Args:
        file: It.
        raw: Its YAML as it stands there, nothing replaced from the environment.
    """
    literal = []
    for path, value in _leaves(raw):
        name, text = ".".join(path), str(value)
        if _is_secret(path, text):
            literal.append(name)
        elif _names_a_secret(path):
            yield from _readable(name, file.parent / text)
    if not literal:
        return
    others, names = exposed(file), ", ".join(literal)
    if others:
        yield Finding(
            "secret-readable",
            f"{file}, {names}",
            f"a secret stands there as text, and the file can be {others} by other users of this "
            "machine",
            f"chmod go= {file}, and write ${{NAME}} in the secret's place",
        )
    else:
        yield Finding(
            "secret-in-file",
            f"{file}, {names}",
            "a secret stands there as text, and goes wherever the file is copied or committed",
            "write ${NAME} in its place",
        )


def exposed(path: Path) -> str:
    """Say what other users may do with a file or folder: read, written, both; empty for nothing.

    A folder above it that they may not enter protects it.
    """
    path = path.resolve()
    if any(not folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in path.parents):
        return ""
    mode = path.stat().st_mode
    able = []
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        able.append("read")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        able.append("written")
    return " and ".join(able)


def _is_secret(path: tuple[str, ...], text: str) -> bool:
    """Tell a secret that stands there itself, and not the name of a variable or a file."""
    if not text or "${" in text:
        return False
    if path[-1] == "url":
        return bool(urlsplit(text).password)
    return path[-1] in _SECRETS


def _names_a_secret(path: tuple[str, ...]) -> bool:
    """Tell the path of a file that holds a secret: `{file: PATH}`, or a private key."""
    *above, last = path
    return (
        (last == "file" and bool(above) and above[-1] in _SECRETS)
        or path[-2:] == ("tls", "key")
        or last == "key_file"
    )


def _readable(name: str, path: Path) -> Iterator[Finding]:
    others = exposed(path) if path.is_file() else ""
    if others:
        yield Finding(
            "secret-readable",
            name,
            f"{path} can be {others} by other users of this machine, who can then pass for its "
            "owner",
            f"chmod go= {path}",
        )


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, str(number)))
    elif path and value is not None:
        yield path, value
