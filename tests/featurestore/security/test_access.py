"""Tokens, sessions and wrong guesses, by themselves."""

from __future__ import annotations

import pytest

from steadfeast.featurestore.security import Access, RefusedError, Role, SecurityConfig
from steadfeast.featurestore.security.access import (
    MAX_ADDRESSES,
    MAX_FAILURES,
    MAX_SESSIONS,
    SESSION_SECONDS,
)
from support.tokens import security_of

TOKEN, OTHER = "correct horse battery staple", "another horse of this stable"
HERE, THERE = "192.0.2.1", "192.0.2.2"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tokens(**given: tuple[str, list[str]]):
    return security_of(**given).config.tokens


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access(tokens(ann=(TOKEN, ["admin"]), bob=(OTHER, ["read", "log"])), clock)


def guess(access: Access, address: str, times: int = MAX_FAILURES) -> None:
    for _ in range(times):
        with pytest.raises(RefusedError):
            access.authorize("guess", address=address)


def test_a_token_is_for_its_roles_and_admin_for_all(access: Access):
    for role in Role:
        assert access.authorize(TOKEN, role, HERE).name == "ann"
    assert access.authorize(OTHER, Role.LOG, HERE).name == "bob"
    with pytest.raises(RefusedError, match="the token of bob may not promote") as caught:
        access.authorize(OTHER, Role.PROMOTE, HERE)
    assert caught.value.status == 403


def test_an_empty_token_is_nobodys():
    access = Access(tokens(operator=("", ["admin"])))
    assert not access.needed
    with pytest.raises(RefusedError, match="no token in the configuration"):
        access.authorize("")


def test_wrong_guesses_shut_out_an_address_and_nobody_else(access: Access, clock: Clock):
    """Who was right from there before is let in too: an operator is not locked out by a guesser."""
    access.authorize(TOKEN, address=HERE)
    guess(access, HERE)
    with pytest.raises(RefusedError, match="too many") as caught:
        access.authorize("guess", address=HERE)
    assert caught.value.status == 429
    with pytest.raises(RefusedError, match="too many"):
        access.authorize(OTHER, address=HERE)  # right, and unknown from here: a lucky guess?
    assert access.authorize(TOKEN, address=HERE).name == "ann"
    assert access.authorize(OTHER, address=THERE).name == "bob"
    clock.now += 61
    assert access.authorize(OTHER, address=HERE).name == "bob"


def test_who_comes_a_moment_early_with_a_new_token_is_not_shut_out(access: Access):
    before = tokens(ann=(TOKEN, ["admin"]), bob=(OTHER, ["read", "log"]))
    fresh = "the-token-that-is-new"
    for _ in range(20):
        with pytest.raises(RefusedError):
            access.authorize(fresh, address=HERE)
    access.replace(before)  # a reload that changes nothing lets no guesser go on
    with pytest.raises(RefusedError, match="too many"):
        access.authorize(fresh, address=HERE)
    access.replace({**before, **tokens(cid=(fresh, ["read"]))})
    assert access.authorize(fresh, address=HERE).name == "cid"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_of_ipv6_a_host_has_a_whole_network(access: Access, one: str, other: str, same: bool):
    guess(access, one)
    if same:
        with pytest.raises(RefusedError, match="too many"):
            access.authorize(TOKEN, address=other)
    else:
        assert access.authorize(TOKEN, address=other)


def test_the_memory_of_addresses_is_bounded(access: Access):
    for number in range(MAX_ADDRESSES + 10):
        guess(access, f"10.0.{number // 256}.{number % 256}", 1)
    assert len(access._addresses) == MAX_ADDRESSES


def test_sessions_end_and_are_bounded(access: Access, clock: Clock):
    first = access.sign_in("a", TOKEN)
    clock.now = SESSION_SECONDS - 1
    assert access.session(first) is not None
    others = [access.sign_in("b", TOKEN) for _ in range(MAX_SESSIONS)]
    assert access.session(first) is None  # the oldest went
    clock.now += SESSION_SECONDS + 1
    assert all(access.session(cookie) is None for cookie in others)
    with pytest.raises(RefusedError, match="name"):
        access.sign_in(" ", TOKEN)


def test_a_token_that_changes_ends_what_it_opened(access: Access):
    cookie, kept = access.sign_in("a", TOKEN, HERE), access.sign_in("b", OTHER, HERE)
    access.replace(tokens(ann=(TOKEN[::-1], ["admin"]), bob=(OTHER, ["read", "log"])))
    assert access.session(cookie) is None
    assert access.session(kept) is not None
    with pytest.raises(RefusedError, match="wrong"):
        access.authorize(TOKEN, address=HERE)
    assert access.authorize(TOKEN[::-1], address=HERE).name == "ann"
    access.replace({})
    assert not access.needed


def test_a_client_on_the_same_machine_takes_the_token_for_the_least():
    config: SecurityConfig = security_of(
        ann=(TOKEN, ["admin"]), bob=(OTHER, ["read", "log"]), none=("", ["read"])
    ).config
    assert config.token_of(Role.READ) == OTHER
    assert config.token_of(Role.PROMOTE) == TOKEN
    assert security_of().config.token_of(Role.READ) == ""
