"""Words from outside in terminals and logs."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.featurestore.errors import RequestError
from steadfeast.featurestore.plain_text import (
    check_plain,
    check_plain_message,
    escaped,
    escaped_message,
)
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb


@given(st.text())
def test_what_is_escaped_holds_no_control_character_and_passes(text: str):
    """Against the Unicode database, which our pattern was not made from."""
    plain = escaped(text)
    check_plain("text", plain)
    assert not any(unicodedata.category(one) in {"Cc", "Zl", "Zp"} for one in plain)
    assert not any(unicodedata.bidirectional(one) in _TURNS for one in plain)
    assert escaped(plain) == plain


_TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp", "Cf", "Cs"])))
def test_plain_words_in_any_script_stay_as_they_are(text: str):
    assert escaped(text) == text
    check_plain("text", text)


def test_lines_of_ours_stay():
    assert escaped("one\ntwo\x1b[31m", lines=True) == "one\ntwo\\x1b[31m"
    assert escaped("one\ntwo") == "one\\ntwo"


def test_every_text_of_a_message_is_looked_at():
    """Nested, repeated, and in maps."""
    bad = "x\r\nforged"
    run = pb.Run(reason=bad, gates=[pb.Gate(name="ok"), pb.Gate(detail=bad)])
    run.cause.features.add(feature=bad)
    run.cause.episode_ids.append(bad)
    run.model_files["model.skops"] = bad
    run.metrics["auc\x07"] = 0.5
    plain = escaped_message(run)
    check_plain_message(plain)
    assert plain.reason == "x\\r\\nforged"
    assert plain.gates[1].detail == plain.cause.episode_ids[0] == plain.reason
    assert dict(plain.metrics) == {"auc\\x07": 0.5}
    assert run.reason == bad
    assert escaped_message(plain) is plain
    for made, path in (
        (pb.Run(reason=bad), "reason"),
        (pb.Run(gates=[pb.Gate(), pb.Gate(detail=bad)]), "gates.1.detail"),
        (pb.Run(cause=pb.Cause(episode_ids=["a", bad])), "cause.episode_ids.1"),
        (pb.Run(model_files={"a": bad}), "model_files.1"),
    ):
        with pytest.raises(RequestError) as caught:
            check_plain_message(made)
        assert caught.value.field == path
