"""The shared online store: Redis 7 or later, one server or a cluster.

Above `base`. A row is the string `steadfeast:<project>:<view>:{<key>}`; the braces make an
entity's rows of all views live on one node of a cluster. Layouts are a hash beside them. The
server itself decides which row stays, in a Lua script that compares event and created time;
only rows that tie in both come back, are compared here by their canonical bytes, and replace
what was compared only if it is still there.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from feast.repo_config import FeastConfigBaseModel
from pydantic import NonNegativeInt, PositiveFloat, SecretStr

from steadfeast.featurestore.errors import MissingExtraError, StoreUnavailableError
from steadfeast.featurestore.online.base import PackedOnlineStore
from steadfeast.featurestore.online.packing import Layouts, StoredLayout, supersedes
from steadfeast.featurestore.rows.layout import ORDER_BYTES, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import RepoConfig

_SCRIPT_ROWS = 128  # rows per call of the script: a call blocks the server
_PIPELINE_CALLS = 64
_SCAN_ROWS = 2048

# Strings are compared byte by byte: Lua's own order follows the server's locale.
_PUT = f"""
local function compare(a, b)
  local x, y = {{string.byte(a, 1, {ORDER_BYTES})}}, {{string.byte(b, 1, {ORDER_BYTES})}}
  for i = 1, {ORDER_BYTES} do
    if x[i] ~= y[i] then return (x[i] or 0) - (y[i] or 0) end
  end
  return 0
end
local changed, ties = 0, {{}}
for i, key in ipairs(KEYS) do
  local old, new = redis.call('GET', key), ARGV[i]
  local order = old and compare(new, old) or 1
  if order > 0 then
    redis.call('SET', key, new)
    changed = changed + 1
  elseif order == 0 and old ~= new then
    ties[#ties + 1] = i - 1
    ties[#ties + 1] = old
  end
end
return {{changed, ties}}
"""

_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

_KEEP_LAYOUT = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'newest') or '0')
local known = tonumber(redis.call('HGET', KEYS[1], 'generation:' .. ARGV[1]) or '0')
if known == 0 or (ARGV[3] == 'newest' and known < newest) then
  redis.call('HSET', KEYS[1], 'newest', newest + 1, 'generation:' .. ARGV[1], newest + 1,
    'layout:' .. ARGV[1], ARGV[2])
end
return 1
"""


class RedisOnlineStoreConfig(FeastConfigBaseModel):
    """Section `online_store` of `feature_store.yaml`.

    Attributes:
        type: The plugin.
        url: `redis://host:port/db`, or `rediss://` for TLS.
        cluster: Whether the address is of a cluster's node.
        username: For Redis ACLs.
        password: Else the environment's STEADFEAST_REDIS_PASSWORD, else none.
        ca_file: Certificates that the server's must be signed by; else the system's.
        cert_file: This client's own certificate, for a server that asks for one.
        key_file: Its private key, if it is not in the same file.
        timeout_seconds: Limit of one attempt to connect or to get an answer.
        retries: Further attempts, with exponential backoff, when the server does not answer.
            Repeating a write does no harm.
    """

    type: Literal["steadfeast.RedisOnlineStore"] = "steadfeast.RedisOnlineStore"
    url: SecretStr = SecretStr("redis://localhost:6379/0")
    cluster: bool = False
    username: str | None = None
    password: SecretStr | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    timeout_seconds: PositiveFloat = 2.0
    retries: NonNegativeInt = 2


class RedisOnlineStore(PackedOnlineStore):
    """Packed rows in Redis."""

    def __init__(self) -> None:
        super().__init__()
        self._clients: dict[str, Any] = {}
        self._idle: defaultdict[tuple[int, int], deque[Any]] = defaultdict(deque)

    def release(self) -> None:
        """Close the connections."""
        self._idle.clear()
        while self._clients:
            self._clients.popitem()[1].close()

    def _get(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        start = _name(space, b"")[:-1]
        names = [start + key + b"}" for key in keys]
        with self._client(config) as client:
            if config.online_store.cluster:
                return cast("list[bytes | None]", client.mget_nonatomic(names))
            return self._mget(client, names)

    def _mget(self, client: Any, names: Sequence[bytes]) -> list[bytes | None]:
        """Do what `client.mget` does, without its pool and telemetry, a third of its time."""
        idle = self._idle[id(client), os.getpid()]
        try:
            connection = idle.pop()
        except IndexError:
            connection = client.connection_pool.get_connection()

        def ask() -> list[bytes | None]:
            connection.send_packed_command(connection.pack_command(b"MGET", *names))
            return cast("list[bytes | None]", connection.read_response())

        try:
            rows = connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
        except BaseException:
            connection.disconnect()  # an answer may be under way, which is not the next one's
            client.connection_pool.release(connection)
            raise
        idle.append(connection)
        return cast("list[bytes | None]", rows)

    def _put(
        self,
        config: RepoConfig,
        space: str,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
    ) -> int:
        changed, ties = 0, []
        with self._client(config) as client:
            _keep_layout(client, space, layout, "known")
            size = 1 if config.online_store.cluster else _SCRIPT_ROWS
            calls = [pairs[i : i + size] for i in range(0, len(pairs), size)]
            for start in range(0, len(calls), _PIPELINE_CALLS):
                some = calls[start : start + _PIPELINE_CALLS]
                pipeline = client.pipeline(transaction=False)
                for call in some:
                    names = [_name(space, key) for key, _ in call]
                    # redis-py has no eval() on a cluster's pipeline, yet routes EVAL by its key.
                    pipeline.execute_command(
                        "EVAL", _PUT, len(names), *names, *[row for _, row in call]
                    )
                for call, (count, tied) in zip(some, pipeline.execute(), strict=True):
                    changed += count
                    for place, old in zip(tied[::2], tied[1::2], strict=True):
                        ties.append((_name(space, call[place][0]), call[place][1], old))
            if ties:
                layouts = self._layouts(config, space)
                changed += sum(_settle(client, layouts, *tie) for tie in ties)
        return changed

    def _delete(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> int:
        with self._client(config) as client:
            return _unlink(client, (_name(space, key) for key in keys))

    def _pairs(self, config: RepoConfig, space: str) -> Iterator[list[tuple[bytes, bytes]]]:
        start, seen = len(_name(space, b"")) - 1, set()  # SCAN may give a key twice
        with self._client(config) as client:
            batch: list[bytes] = []
            for name in client.scan_iter(f"steadfeast:{space}:{{*", count=_SCAN_ROWS):
                if name in seen:
                    continue
                seen.add(name)
                batch.append(name[start:-1])
                if len(batch) == _SCAN_ROWS:
                    yield _present(batch, self._get(config, space, batch))
                    batch = []
            if batch:
                yield _present(batch, self._get(config, space, batch))

    def _layouts(self, config: RepoConfig, space: str) -> Layouts:
        with self._client(config) as client:
            fields = client.hgetall(_layouts_name(space))
        prefix = b"layout:"
        return {
            bytes.fromhex(field.removeprefix(prefix).decode()): StoredLayout(
                int(fields[b"generation:" + field.removeprefix(prefix)]),
                Layout.deserialize(value),
            )
            for field, value in fields.items()
            if field.startswith(prefix)
        }

    def _apply(self, config: RepoConfig, space: str, layout: Layout) -> None:
        with self._client(config) as client:
            _keep_layout(client, space, layout, "newest")

    def _drop(self, config: RepoConfig, spaces: Iterable[str]) -> None:
        with self._client(config) as client:
            for space in spaces:
                _unlink(client, client.scan_iter(f"steadfeast:{space}:*", count=_SCAN_ROWS))

    @contextmanager
    def _client(self, config: RepoConfig) -> Iterator[Any]:
        options = config.online_store
        url = options.url.get_secret_value()
        try:
            client = self._clients.get(url)
            if client is None:
                client = self._clients[url] = _connect(options)
            yield client
        except _errors() as error:
            parts = urlsplit(url)  # the address without the user's name and password
            place = f"redis {parts.hostname}:{parts.port or 6379}{parts.path}"
            raise StoreUnavailableError(place, f"{type(error).__name__}: {error}") from error


@cache
def _errors() -> tuple[type[Exception], ...]:
    """Return the bases of the client's errors."""
    try:
        from redis.exceptions import RedisClusterException, RedisError  # noqa: PLC0415 - extra
    except ModuleNotFoundError as error:
        raise MissingExtraError("redis") from error
    return RedisError, RedisClusterException


def _connect(options: RedisOnlineStoreConfig) -> Any:
    _errors()  # says which extra is missing
    import redis  # noqa: PLC0415 - the extra `redis`
    from redis.backoff import ExponentialWithJitterBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    given: dict[str, Any] = {
        "socket_timeout": options.timeout_seconds,
        "socket_connect_timeout": options.timeout_seconds,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), options.retries),
    }
    if options.username is not None:
        given["username"] = options.username
    password = os.environ.get("STEADFEAST_REDIS_PASSWORD")
    if options.password is not None:
        password = options.password.get_secret_value()
    if password:
        given["password"] = password
    files = {
        "ssl_ca_certs": options.ca_file,
        "ssl_certfile": options.cert_file,
        "ssl_keyfile": options.key_file,
    }
    given |= {name: file for name, file in files.items() if file is not None}
    make = redis.RedisCluster.from_url if options.cluster else redis.Redis.from_url
    return make(options.url.get_secret_value(), **given)


def _name(space: str, key: bytes) -> bytes:
    return b"steadfeast:%b:{%b}" % (space.encode("ascii"), key)


def _layouts_name(space: str) -> str:
    return f"steadfeast:{space}:layouts"


def _keep_layout(client: Any, space: str, layout: Layout, how: str) -> None:
    name = _layouts_name(space)
    client.eval(_KEEP_LAYOUT, 1, name, layout.id.hex(), layout.serialize(), how)


def _settle(client: Any, layouts: Layouts, name: bytes, new: bytes, old: bytes) -> int:
    """Replace a row of the same times if `new` is greater; start over if it has changed."""
    while supersedes(new, old, layouts):
        if client.eval(_REPLACE, 1, name, old, new):
            return 1
        changed, ties = client.eval(_PUT, 1, name, new)
        if changed or not ties:
            return int(changed)
        old = ties[1]
    return 0


def _unlink(client: Any, names: Iterable[bytes]) -> int:
    removed, batch = 0, []
    for name in names:
        batch.append(name)
        if len(batch) == _SCAN_ROWS:
            removed += _unlink_batch(client, batch)
            batch = []
    return removed + (_unlink_batch(client, batch) if batch else 0)


def _unlink_batch(client: Any, names: Sequence[bytes]) -> int:
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.unlink(name)
    return sum(pipeline.execute())


def _present(keys: Sequence[bytes], rows: Sequence[bytes | None]) -> list[tuple[bytes, bytes]]:
    return [(key, row) for key, row in zip(keys, rows, strict=True) if row is not None]
