"""The HTTP port as a client and a person see it: real requests, and the page in real Chromium."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
import urllib.error
import urllib.request
from html.parser import HTMLParser

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from steadfeast.monitor.decisions.model import TriggerState
from steadfeast.monitor.exporter import metrics
from steadfeast.monitor.ledger.state import MonitorState, State
from steadfeast.monitor.web.app import HEADERS, Health, Operator
from support.tokens import access_of

WELL = Health(ok=True)
TIMES = "\N{MULTIPLICATION SIGN}"


def get(url: str, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # a server of ours
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read().decode()


class Text(HTMLParser):
    """Collects a page's words, ids and links, and checks that its tags nest."""

    VOID = frozenset({"meta", "link", "br", "wbr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.ids, self.links, self.open = [], [], [], []
        self.tags = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        found = dict(attrs)
        assert "style" not in found  # the policy would refuse it
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src") if name in found]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in {"td", "th"}:
            self.words.append(" ")

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def test_the_page_says_what_is_wrong_since_when_and_what_happened(drifting, served):
    with served(drifting) as url:
        status, _, html = get(url)
    page = Text(html)
    assert status == 200
    assert page.text.count("4 problems open") == 2  # the title of the window, and the headline
    for words in (
        "Data incident: null burst",
        "Since 13 Jul 2013 00:00 UTC, 2 days of event time",
        "up to 40 50.0% 2.0%",
        "Invariant I2 does not hold",
        "late_arrival: of 70,659 cells compared: 12 value",
        "2 of 3 checks hold, 2 Jan 2026 03:00 UTC",
        "over 40 48.0% 98.0%",
        "6 25.0% none",
        "wind_gust: 99.8 % null, 81.2 % in the reference",
        "Retraining is blocked: wind_gust: null burst",
        "Since 24 Jun 2013 00:00 UTC, 21 days of event time",
        "Retrain trigger delivered after 3 attempts",
        "Run run-2 running",
        "Nobody has acknowledged it yet. steadfeast monitor acknowledge episode-2",
        "Acknowledged by on call",
        f"auc 1.20{TIMES} 1.36{TIMES} drop 0.06, limit 0.05",
        f"weather__temp 6.40{TIMES} 6.40{TIMES} psi 1.28, limit 0.2",
        "median age 68 minutes when served",
        "3 of 10 features over the limit",
        "late_arrival, version 3",
        "auc is worse than when the model was trained",
        "weather__temp and 1 more have moved away from the reference",
        "AUC 0.771 against 0.757",
        "version 1 is champion by hand",
        "0.771 against 0.757 of the champion, promoted on 17 Mar 2013",
        "late_arrival: of 70,659 cells compared: 12 value; in weather__temp (8), distance (4)",
        "reference moved",
        "1 to deliver, the oldest since 2 Jan 2026 04:00 UTC, 1 given up",
    ):
        assert words in page.text, words
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not any("//" in link for link in page.links)
    assert "script" not in page.tags


def test_what_came_from_outside_is_escaped(drifting, served):
    """An alert's summary and a feature's name with markup in them stay text."""
    flights = drifting.monitors["flights"]
    nasty = '"><script>alert(1)</script>'
    verdict = dataclasses.replace(flights.verdicts[0], feature=nasty, reason=nasty)
    monitor = dataclasses.replace(flights, verdicts=(verdict,), name=nasty, blocked=nasty)
    with served(dataclasses.replace(drifting, monitors={nasty: monitor})) as url:
        page = Text(get(url)[2])
    assert "script" not in page.tags
    assert nasty in page.text
    assert "<b>6.4</b>" in page.text


@pytest.mark.parametrize(
    ("state", "health", "title"),
    [
        (State(), WELL, "Nothing to judge yet"),
        (State(monitors={"m": MonitorState("m", "s", "n")}), WELL, "Nothing to judge yet"),
        (State(), Health(ok=False, reason="tick hangs"), "not healthy: tick hangs"),
    ],
)
def test_the_headline_without_verdicts(state, health, title, served):
    with served(state, health) as url:
        assert title in Text(get(url)[2]).text


def test_no_data_is_not_called_well(drifting, served):
    """With nothing but features that cannot be judged the page does not say that all is well."""
    flights = drifting.monitors["flights"]
    monitor = dataclasses.replace(flights, verdicts=flights.verdicts[-1:], incidents=(), audit=None)
    with served(State(monitors={"flights": monitor})) as url:
        assert "Too little data to judge" in Text(get(url)[2]).text
    calm = dataclasses.replace(flights, verdicts=flights.verdicts[3:], incidents=(), audit=None)
    with served(State(monitors={"flights": calm})) as url:
        assert "No problem is open" in Text(get(url)[2]).text


def test_every_answer_has_the_headers(drifting, served):
    with served(drifting) as url:
        for path in ("/", "/metrics", "/healthz", "/static/page.css", "/static/no", "/no"):
            headers = {name.lower(): value for name, value in get(url + path)[1].items()}
            for name, value in HEADERS.items():
                assert headers[name.lower()] == value, path
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_only_the_listed_files_are_served(drifting, served):
    with served(drifting) as url:
        assert get(url + "/static/page.css")[0] == 200
        assert get(url + "/static/icon.svg")[1]["content-type"] == "image/svg+xml"
        for path in ("..%2fweb.py", "%2e%2e/web.py", "../web.py", "page.html.jinja", ""):
            assert get(f"{url}/static/{path}")[0] == 404


def test_metrics_in_the_format_that_is_asked_for(drifting, served):
    with served(drifting) as url:
        plain = get(url + "/metrics")
        opened = get(url + "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert plain[1]["content-type"].startswith("text/plain")
    assert opened[1]["content-type"].startswith("application/openmetrics-text")
    for text, parse in (
        (plain[2], text_string_to_metric_families),
        (opened[2], openmetrics.text_string_to_metric_families),
    ):
        found = {sample.name for family in parse(text) for sample in family.samples}
        assert {metrics.DRIFT_RATIO, metrics.DECISIONS, "process_cpu_seconds_total"} <= found


def test_probes(drifting, served):
    with served(drifting) as url:
        assert [get(url + path)[::2] for path in ("/healthz", "/readyz")] == [(200, "ok\n")] * 2
    with served(State()) as url:  # alive before the first tick has ended, and not ready
        assert get(url + "/healthz")[0] == 200
        assert get(url + "/readyz")[::2] == (503, "no job has ended well since the start\n")
    with served(drifting, Health(ok=False, reason="tick hangs", stuck=True)) as url:
        for path in ("/healthz", "/readyz"):
            assert get(url + path)[::2] == (503, "tick hangs\n")
    with served(drifting, Health(ok=False, reason="disk full")) as url:  # a restart frees no disk
        assert get(url + "/healthz")[::2] == (200, "ok\n")
        assert get(url + "/readyz")[::2] == (503, "disk full\n")


def test_the_report_is_the_page_in_one_file(drifting, served):
    """It says the same, asks for nothing, and its policy is that of its own style."""
    with served(drifting) as url:
        _, headers, html = get(url + "/report")
        shown = Text(get(url)[2])
    report = Text(html)
    assert not [link for link in report.links if not link.startswith("#")]
    assert not report.tags & {"script", "link", "form", "img"}
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = {name.lower(): value for name, value in headers.items()}["content-security-policy"]
    assert f"'sha256-{digest}'" in policy
    assert html.count(digest.replace("+", "&#43;")) + html.count(digest) >= 1
    for words in ("4 problems open", "wind_gust: null burst", "over 40 48.0% 98.0%"):
        assert words in report.text
        assert words in shown.text


def test_after_a_promotion_the_page_judges_nothing(drifting, served):
    flights = dataclasses.replace(
        drifting.monitors["flights"], superseded=True, incidents=(), audit=None
    )
    with served(State(monitors={"flights": flights})) as url:
        page = Text(get(url)[2])
    assert "Nothing to judge yet" in page.text
    assert "nothing judged yet for the live model" in page.text
    assert "over limit" not in page.text


@pytest.mark.service("chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_chromium(drifting, service_binary, scheme, served):
    """Nothing is refused or logged; it fits a phone; a key opens a feature; text is readable."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  # loads a second process

    with served(drifting) as url, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(service_binary("chromium")), args=CHROMIUM
        )
        try:
            page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("requestfailed", lambda request: said.append(request.url))
            page.goto(url)
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            feature = page.locator(".features summary").first
            feature.focus()
            page.keyboard.press("Enter")
            assert page.get_by_role("img", name="weather__temp: 6.4 on 15 Jul 2013").is_visible()
            assert page.evaluate(FAINT_TEXT) == []
            assert said == []
        finally:
            browser.close()


@pytest.mark.service("chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(drifting, service_binary, node_modules, scheme, served):
    """Every rule of axe-core, on the page with all of it unfolded, the report and the sign-in."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    axe = (node_modules / "axe-core" / "axe.min.js").read_text("utf-8")
    operator = Operator(
        access_of(operator=(TOKEN, ["admin"])), lambda *_: None, lambda *_, **__: None
    )
    with served(drifting, operator=operator) as url, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(service_binary("chromium")), args=CHROMIUM
        )
        try:
            # The page's policy refuses scripts; the scanner is let in past it, for the scan only.
            context = browser.new_context(bypass_csp=True, color_scheme=scheme)
            page = context.new_page()
            found = {}
            for path in ("/report", "/sign-in", "signed in"):
                if path == "signed in":
                    sign_in(page, url)
                else:
                    page.goto(url + path)
                page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
                page.evaluate(axe)
                result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
                found[path] = [(v["id"], v["nodes"][0]["html"]) for v in result["violations"]]
                assert len(result["passes"]) > 10
            assert not any(found.values()), found
        finally:
            browser.close()


@pytest.mark.service("chromium")
def test_the_buttons_in_chromium(drifting, service_binary, served):
    """By keyboard: sign in, acknowledge with a comment, approve; signed out they are gone."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    done: list[tuple[object, ...]] = []
    operator = Operator(
        access_of(operator=(TOKEN, ["admin"])),
        lambda episode, actor, comment: done.append((episode, actor, comment)),
        lambda request, *, yes, actor, comment: done.append((request, yes, actor, comment)),
    )
    waiting = dataclasses.replace(drifting.triggers[0], state=TriggerState.WAITING, run=None)
    state = dataclasses.replace(drifting, triggers=(waiting, drifting.triggers[1]))
    with served(state, operator=operator) as url, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(service_binary("chromium")), args=CHROMIUM
        )
        try:
            page = browser.new_page()
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.goto(url)
            assert page.get_by_role("button").count() == 0
            page.get_by_role("link", name="Sign in").click()
            sign_in(page, url)
            article = page.locator("#episode-episode-2")
            article.get_by_label("Comment").last.fill("looking at it")
            article.get_by_role("button", name="Acknowledge").press("Enter")
            page.wait_for_url("**/#episode-episode-2")
            article.get_by_role("button", name="Approve the retraining").press("Enter")
            page.wait_for_url("**/#retraining")
            assert done == [
                ("episode-2", "night shift (operator)", "looking at it"),
                ("request-2", True, "night shift (operator)", ""),
            ]
            page.get_by_role("button", name="Sign out").press("Enter")
            page.get_by_role("link", name="Sign in").wait_for()
            assert page.get_by_role("button").count() == 0
            assert said == []
        finally:
            browser.close()


def sign_in(page, url: str) -> None:
    page.goto(url + "/sign-in")
    page.get_by_label("Your name").fill("night shift")
    page.get_by_label("Operator token").fill(TOKEN)
    page.get_by_label("Operator token").press("Enter")
    page.get_by_text("Signed in as night shift (operator)").wait_for()


TOKEN = "correct horse battery staple"  # noqa: S105  # of this test

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

FAINT_TEXT = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = channels(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(ground(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) faint.push([walker.currentNode.data.trim(), ratio.toFixed(2)]);
  }
  return faint;
}"""
"""Text on the page whose contrast with its ground is below WCAG's 4.5 to 1."""


def test_the_page_says_what_the_model_is_thought_to_do_and_where(drifting, served):
    """Estimate beside truth, what weighs most, and each segment, with its words."""
    with served(drifting) as url:
        text = get(url)[2]
    rows = {
        cells[0]: cells
        for cells in (
            [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)
        )
        if cells
    }
    assert rows["AUC"] == ["AUC", "0.684", "0.671 to 0.697", "0.701", "+0.017", "0.752"]
    assert rows["MAE"] == ["MAE", "12.5", "11.9 to 13.1", "12", "", "11"]
    assert rows["origin EWR"][1:3] == ["3,000", "weather__temp"]
    assert rows["origin EWR"][4] == "0.65"
    assert rows["origin (others)"][2] == "too little data"
    assert "importance to the model: weather__temp 0.31." in html.unescape(text)
    assert "its run names no importances" in text  # of the monitor `delays`
