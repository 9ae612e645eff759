"""Words of people and programs, kept from passing for ours in terminals and logs.

Above `errors`. A line break begins a line that nobody wrote, an escape sequence moves the cursor, a
change of direction turns a name round. Edges refuse them where people's words come in; what is
printed escapes them, whatever way they came.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from steadfeast.featurestore.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

_OTHERS = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x1f{_OTHERS}]")
_CONTROL_IN_LINES = re.compile(f"[\x00-\x09\x0b-\x1f{_OTHERS}]")

_Message = TypeVar("_Message", bound="Message")


def check_plain(field: str, text: str) -> None:
    """Refuse words that hold control characters.

    Raises:
        RequestError: With the field, and the first of them.
    """
    found = _CONTROL.search(text)
    if found is not None:
        raise RequestError(field, f"holds the control character {found[0]!r}; write one plain line")


def check_plain_message(message: Message) -> None:
    """Refuse a message any of whose texts holds control characters.

    Raises:
        RequestError: With the path of the field.
    """
    for path, text in _texts(message, ""):
        check_plain(path, text)


def escaped(text: str, *, lines: bool = False) -> str:
    """Return `text` with every control character as it is written in Python.

    Args:
        text: From outside.
        lines: Whether line breaks are ours and stay.
    """
    pattern = _CONTROL_IN_LINES if lines else _CONTROL
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_message(message: _Message) -> _Message:
    """Return a message with all of its texts `escaped`; itself, when that changes nothing."""
    if not any(_CONTROL.search(text) for _, text in _texts(message, "")):
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    _escape(copy)
    return copy


def _texts(message: Message, path: str) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        for place, item in enumerate(_items(field, value)):
            where = f"{name}.{place}" if field.is_repeated else name
            if isinstance(item, str):
                yield where, item
            elif hasattr(item, "ListFields"):
                yield from _texts(item, f"{where}.")


def _items(field: Any, value: Any) -> list[Any]:
    if not field.is_repeated:
        return [value]
    return [*value, *value.values()] if hasattr(value, "values") else list(value)


def _escape(message: Message) -> None:
    for field, value in message.ListFields():
        if field.is_repeated and hasattr(value, "values"):
            _escape_map(value)
        elif field.is_repeated and field.type == field.TYPE_STRING:
            value[:] = [escaped(item) for item in value]
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, escaped(value))
        elif field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                _escape(item)


def _escape_map(entries: Any) -> None:
    for key in list(entries):
        value = entries[key]
        if hasattr(value, "ListFields"):
            _escape(value)
            continue
        del entries[key]
        name = escaped(key) if isinstance(key, str) else key
        entries[name] = escaped(value) if isinstance(value, str) else value
