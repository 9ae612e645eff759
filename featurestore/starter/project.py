"""Write a new project's files, and say what to type next.

Above `sample`, which makes the data. Nothing that is there already is overwritten.
"""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import jinja2

from steadfeast.featurestore import config_schema
from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.starter.sample import write_sample

if TYPE_CHECKING:
    from pathlib import Path

_LAST_PORT = 65535
_PORTS = 5  # page, its gRPC, pipeline, model edge over gRPC and HTTP


class Template(StrEnum):
    """What a project is for: a model of a task, or a table that is watched without a model."""

    BINARY = "binary"
    REGRESSION = "regression"
    MULTICLASS = "multiclass"
    TABLE = "table"


_MODELS = {
    Template.BINARY: ("purchase", "bought", "Whether a customer buys within a day."),
    Template.REGRESSION: ("spending", "spent", "What a customer spends within a day."),
    Template.MULTICLASS: ("basket", "size", "How much a customer buys within a day."),
}
"""Name of the model, its label, and what it says."""

_FILES = {
    "feature_store.yaml": "feature_store.yaml.jinja",
    "features.py": "features.py.jinja",
    "steadfeast.yaml": "steadfeast.yaml.jinja",
    "test_features.py": "test_features.py.jinja",
    "Makefile": "Makefile.jinja",
    "README.md": "README.md.jinja",
    ".gitignore": "gitignore.jinja",
    ".feastignore": "feastignore.jinja",
}


class ProjectError(UserError):
    """A project that cannot be made.

    Attributes:
        folder: Where it was to be.
        problem: What is wrong, and what to do.
    """

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder, self.problem = folder, problem
        super().__init__(f"{folder}: {problem}")


def create(
    folder: Path, template: Template, *, port: int = 9464, now: datetime | None = None
) -> list[str]:
    """Make a project in `folder`; return the commands to run next, in order.

    Args:
        folder: A new folder, or an empty one; its name becomes the name of the Feast project.
        template: What it is for.
        port: First of the five ports that its servers listen on.
        now: The sample data end at the midnight before; without it, the clock says.

    Raises:
        ProjectError: The folder has files, its name cannot name a Feast project, or the ports
            are not there.
    """
    project = re.sub(r"\W+", "_", folder.resolve().name, flags=re.ASCII).strip("_").lower()
    if not re.match("[a-z]", project):
        raise ProjectError(folder, "a project's name starts with a letter, as in shop")
    if not 0 < port <= _LAST_PORT - _PORTS + 1:
        raise ProjectError(
            folder, f"port {port} is not from 1 to {_LAST_PORT - _PORTS + 1}; five are used"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(folder, "is there already and not empty; give a new folder")
    end = (now or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
    model, label, says = _MODELS.get(template, ("customers", "", "What customers did."))
    words = {
        "project": project,
        "template": template.value,
        "model": model,
        "label": label,
        "says": says,
        "end": f"{end:%Y-%m-%d}",
        "reference_from": f"{end - timedelta(days=75):%Y-%m-%d}",
        "reference_to": f"{end - timedelta(days=15):%Y-%m-%d}",
        "http": f"127.0.0.1:{port}",
        "grpc": f"127.0.0.1:{port + 1}",
        "pipeline": f"127.0.0.1:{port + 2}",
        "edge_grpc": f"127.0.0.1:{port + 3}",
        "edge_http": f"127.0.0.1:{port + 4}",
    }
    steps = next_steps(template, folder, words)
    files = dict(_FILES)
    if template is not Template.TABLE:
        files["train.py"] = "train.py.jinja"
    rendered = _rendered(files, {**words, "steps": steps[1:]})
    rendered[config_schema.FILE] = config_schema.text()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in rendered.items():
            (folder / name).write_text(text)
        write_sample(folder / "data" / "sources", end, template.value, label)
    except OSError as error:
        raise ProjectError(folder, f"cannot be written: {error.strerror}") from error
    return steps


def next_steps(template: Template, folder: Path, words: dict[str, str]) -> list[str]:
    """Return the shell commands that bring a new project to a running monitor."""
    ready = "curl -sf -w '\\n' --retry 60 --retry-delay 1 --retry-all-errors"
    steps = [
        f"cd {shlex.quote(str(folder))}",
        "steadfeast store apply --yes",
        "steadfeast store materialize",
        "python -m pytest -q test_features.py",
    ]
    if template is Template.TABLE:
        steps += ["steadfeast monitor calibrate", "steadfeast monitor run &"]
    else:
        body = '{"entities": {"customer": [1, 2]}}'
        steps += [
            f"steadfeast pipeline train {words['model']} --as-of {words['end']}",
            "steadfeast pipeline serve &",
            f"steadfeast model serve --grpc {words['edge_grpc']} --http {words['edge_http']} &",
            f"{ready} http://{words['edge_http']}/predict/{words['model']} -d '{body}'",
            "steadfeast monitor run &",
        ]
    return [*steps, f"{ready} http://{words['http']}/readyz", "steadfeast monitor status"]


def _rendered(files: dict[str, str], words: dict[str, object]) -> dict[str, str]:
    """Return the text of each file."""
    texts = jinja2.Environment(
        loader=jinja2.PackageLoader("steadfeast.featurestore.starter"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Python and YAML, of words that are checked above
    )
    return {name: texts.get_template(source).render(words) for name, source in files.items()}
