"""The schema against a validator that knows nothing of pydantic, and against what is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from steadfeast.featurestore import config_schema
from steadfeast.featurestore.config import duration, load_section, written
from steadfeast.featurestore.errors import ConfigError
from steadfeast.featurestore.starter import Template, create

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(config_schema.text())
VALIDATOR = Draft7Validator(SCHEMA)


class Loader(yaml.SafeLoader):
    """Reads dates as text, as editors and JSON do."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base has it
        first: [(tag, regexp) for tag, regexp in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def loaded(text: str) -> Any:
    return yaml.load(text, Loader)  # noqa: S506 - a safe loader with one resolver less


def test_it_is_a_schema_whose_every_key_says_what_it_means():
    Draft7Validator.check_schema(SCHEMA)
    silent = [
        f"{name}.{key}"
        for name, one in SCHEMA["definitions"].items()
        for key, field in one.get("properties", {}).items()
        if not field.get("description")
    ]
    assert silent == []


def test_what_is_committed_is_what_the_command_writes(tmp_path: Path):
    kept = (ROOT / "docs" / config_schema.FILE).read_text(encoding="utf-8")
    command = [sys.executable, "-P", "-m", "steadfeast", "schema"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == kept
    out = tmp_path / "schema.json"
    subprocess.run([*command, "--out", out], check=True)
    assert out.read_text() == kept


@pytest.mark.parametrize("template", list(Template))
def test_new_projects_name_a_schema_beside_them_and_follow_it(template: Template, tmp_path: Path):
    folder = tmp_path / "shop"
    create(folder, template)
    text = (folder / "steadfeast.yaml").read_text()
    first, _, _ = text.partition("\n")
    assert first == f"# yaml-language-server: $schema={config_schema.FILE}"
    assert json.loads((folder / config_schema.FILE).read_text()) == SCHEMA
    assert list(VALIDATOR.iter_errors(loaded(text))) == []


def test_the_demo_follows_it():
    path = ROOT / "feature_repo" / "steadfeast.yaml"
    text = path.read_text()
    named = text.partition("\n")[0].rpartition("=")[2]
    assert (path.parent / named).resolve() == ROOT / "docs" / config_schema.FILE
    assert list(VALIDATOR.iter_errors(loaded(text))) == []


BASE = """
security: {tokens: {ci: {token: {file: token.txt}, roles: [admin]}}}
store: {repo: ., data: data, log: {flush_every: 500ms}, training: {pin: hash}}
monitor:
  state: state
  pipelines:
    one: 127.0.0.1:1
    two: {address: "[::1]:2", token: "${A_TOKEN:-}"}
    three: {kind: github, repository: a/b, workflow: w.yml}
  alerts: {slack: {kind: slack, url: "https://example.org/hook"}}
  monitors:
    sales:
      source: {view: sales}
      reference: {from: 2024-01-01, to: 2024-02-01}
      min_rows: ${ROWS:-200}
      multivariate: false
      refresh: 30d
      audit: never
      calendar: {days: {sales: [{from: 2024-11-25, to: 2024-12-03}]}}
    served: {service: sale, model: m, pipeline: one, reference: manifest.json}
pipeline:
  state: state
  models:
    m:
      service: sale
      recipe: train:train
      entities: examples.parquet
      label: y
      gates: [{metric: roc_auc, not_worse_by: 1%}, {check: "own:check"}]
      checks: {own: ["own:rows", {pandera: "own:schema"}]}
"""
CHANGES = [
    ("store", "repos", "."),
    ("store", "data", None),
    ("store.log", "when_full", "wait"),
    ("store.log", "flush_every", "7 days"),
    ("store.log", "rows_per_file", 0),
    ("monitor", "http", "9464"),
    ("monitor", "monitors", {}),
    ("monitor.pipelines.three", "repository", "a"),
    ("monitor.pipelines.three", "workflow", None),
    ("monitor.pipelines.three", "kind", "bitbucket"),
    ("monitor.alerts.slack", "kind", "pager"),
    ("monitor.monitors.sales", "windw", "7d"),
    ("monitor.monitors.sales", "refresh", "often"),
    ("monitor.monitors.sales", "audit", "always"),
    ("monitor.monitors.sales", "max_null_increase", 2),
    ("monitor.monitors.sales", "columns", {"a": "key"}),
    ("monitor.monitors.sales.reference", "from", None),
    ("pipeline.models.m", "task", "binry"),
    ("pipeline.models.m", "recipe", "train"),
    ("pipeline.models.m.checks", "nulls", -1),
    ("security.tokens.ci", "roles", ["root"]),
]


def refused(path: Path, content: dict[str, Any]) -> bool:
    """Say whether the models themselves refuse the file."""
    path.write_text(yaml.safe_dump(content))
    try:
        for name, model in config_schema.models().items():
            load_section(path, name, model)
    except ConfigError:
        return True
    return False


def test_what_is_accepted_follows_it_and_mistakes_do_not(tmp_path: Path):
    path = tmp_path / "steadfeast.yaml"
    (tmp_path / "token.txt").write_text("x" * 16)
    assert not refused(path, loaded(BASE))
    assert list(VALIDATOR.iter_errors(loaded(BASE))) == []
    for where, key, value in CHANGES:
        content = loaded(BASE)
        part = content
        for name in where.split("."):
            part = part.setdefault(name, {})
        if value is None:
            del part[key]
        else:
            part[key] = value
        assert refused(path, content), (where, key)
        assert not VALIDATOR.is_valid(content), (where, key)


def test_defaults_are_accepted_by_their_own_keys():
    for name, one in SCHEMA["definitions"].items():
        for key, field in one.get("properties", {}).items():
            if "default" in field:
                own = {**field, "definitions": SCHEMA["definitions"]}
                assert Draft7Validator(own).is_valid(field["default"]), (name, key)


@pytest.mark.parametrize("text", ["1500ms", "30s", "15m", "36h", "7d", "0s"])
def test_a_length_is_written_as_it_is_read(text: str):
    assert written(duration(text)) == text
    assert written(duration("4w")) == "28d"
