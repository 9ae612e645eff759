"""Who may act over HTTP: real requests against a real server, one for each way in and out."""

from __future__ import annotations

import http.client
import urllib.parse

import pytest

from steadfeast.featurestore.errors import ConfigError, NotFoundError
from steadfeast.monitor.config.schema import load
from steadfeast.monitor.decisions.model import NotDecidableError
from steadfeast.monitor.web.app import MAX_BODY_BYTES, Operator
from support import monitor_world as world
from support.tokens import access_of

TOKEN = "correct horse battery staple"  # noqa: S105  # of this test
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def done() -> list[tuple[object, ...]]:
    return []


@pytest.fixture
def url(drifting, served, done):
    def acknowledge(episode, actor, comment):
        if not episode.startswith("episode"):
            raise NotFoundError("episode", episode, ["episode-2"])
        done.append((episode, actor, comment))

    def decide(request, *, yes, actor, comment):
        if request == "late":
            raise NotDecidableError(request, "it does not wait")
        done.append((request, yes, actor, comment))

    with served(
        drifting, operator=Operator(access_of(operator=(TOKEN, ["admin"])), acknowledge, decide)
    ) as address:
        yield address


def post(url: str, path: str, form: dict[str, str], **headers: str):
    """Post a form; returns status, headers and body, and follows no redirect."""
    address = urllib.parse.urlsplit(url)
    client = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request("POST", path, urllib.parse.urlencode(form), {"content-type": FORM, **named})
    answer = client.getresponse()
    body = answer.read().decode()
    found = {name.lower(): value for name, value in answer.getheaders()}
    client.close()
    return answer.status, found, body


def session(url: str) -> tuple[str, str]:
    """Sign in and return the cookie and the key of the forms."""
    _, headers, _ = post(url, "/sign-in", {"actor": "on call", "token": TOKEN}, origin=url)
    cookie = headers["set-cookie"].partition(";")[0]
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    client.request("GET", "/", headers={"cookie": cookie})
    page = client.getresponse().read().decode()
    client.close()
    return cookie, page.partition('name="key" value="')[2].partition('"')[0]


ACK = {"verb": "acknowledge", "subject": "episode-2", "comment": "seen"}


def test_a_session_acts(url, done):
    cookie, key = session(url)
    status, headers, _ = post(url, "/act", {**ACK, "key": key}, cookie=cookie, origin=url)
    assert (status, headers["location"]) == (303, "./#episode-episode-2")
    for verb in ("approve", "reject"):
        form = {"verb": verb, "subject": "request-2", "key": key}
        assert post(url, "/act", form, cookie=cookie)[0] == 303
    assert done == [
        ("episode-2", "on call (operator)", "seen"),
        ("request-2", True, "on call (operator)", ""),
        ("request-2", False, "on call (operator)", ""),
    ]


def test_a_program_acts_with_the_token(url, done):
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert post(url, "/act", {**ACK, "actor": "robot"}, **bearer)[0] == 303
    assert done == [("episode-2", "robot (operator)", "seen")]
    assert post(url, "/act", ACK, **bearer)[::2] == (
        400,
        "field actor is needed: it is kept with what is done\n",
    )


def test_what_is_refused(url, done):
    """Each would have acted but for the one thing that is wrong with it."""
    cookie, key = session(url)
    good = {"cookie": cookie, "origin": url}
    form = {**ACK, "key": key}
    refusals = {
        "no session": (form, {"origin": url}, 401),
        "unknown session": (form, {**good, "cookie": "steadfeast_session=made-up"}, 401),
        "no key": (ACK, good, 403),
        "another's key": ({**ACK, "key": session(url)[1]}, good, 403),
        "another site": (form, {**good, "origin": "http://evil.example"}, 403),
        "a hidden origin": (form, {**good, "origin": "null"}, 403),
        "as the browser says": (form, {**good, "sec_fetch_site": "cross-site"}, 403),
        "a sibling site": (form, {**good, "sec_fetch_site": "same-site"}, 403),
        "a wrong token": ({**ACK, "actor": "x"}, {"authorization": "Bearer wrong"}, 401),
        "no form": (form, {**good, "content_type": "text/plain"}, 415),
        "too large": ({**form, "comment": "x" * MAX_BODY_BYTES}, good, 413),
        "a forged line": ({**form, "comment": "seen\n1 approved"}, good, 400),
        "a turned name": ({**form, "comment": "\u202egnp"}, good, 400),
        "no such verb": ({**form, "verb": "delete"}, good, 400),
        "no such episode": ({**form, "subject": "nothing"}, good, 404),
        "decided already": ({**form, "verb": "approve", "subject": "late"}, good, 409),
    }
    found = {name: post(url, "/act", f, **h)[0] for name, (f, h, _) in refusals.items()}
    assert found == {name: status for name, (_, _, status) in refusals.items()}
    assert done == []


def test_get_changes_nothing(url, done):
    cookie, key = session(url)
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    query = urllib.parse.urlencode({**ACK, "key": key})
    for path in (f"/act?{query}", f"/sign-out?{query}"):
        client.request("GET", path, headers={"cookie": cookie})
        answer = client.getresponse()
        answer.read()
        assert answer.status == 405
    client.close()
    assert done == []
    assert post(url, "/act", {**ACK, "key": key}, cookie=cookie)[0] == 303  # still signed in


def test_the_cookie_is_kept_from_scripts_and_other_sites(url):
    _, headers, _ = post(url, "/sign-in", {"actor": "a", "token": TOKEN})
    flags = {part.strip().lower() for part in headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags


def test_a_refusal_is_a_page_for_a_person(url):
    html = post(url, "/sign-in", {"actor": "a", "token": "no"}, accept="text/html")
    assert html[0] == 401
    assert "the token is wrong" in html[2]
    assert "</form>" in html[2]


def test_signing_out_ends_the_session(url, done):
    cookie, key = session(url)
    assert post(url, "/sign-out", {"key": "no"}, cookie=cookie)[0] == 403
    assert post(url, "/sign-out", {"key": key}, cookie=cookie)[0] == 303
    assert post(url, "/act", {**ACK, "key": key}, cookie=cookie)[0] == 401
    assert done == []


@pytest.mark.parametrize(
    "operator", [None, Operator(access_of(), lambda *_: None, lambda *_, **__: None)]
)
def test_without_a_token_there_is_no_way_in(drifting, served, operator):
    with served(drifting, operator=operator) as address:
        for path in ("/act", "/sign-in", "/sign-out"):
            assert post(address, path, {**ACK, "actor": "a", "token": ""})[0] == 404


@pytest.mark.parametrize(
    ("old", "new"),
    [(TOKEN, "hunter2"), ("window: 3d", "window: 36h"), ("pipeline: main", "pipeline: other")],
)
def test_a_refused_configuration_does_not_print_the_token(tmp_path, old, new):
    """Whatever else is wrong with the file."""
    path = world.configure(tmp_path, pipeline=1)
    tokens = f"security:\n  tokens: {{ann: {{token: {TOKEN}, roles: [admin]}}}}\n"
    path.write_text(tokens + path.read_text())
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert TOKEN not in str(caught.value)
    assert "hunter2" not in str(caught.value)
