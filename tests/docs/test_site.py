"""The documentation site, built once as `make docs` builds it: its reference has everything.

What should be there is asked of the code: commands of Typer, keys of the models, names of
`__all__`, metrics of the registries, calls of the protocols, errors of the class tree.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from urllib.parse import unquote, urlsplit

import pytest
import typer.main

import steadfeast.testing
from steadfeast.featurestore import cli
from steadfeast.featurestore.command_line import ExitCode
from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.monitor.exporter.metrics import METRICS
from steadfeast.pipeline.inference.metrics import Figures
from steadfeast.protos.steadfeast import v1

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


class Page(HTMLParser):
    """Anchors, links and what is fetched of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.add(found.get("id"))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in {"script", "img", "iframe"}:
            self.fetched.append(found.get("src") or "")
        if found.get("rel") in {"stylesheet", "icon", "preconnect"}:
            self.fetched.append(found.get("href") or "")


def text_of(site: Path, name: str) -> str:
    html = (site / "reference" / f"{name}.html").read_text("utf-8")
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_no_link_is_broken_and_nothing_is_fetched_from_elsewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    wrong = []
    for path, page in pages.items():
        wrong += [f"{path.name} fetches {one}" for one in page.fetched if urlsplit(one).netloc]
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(to.fragment)
            if not target.exists() or (
                anchor and target in pages and anchor not in pages[target].anchors
            ):
                wrong.append(f"{path.name}: {link}")
    assert wrong == []


def test_every_command_and_option_is_there(site):
    cli._add_groups()
    text = text_of(site, "commands")

    def missing(command, words):
        below = {n: c for n, c in getattr(command, "commands", {}).items() if not c.hidden}
        for name, one in below.items():
            yield from missing(one, f"{words} {name}")
        if not below:
            section = re.search(
                rf"^{words}¶$(.*?)(?=^steadfeast [\w -]+¶$|\Z)", text, re.MULTILINE | re.DOTALL
            )
            if section is None:
                yield words
                return
            for option in command.params:
                if option.param_type_name == "option" and not getattr(option, "hidden", False):
                    yield from (f"{words} {o}" for o in option.opts if o not in section[1])

    assert list(missing(typer.main.get_command(cli.app), "steadfeast")) == []
    codes = text_of(site, "exit-codes")
    assert [one for one in ExitCode if one.meaning not in codes] == []


@pytest.mark.parametrize("section", ["store", "monitor", "pipeline", "security"])
def test_every_key_has_its_values_default_and_example(site, section):
    """The models are gone through, not the schema that the page is made of."""
    text = text_of(site, f"configuration/{section}")
    models = {
        "store": "featurestore.config:StoreConfig",
        "monitor": "monitor.config:DaemonConfig",
        "pipeline": "pipeline.config:PipelineConfig",
        "security": "featurestore.security:SecurityConfig",
    }
    module, name = models[section].split(":")
    model = getattr(import_module(f"steadfeast.{module}"), name)
    for key, field in model.model_fields.items():
        shown = field.alias or key
        entry = re.search(rf"^{shown}¶$(.*?)(?=^\w+¶$|\Z)", text, re.MULTILINE | re.DOTALL)
        assert entry, shown
        assert "value" in entry[1], shown
        assert "default" in entry[1], shown
        assert f"{shown}:" in entry[1], shown


def test_every_public_name_is_there(site):
    anchors = Page(site / "reference" / "python.html").anchors
    for package in (steadfeast, steadfeast.testing):
        names = [n for n in package.__all__ if not n.startswith("_")]
        assert [n for n in names if f"{package.__name__}.{n}" not in anchors] == []


def test_every_metric_of_the_servers_is_there(site):
    text = text_of(site, "server-metrics")
    model = [one.name for one in Figures().registry.collect()]
    source = (ROOT / "featurestore" / "server" / "metrics.py").read_text("utf-8")
    store = re.findall(r'^\w+ = "(steadfeast_\w+)"', source, re.MULTILINE)
    assert len(model) > 4
    assert len(store) > 4
    assert [name for name in [*model, *store] if name not in text] == []


def test_every_metric_of_the_daemon_is_there(site):
    text = (site / "metrics.html").read_text("utf-8")
    assert [name for name in METRICS if name not in text] == []


def test_every_call_message_and_value_is_there(site):
    text = text_of(site, "rpcs")
    for found in walk_packages(v1.__path__, f"{v1.__name__}."):
        if not found.name.endswith("_pb2"):
            continue
        file = import_module(found.name).DESCRIPTOR
        for service in file.services_by_name.values():
            assert f"service {service.name}" in text
            assert [m.name for m in service.methods if m.name not in text] == []
        for message in file.message_types_by_name.values():
            assert f"message {message.name}" in text
            assert [f.name for f in message.fields if f.name not in text] == []
        for enum in file.enum_types_by_name.values():
            assert [v.name for v in enum.values if v.name not in text] == []


def test_every_error_is_there(site):
    for part in ("featurestore", "monitor", "pipeline", "backtest", "doctor"):
        for path in (ROOT / part).rglob("errors.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            import_module(".".join(("steadfeast", *parts)))

    def below(error):
        for one in error.__subclasses__():
            yield one
            yield from below(one)

    anchors = Page(site / "reference" / "errors.html").anchors
    ours = {e.__name__ for e in below(SteadfeastError) if e.__module__.startswith("steadfeast.")}
    assert len(ours) > 20
    assert sorted(name for name in ours if name.lower() not in anchors) == []
