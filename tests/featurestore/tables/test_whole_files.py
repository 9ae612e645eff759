"""Files are whole or not there; what a killed writer leaves is swept, what lives is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from steadfeast.featurestore.tables import whole_files
from steadfeast.featurestore.tables.whole_files import (
    TemporaryFolder,
    abandoned,
    sweep,
    whole_file,
    whole_folder,
    write_whole,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from steadfeast.featurestore.tables.whole_files import TemporaryFolder, whole_file, whole_folder
root = Path(sys.argv[1])
with whole_file(root / "a" / "x.parquet") as one, whole_folder(root / "set") as two:
    one.write_bytes(b"a person's key")
    (two / "data.parquet").write_bytes(b"a person's key")
    spill = TemporaryFolder("spill", root / "spills")
    (spill.path / "rows").write_bytes(b"a person's key")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_killed_writer_leaves_nothing_after_one_sweep(tmp_path):
    for _ in range(3):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120)
    assert len(everything(tmp_path)) == 9
    assert len(abandoned(tmp_path)) == 9
    sweep(tmp_path)
    assert everything(tmp_path) == []


def test_what_is_being_written_survives_every_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        whole_file(tmp_path / "file") as one,
        whole_folder(tmp_path / "folder") as two,
        TemporaryFolder("work") as three,
    ):
        one.write_bytes(b"1")
        (two / "2").write_bytes(b"2")
        (three / "3").write_bytes(b"3")
        assert sweep(tmp_path) == []
    assert everything(tmp_path) == ["file", "folder/2"]


def test_the_system_folder_is_swept_of_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
    (tmp_path / "shared" / ".steadfeast-kept.1.half").mkdir(parents=True)
    (tmp_path / "shared" / ".other.1.half").mkdir()
    sweep(tmp_path / "state")
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [".other.1.half"]


def test_a_block_that_fails_changes_nothing_and_leaves_nothing(tmp_path):
    write_whole(tmp_path / "x", b"before")
    with pytest.raises(TypeError), whole_file(tmp_path / "x") as half:
        half.write_bytes("no bytes")
    with pytest.raises(TypeError), whole_folder(tmp_path / "y") as half:
        (half / "z").write_bytes("no bytes")
    assert everything(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


def test_the_first_of_equal_folders_stays(tmp_path):
    for text in (b"first", b"second"):
        with whole_folder(tmp_path / "set") as half:
            (half / "data").write_bytes(text)
    assert (tmp_path / "set" / "data").read_bytes() == b"first"


def test_a_folder_that_cannot_get_its_name_is_an_error(tmp_path):
    (tmp_path / "set").write_bytes(b"a file")
    with pytest.raises(OSError, match="set"), whole_folder(tmp_path / "set") as half:
        (half / "data").write_bytes(b"")
    assert everything(tmp_path) == ["set"]


def test_state_is_its_owners_alone_whatever_the_mask(tmp_path):
    before = os.umask(0)
    try:
        write_whole(tmp_path / "a" / "b" / "x", b"")
        with whole_folder(tmp_path / "a" / "set") as half:
            (half / "data").write_bytes(b"")
        with whole_file(tmp_path / "source" / "x", private=False) as half:
            half.write_bytes(b"")
    finally:
        os.umask(before)
    assert {mode(tmp_path / name) for name in ("a", "a/b", "a/set")} == {0o700}
    assert {mode(tmp_path / name) for name in ("a/b/x", "a/set/data")} == {0o600}
    assert mode(tmp_path / "source") == 0o777
    assert mode(tmp_path / "source/x") == 0o666


def test_names_are_on_the_disk_before_it_is_said_that_they_are(tmp_path, monkeypatch):
    """Synchronized are the file, under whatever name, and then the folder that names it."""
    seen = []
    right = os.fsync

    def noted(descriptor):
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        right(descriptor)

    monkeypatch.setattr(whole_files.os, "fsync", noted)
    write_whole(tmp_path / "x", b"1")
    assert [whole_files.is_half(seen[0]), seen[1:]] == [True, [tmp_path.name]]
