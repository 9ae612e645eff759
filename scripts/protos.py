"""Generate the protobuf stubs beside their `.proto` files; `--check` compares instead."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
IMPORT = re.compile(r"^(from|import) steadfeast\.v1", re.MULTILINE)
STUBS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write the stubs of every `.proto` below `out`."""
    bin_folder = Path(sys.executable).parent
    protos = sorted(
        str(path.relative_to(ROOT / "protos")) for path in ROOT.glob("protos/**/*.proto")
    )
    arguments = [
        "protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python")),
        *(f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")),
        *protos,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")
    # In Python the stubs live inside our package, not at the top of anybody's site-packages.
    for stub in (*out.rglob("*_pb2*.py"), *out.rglob("*_pb2*.pyi")):
        text = stub.read_text(encoding="utf-8")
        stub.write_text(IMPORT.sub(r"\1 steadfeast.protos.steadfeast.v1", text), encoding="utf-8")


def main() -> int:
    """Generate, or with `--check` say which stubs are not what their `.proto` gives."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT / "protos")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*_pb2*.py*")}
    kept = {
        p.relative_to(ROOT / "protos"): p.read_bytes()
        for p in ROOT.glob("protos/**/*")
        if p.name.endswith(STUBS)
    }
    stale = sorted(str(p) for p in fresh.keys() | kept.keys() if fresh.get(p) != kept.get(p))
    for path in stale:
        print(f"{path} is not what its .proto gives; run: make generate")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
