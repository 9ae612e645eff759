"""Definitions as they stood when a contract was applied, kept so that they can run again.

Above `definitions`, below `catalog`. One ZIP per contract holds Feast's registry and the Python
files of the repo. Both can run code, so nothing is unpacked before the bytes have the SHA-256 that
was written down beside them. And what comes out is used only if the contract that is worked out
from it is the one asked for: a library of another version, or a helper outside the repo that
changed, makes another contract and is refused by whoever asked.
"""

from __future__ import annotations

import io
import weakref
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from feast import FeatureStore
from feast.repo_operations import get_repo_files

from steadfeast.featurestore.errors import ArchiveError
from steadfeast.featurestore.tables import TemporaryFolder, sha256_of, write_whole

if TYPE_CHECKING:
    from feast import RepoConfig

_REGISTRY, _CODE, _DIGEST = "registry.pb", "code", ".zip.sha256"


def keep(path: Path, feast: FeatureStore, repo: Path) -> None:
    """Write the registry that `feast` sees and the Python files under `repo` to `path`.

    The first of equals stays: what is there, and is what was written, is not written again.
    """
    with suppress(ArchiveError):
        _intact(path)
        return
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_REGISTRY, feast.registry.proto().SerializeToString())
        for file in _python(repo):
            archive.write(file, f"{_CODE}/{file.relative_to(repo).as_posix()}")
    write_whole(path.with_suffix(_DIGEST), sha256_of(held.getvalue()).encode())
    write_whole(path, held.getvalue())


def _python(repo: Path) -> list[Path]:
    """Return the files that Feast would read, and what makes packages of their folders."""
    files = {Path(file) for file in get_repo_files(repo)}
    files = {file for file in files if file.is_relative_to(repo)}
    folders = {repo / folder for file in files for folder in file.relative_to(repo).parents}
    packages = {folder / "__init__.py" for folder in folders}
    return sorted(files | {file for file in packages if file.is_file() and file.parent != repo})


class Kept:
    """What `keep` wrote, unpacked to a folder that lives as long as this object.

    Raises:
        ArchiveError: It is not what was written, or nothing says what was.

    Attributes:
        feast: A store with the registry of then, and the repo folder and stores of now.
        code: Folder of the Python files of then.
    """

    def __init__(self, path: Path, config: RepoConfig) -> None:
        written = _intact(path)
        unpacked = TemporaryFolder("kept")
        weakref.finalize(self, unpacked.close)  # also at exit
        folder = unpacked.path
        with zipfile.ZipFile(io.BytesIO(written)) as archive:
            archive.extractall(folder)
        self.code = Path(folder).resolve() / _CODE
        self.code.mkdir(exist_ok=True)
        aside = config.model_copy()
        registry = str(Path(folder) / _REGISTRY)
        aside.registry_config = {"registry_type": "file", "path": registry, "cache_ttl_seconds": 0}
        aside._registry = None  # noqa: SLF001 - where Feast keeps what it made of the above
        self.feast = FeatureStore(config=aside)


def _intact(path: Path) -> bytes:
    """Return an archive's bytes, if they are those that were written."""
    digest = path.with_suffix(_DIGEST)
    if not path.is_file() or not digest.is_file():
        raise ArchiveError(path, "nothing says what its content was")
    written, found = path.read_bytes(), digest.read_text(encoding="ascii").strip()
    if sha256_of(written) != found:
        raise ArchiveError(path, f"holds {sha256_of(written)[:16]}, not {found[:16]} as kept")
    return written
