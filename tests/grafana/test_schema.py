"""The dashboards against Grafana's own TypeScript types, compiled by the real compiler."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOARDS = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
}
OPTIONS = {
    "noEmit": True,
    "strict": True,
    "skipLibCheck": True,
    "module": "esnext",
    "moduleResolution": "bundler",
    "target": "es2022",
    "types": [],
}

HEAD = """\
import type { Dashboard, DataQuery, Panel } from '@grafana/schema';
// JSON has no enums: a string enum is the union of its values.
type Json<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Json<U>[]
  : { [K in keyof T]: Json<T[K]> };
// Grafana's package leaves each data source its query; this is what we use of Prometheus's.
type Query = Json<DataQuery> & {
  expr: string, legendFormat?: string, format?: 'table' | 'time_series',
  instant?: boolean, range?: boolean, exemplar?: boolean, editorMode?: 'code' | 'builder',
};
type Annotation = Json<NonNullable<NonNullable<Dashboard['annotations']>['list']>[number]>;
type Board = Json<Omit<Dashboard, 'panels' | 'annotations'>>
  & { annotations: { list: (Omit<Annotation, 'target'> & { target: Query })[] } };
type Typed<Options, Custom> = Json<Omit<Panel<never, Custom>, 'options' | 'targets'>>
  & { options?: Partial<Json<Options>>, targets?: Query[] };
"""


def program(boards: dict[str, Any], modules: Path) -> str:
    """Return TypeScript in which every dashboard and panel is a literal of Grafana's type."""
    types = modules / "@grafana" / "schema" / "dist" / "types" / "raw" / "composable"
    kinds = {
        panel["type"].replace("-", "") for board in boards.values() for panel in board["panels"]
    }
    lines = [HEAD]
    customs = {}
    for kind in sorted(kinds):
        found = types / kind / "panelcfg" / "x" / "types.gen"
        declared = found.with_suffix(".gen.d.ts").read_text("utf-8")
        customs[kind] = f"{kind}.FieldConfig" if "interface FieldConfig" in declared else "unknown"
        lines.append(f"import type * as {kind} from '{found}';")
    for name, board in boards.items():
        rest = {key: value for key, value in board.items() if key != "panels"}
        lines.append(f"export const {name}: Board = {json.dumps(rest)};")
        for panel in board["panels"]:
            kind = panel["type"].replace("-", "")
            typed = f"Typed<{kind}.Options, {customs[kind]}>"
            lines.append(f"export const {name}_{panel['id']}: {typed} = {json.dumps(panel)};")
    return "\n".join(lines)


def compiled(boards: dict[str, Any], modules: Path, folder: Path) -> str:
    """Return what the compiler has to say; empty when it is content."""
    (folder / "boards.ts").write_text(program(boards, modules), "utf-8")
    (folder / "node_modules").symlink_to(modules)
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS}), "utf-8")
    tsc = modules / "typescript" / "bin" / "tsc"
    ran = subprocess.run(
        ["node", tsc, "--project", "tsconfig.json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ran.stdout + ran.stderr


def test_the_dashboards_are_of_grafanas_types(node_modules: Path, tmp_path: Path):
    assert compiled(BOARDS, node_modules, tmp_path) == ""


def test_the_compiler_would_find_a_mistake(node_modules: Path, tmp_path: Path):
    """One mistake in each of four places; the compiler names all of them."""
    boards = {name: copy.deepcopy(BOARDS["overview"]) for name in ("one", "two", "three", "four")}
    boards["one"]["titel"] = "a typing error"
    panels = {name: board["panels"][0] for name, board in boards.items()}
    panels["two"]["fieldConfig"]["defaults"]["thresholds"]["mode"] = "absolut"
    panels["three"]["options"]["graphMode"] = "lines"
    panels["four"]["targets"][0]["expression"] = "up"
    said = compiled(boards, node_modules, tmp_path)
    for word in ("titel", "absolut", '"lines"', "expression"):
        assert word in said
    assert said.count("error TS") == len(boards)
