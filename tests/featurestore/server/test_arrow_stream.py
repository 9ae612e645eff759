"""A few kilobytes that stand for gigabytes are refused before they are decoded."""

import contextlib
import http.client
import zlib

import grpc
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.featurestore.errors import RequestError
from steadfeast.featurestore.server import arrow_stream
from support.edge import ENTITIES, get, ipc

MANY = 200_000_000


def stream(table, compression=None):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("kind", ["plain", "dictionary"])
def test_what_is_compressed_is_refused_at_no_cost(compression, kind):
    zeros = pa.array([0] * 1_000_000)
    column = zeros if kind == "plain" else pa.array(["x" * 1000] * 3).dictionary_encode()
    content = stream(pa.table({"user_id": column}), compression)
    before = pa.total_allocated_bytes()
    with pytest.raises(RequestError, match="entities: is compressed"):
        arrow_stream.read("entities", content)
    assert pa.total_allocated_bytes() - before < len(content) + 10_000


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(MANY),
        pa.RunEndEncodedArray.from_arrays(pa.array([MANY], pa.int32()), pa.array([1])),
    ],
    ids=["null", "run-end encoded"],
)
def test_rows_that_take_no_bytes_are_counted_before_they_are_decoded(column):
    content = stream(pa.table({"user_id": column}))
    assert len(content) < 2000
    with pytest.raises(RequestError, match=r"200,000,000 rows; send at most 100,000"):
        arrow_stream.read("entities", content)


@pytest.mark.parametrize(
    "table",
    [
        ENTITIES,
        ENTITIES.slice(0, 0),
        pa.table({"c": pa.array(["a", "b", "a"]).dictionary_encode(), "d": [[1], [], None]}),
    ],
)
def test_what_is_plain_is_read_as_it_is(table):
    assert arrow_stream.read("entities", ipc(table)).equals(table)


@settings(max_examples=300)
@given(st.data())
def test_whatever_is_sent_is_a_stream_or_refused(data):
    content = bytearray(ipc(ENTITIES))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    with contextlib.suppress(RequestError):
        arrow_stream.read("entities", bytes(content[:end]))


def test_both_edges_refuse_what_is_compressed_and_too_many_rows(edge, channel):
    for entities, words in (
        (stream(ENTITIES, "zstd"), "compressed"),
        (stream(pa.table({"user_id": pa.nulls(100_001, pa.null())})), "100,001 rows"),
    ):
        with pytest.raises(grpc.RpcError, match=words) as caught:
            get(channel, entities)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    bomb = zlib.compress(b" " * 2**22)
    for path in ("/get-online-features", "/labels", "/push"):
        connection = http.client.HTTPConnection("127.0.0.1", edge.http_port, timeout=30)
        connection.request("POST", path, bomb, {"content-encoding": "deflate"})
        answer = connection.getresponse()
        assert answer.status == 422
        assert b"Content-Encoding" in answer.read()
        connection.close()
