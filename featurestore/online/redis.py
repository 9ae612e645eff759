"""The shared online store: Redis 7 or later, one server or a cluster.

Above `base`. A value is the string `steadfeast:<project>:<view>:{<key>}`, with `@<generation>`
behind the view once it was filled anew; the braces make an entity's rows of all views live on one
node of a cluster. Layouts are a hash beside them, and which generation is served is a string that
each read gets with its rows, so that a server that lost them is noticed. The server itself decides
which row stays, in a Lua script that compares event and created time; what it cannot decide comes
back, is merged here, and replaces what was compared only if that is still there.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from feast.repo_config import FeastConfigBaseModel
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, SecretStr

from steadfeast.featurestore.errors import MissingExtraError, StoreUnavailableError
from steadfeast.featurestore.online.base import PackedOnlineStore
from steadfeast.featurestore.online.packing import Layouts, StoredLayout
from steadfeast.featurestore.online.row_store import HEAD
from steadfeast.featurestore.online.waiting import MARKER
from steadfeast.featurestore.rows import HEADER_BYTES, ORDER_BYTES, Layout, biased

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import RepoConfig

    from steadfeast.featurestore.online.progress import Head, Place
    from steadfeast.featurestore.online.waiting import Merge

_SCRIPT_ROWS = 128  # rows per call of the script: a call blocks the server
_PIPELINE_CALLS = 64
_SCAN_ROWS = 2048
_POLICY_SECONDS = 1.0
"""How long a server's way with full memory is taken for what it was."""

# Strings are compared byte by byte: Lua's own order follows the server's locale.
_PUT = f"""
local function compare(a, from, b, start, size)
  local x = {{string.byte(a, from, from + size - 1)}}
  local y = {{string.byte(b, start, start + size - 1)}}
  for i = 1, size do
    if x[i] ~= y[i] then return (x[i] or 0) - (y[i] or 0) end
  end
  return 0
end
local settled, plain = ARGV[1], ARGV[2] == '1'
local function single(old)
  return plain and string.sub(old, {ORDER_BYTES + 1}, {HEADER_BYTES}) ~= ARGV[3]
    and compare(old, 1, settled, 1, 8) <= 0 and compare(old, 9, settled, 1, 8) <= 0
end
local changed, ties = 0, {{}}
for i, key in ipairs(KEYS) do
  local old, new = redis.call('GET', key), ARGV[i + 3]
  if not old then
    redis.call('SET', key, new)
    changed = changed + 1
  elseif old ~= new then
    local order = single(old) and compare(new, 1, old, 1, {ORDER_BYTES}) or 0
    if order > 0 then
      redis.call('SET', key, new)
      changed = changed + 1
    elseif order == 0 then
      ties[#ties + 1] = i - 1
      ties[#ties + 1] = old
    end
  end
end
return {{changed, ties}}
"""

_REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

_SWAP = """
if redis.call('GET', KEYS[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
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
        max_ahead_seconds: Rows that are due further ahead of the writer's clock are left out;
            those within wait until they are due.
        when_lost: What to answer where rows are gone, or may be because the server's
            `maxmemory-policy` evicts keys at will: `refuse`, or `mark`, which gives what is not
            there the status INVALID.
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
    max_ahead_seconds: NonNegativeFloat = 86_400.0
    when_lost: Literal["refuse", "mark"] = "refuse"


class RedisOnlineStore(PackedOnlineStore):
    """Packed rows in Redis."""

    def __init__(self) -> None:
        super().__init__()
        self._clients: dict[str, Any] = {}
        self._idle: defaultdict[tuple[int, int], deque[Any]] = defaultdict(deque)
        self._doubts: dict[str, tuple[float, str]] = {}

    def release(self) -> None:
        """Close the connections."""
        self._idle.clear()
        while self._clients:
            self._clients.popitem()[1].close()

    def _get(
        self, config: RepoConfig, place: Place, keys: Sequence[bytes]
    ) -> list[bytes | None] | None:
        start = _name(place.name, b"")[:-1]
        names = [start + key + b"}" for key in keys]
        names.append(_value_name(place.space, HEAD))
        with self._client(config) as client:
            if config.online_store.cluster:
                found = cast("list[bytes | None]", client.mget_nonatomic(names))
            else:
                found = self._mget(client, names)
        head = found.pop()
        served = head is not None and head.startswith(place.generation.encode())
        return found if served else None

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
        place: Place,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
        merge: Merge,
    ) -> int | None:
        changed = 0
        with self._client(config) as client:
            _keep_layout(client, place.space, layout, "known")
            size = 1 if config.online_store.cluster else _SCRIPT_ROWS
            how = (biased(merge.settled), b"1" if merge.plain else b"0", MARKER)
            left = [(_name(place.name, key), value) for key, value in pairs]
            while left:
                calls = [left[i : i + size] for i in range(0, len(left), size)]
                met: list[tuple[bytes, bytes, bytes]] = []
                for start in range(0, len(calls), _PIPELINE_CALLS):
                    some = calls[start : start + _PIPELINE_CALLS]
                    pipeline = client.pipeline(transaction=False)
                    for call in some:
                        names, values = zip(*call, strict=True)
                        # redis-py has no eval() on a cluster's pipeline, yet routes it by its key.
                        pipeline.execute_command("EVAL", _PUT, len(names), *names, *how, *values)
                    for call, (count, back) in zip(some, pipeline.execute(), strict=True):
                        changed += count
                        met += [
                            (*call[at], old) for at, old in zip(back[::2], back[1::2], strict=True)
                        ]
                if not met:
                    break
                merge.layouts = self._layouts(config, place.space)
                count, left = _settle(client, merge, met)
                changed += count
        return changed

    def _delete(self, config: RepoConfig, place: Place, keys: Sequence[bytes]) -> int:
        with self._client(config) as client:
            return _unlink(client, (_name(place.name, key) for key in keys))

    def _pairs(self, config: RepoConfig, place: Place) -> Iterator[list[tuple[bytes, bytes]]]:
        start, seen = len(_name(place.name, b"")) - 1, set()  # SCAN may give a key twice
        with self._client(config) as client:
            batch: list[bytes] = []
            for name in client.scan_iter(f"steadfeast:{place.name}:{{*", count=_SCAN_ROWS):
                if name in seen:
                    continue
                seen.add(name)
                batch.append(name[start:-1])
                if len(batch) == _SCAN_ROWS:
                    yield _present(batch, self._get(config, place, batch))
                    batch = []
            if batch:
                yield _present(batch, self._get(config, place, batch))

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

    def _serve(self, config: RepoConfig, space: str, old: Head | None, new: Head) -> bool:
        kept = None if old is None else old.to_bytes()
        if not self._swap(config, space, HEAD, kept, new.to_bytes()):
            return False
        if old is not None:
            self._clear(config, space)
        return True

    def _clear(self, config: RepoConfig, space: str) -> None:
        """Remove rows and progress of every generation that the head does not name.

        Names are listed first and the head is read then: a generation whose rows are in the list
        was begun before, so a head that does not name it has left it behind for good.
        """
        patterns = (":{*", "@*", ":progress:*")
        with self._client(config) as client:
            for pattern in patterns:
                names = client.scan_iter(f"steadfeast:{space}{pattern}", count=_SCAN_ROWS)
                while batch := list(islice(names, _SCAN_ROWS)):
                    head = self.head(config, space)
                    places = () if head is None else head.places
                    stay = tuple(_name(place.name, b"")[:-1] for place in places)
                    notes = {_value_name(space, f"progress:{one.generation}") for one in places}
                    gone = [n for n in batch if not n.startswith(stay) and n not in notes]
                    if gone and places:
                        _unlink_batch(client, gone)

    def _drop(self, config: RepoConfig, spaces: Iterable[str]) -> None:
        with self._client(config) as client:
            for space in spaces:
                for pattern in (f"steadfeast:{space}:*", f"steadfeast:{space}@*"):
                    _unlink(client, client.scan_iter(pattern, count=_SCAN_ROWS))

    def _value(self, config: RepoConfig, space: str, name: str) -> bytes | None:
        with self._client(config) as client:
            return cast("bytes | None", client.get(_value_name(space, name)))

    def _swap(
        self, config: RepoConfig, space: str, name: str, old: bytes | None, new: bytes
    ) -> bool:
        key = _value_name(space, name)
        with self._client(config) as client:
            if old is None:
                return bool(client.eval(_SWAP, 1, key, new))
            return bool(client.eval(_REPLACE, 1, key, old, new))

    def _describe(self, config: RepoConfig) -> str:
        parts = urlsplit(config.online_store.url.get_secret_value())
        # The address without the user's name and password.
        return f"redis {parts.hostname}:{parts.port or 6379}{parts.path}"

    def _doubt(self, config: RepoConfig) -> str:
        url = config.online_store.url.get_secret_value()
        until, doubt = self._doubts.get(url, (0.0, ""))
        if monotonic() >= until:
            with self._client(config) as client:
                doubt = _evicts(client)
            self._doubts[url] = monotonic() + _POLICY_SECONDS, doubt
        return doubt

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
            problem = f"{type(error).__name__}: {error}"
            raise StoreUnavailableError(self._describe(config), problem) from error


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


@lru_cache(maxsize=1024)
def _value_name(space: str, name: str) -> bytes:
    return f"steadfeast:{space}:{name}".encode()


def _evicts(client: Any) -> str:
    """Say how a server may drop rows of its own accord; empty when it does not, or hides it."""
    from redis.exceptions import NoPermissionError  # noqa: PLC0415 - the extra `redis`

    try:
        found = client.info("memory")
    except NoPermissionError:
        return ""
    nodes = found.values() if "maxmemory_policy" not in found else [found]
    for node in nodes:  # of a cluster, one answer a node
        policy = str(node.get("maxmemory_policy", ""))
        if policy.startswith("allkeys"):
            return (
                f"may drop rows unasked: its maxmemory-policy is {policy}; set noeviction, or a "
                "volatile policy (its rows never expire), or online_store.when_lost: mark"
            )
    return ""


def _keep_layout(client: Any, space: str, layout: Layout, how: str) -> None:
    name = _layouts_name(space)
    client.eval(_KEEP_LAYOUT, 1, name, layout.id.hex(), layout.serialize(), how)


def _settle(
    client: Any, merge: Merge, met: Sequence[tuple[bytes, bytes, bytes]]
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Merge `(name, new, old)` here; return how many changed, and what is to be tried again."""
    tried = []
    pipeline = client.pipeline(transaction=False)
    for name, new, old in met:
        value = merge(new, old)
        if value != old:
            tried.append((name, new))
            pipeline.execute_command("EVAL", _REPLACE, 1, name, old, value)
    done = pipeline.execute() if tried else []
    again = [pair for pair, ok in zip(tried, done, strict=True) if not ok]
    return len(tried) - len(again), again


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


def _present(
    keys: Sequence[bytes], rows: Sequence[bytes | None] | None
) -> list[tuple[bytes, bytes]]:
    if rows is None:  # another generation is served by now
        return []
    return [(key, row) for key, row in zip(keys, rows, strict=True) if row is not None]
