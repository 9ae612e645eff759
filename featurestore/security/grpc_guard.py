"""What every gRPC call passes: a token of the method's role, and limits that no client gets round.

Above `access`, below `ports`. The server runs on an event loop, so that a call that only waits
holds no thread: a request has to arrive within `REQUEST_SECONDS`, and where too many wait for
theirs, the one that waits longest is ended first. Servicers stay plain functions: those that may
block run in threads, coroutines in the loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, OrderedDict
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import grpc

from steadfeast.featurestore.errors import RequestError
from steadfeast.featurestore.grpc_errors import abort, bad_request
from steadfeast.featurestore.plain_text import check_plain_message
from steadfeast.featurestore.security.access import ANYBODY, Access, Principal, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from concurrent.futures import Executor

    from steadfeast.featurestore.security.config import Role

REQUEST_SECONDS = 5.0
"""In which a request, or the next one of a stream, has to arrive."""
MAX_WAITING = 1024
"""Calls whose request has not arrived."""
MAX_CALLS = 2048
"""Calls under way in all; of one principal, where there are tokens, half as many."""
MAX_OPEN_TO_ALL = 64
"""Calls under way of each method that everybody may call, and of reflection."""
REFLECTION = "/grpc.reflection."
"""How the names of its methods begin."""

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_END = object()


class _AbortError(Exception):
    """Ends a call with a status; only servicers see it pass."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        self.code, self.details, self.trailing = code, details, trailing
        super().__init__(details)


class Call:
    """What a servicer sees of a call: the part of `grpc.ServicerContext` that is used here.

    Attributes:
        principal: Who calls.
    """

    def __init__(self, context: Any, principal: Principal) -> None:
        self.principal = principal
        self._metadata = context.invocation_metadata() or ()
        self._peer = context.peer()
        self._ended = Event()
        self._callbacks: list[Callable[[], object]] = []
        context.add_done_callback(self._end)

    def invocation_metadata(self) -> Any:
        """Return what was sent with the call, as `(key, value)` pairs."""
        return self._metadata

    def peer(self) -> str:
        """Return the other end's address, as gRPC writes it."""
        return str(self._peer)

    def is_active(self) -> bool:
        """Whether anybody waits for the answer."""
        return not self._ended.is_set()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have `callback` called at the end of the call; false when it has ended."""
        if self._ended.is_set():
            return False
        self._callbacks.append(callback)
        return True

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call."""
        raise _AbortError(code, details)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call."""
        raise _AbortError(status.code, status.details, status.trailing_metadata or ())

    def _end(self, _: object) -> None:
        self._ended.set()
        for callback in self._callbacks:
            callback()


def caller(context: Any) -> Principal:
    """Return who makes a call; anybody, where it did not pass a guard."""
    return context.principal if isinstance(context, Call) else ANYBODY


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets calls through, each to its servicer.

    Args:
        access: Whose tokens count.
        roles: What each method needs, by its full name `/package.Service/Method`; None is for
            everybody. A method that is not named is refused.
        threads: Where servicers run that are no coroutines.
        plain: Whether requests with control characters in any text are refused.
    """

    def __init__(
        self,
        access: Access,
        roles: Mapping[str, Role | None],
        threads: Executor,
        *,
        plain: bool = False,
    ) -> None:
        self._access, self._roles, self._threads, self._plain = access, roles, threads, plain
        self._waiting: OrderedDict[int, asyncio.Timeout] = OrderedDict()
        self._under_way: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(details)
        if handler is None:
            return None
        # To a client, one message is a stream of one: taken as a stream, the call is ours before
        # its message has arrived, and can be refused or ended without waiting for it.
        answer: Any = self._single
        if handler.response_streaming:
            writes = inspect.iscoroutinefunction(handler.unary_stream or handler.stream_stream)
            answer = self._writing if writes else self._stream
        wrap = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return wrap(
            partial(answer, handler, details.method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    async def _single(self, handler: Any, method: str, requests: Any, context: Any) -> Any:
        try:
            principal = self._admitted(method, context)
            call = Call(context, principal)
            if handler.request_streaming:
                given, serve = self._each(requests), handler.stream_unary
            else:
                given, serve = await self._first(requests, call), handler.unary_unary
            counted = self._begin(method, principal)
            try:
                if inspect.iscoroutinefunction(serve):
                    return await serve(given, call)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, serve, given, call)
            finally:
                self._under_way[counted] -= 1
        except _AbortError as error:
            await context.abort(error.code, error.details, error.trailing)

    async def _stream(
        self, handler: Any, method: str, requests: Any, context: Any
    ) -> AsyncIterator[Any]:
        try:
            principal = self._admitted(method, context)
            call = Call(context, principal)
            if handler.request_streaming:
                given, serve = self._each(requests), handler.stream_stream
            else:
                given, serve = await self._first(requests, call), handler.unary_stream
            counted = self._begin(method, principal)
            try:
                answers = serve(given, call)
                if not hasattr(answers, "__aiter__"):
                    answers = self._in_threads(answers)
                async for answer in answers:
                    yield answer
            finally:
                self._under_way[counted] -= 1
        except _AbortError as error:
            await context.abort(error.code, error.details, error.trailing)

    async def _writing(self, handler: Any, method: str, requests: Any, context: Any) -> None:
        """Answer by a coroutine that writes to the context, as gRPC's own health service does."""
        try:
            principal = self._admitted(method, context)
            given = await self._first(requests, Call(context, principal))
            counted = self._begin(method, principal)
            try:
                await handler.unary_stream(given, context)
            finally:
                self._under_way[counted] -= 1
        except _AbortError as error:
            await context.abort(error.code, error.details, error.trailing)

    def _admitted(self, method: str, context: Any) -> Principal:
        if method not in self._roles:
            raise _AbortError(grpc.StatusCode.PERMISSION_DENIED, "nobody may call this method")
        role = self._roles[method]
        if role is None:
            return ANYBODY
        header = dict(context.invocation_metadata() or ()).get("authorization", "")
        try:
            return self._access.bearer(str(header), role, _host(context.peer()))
        except RefusedError as error:
            raise _AbortError(_CODES[error.status], str(error)) from error

    def _begin(self, method: str, principal: Principal) -> str:
        """Count a call that begins; return under which name."""
        count = self._under_way
        if self._roles[method] is None or method.startswith(REFLECTION):
            name, full = method, count[method] >= MAX_OPEN_TO_ALL
        else:
            name, total = principal.name, sum(n for key, n in count.items() if key[:1] != "/")
            full = total >= MAX_CALLS or bool(name and count[name] >= MAX_CALLS // 2)
        if full:
            problem = f"{count[name]} calls are under way; try again later"
            raise _AbortError(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        count[name] += 1
        return name

    async def _first(self, requests: Any, call: Call) -> Any:
        """Return the request of a call that has one, signed with whose token came with it."""
        request = await self._next(requests)
        if request is _END:
            raise _AbortError(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
        if not hasattr(request, "DESCRIPTOR"):
            return request
        if self._plain:
            try:
                check_plain_message(request)
            except RequestError as error:
                detail = bad_request([(error.field, error.problem)])
                abort(call, grpc.StatusCode.INVALID_ARGUMENT, str(error), detail)
        if call.principal.name and "actor" in request.DESCRIPTOR.fields_by_name:
            request.actor = call.principal.signed(request.actor)
        return request

    async def _each(self, requests: Any) -> AsyncIterator[Any]:
        while (request := await self._next(requests)) is not _END:
            yield request

    async def _next(self, requests: Any) -> Any:
        try:
            async with asyncio.timeout(REQUEST_SECONDS) as limit:
                self._waiting[id(limit)] = limit
                if len(self._waiting) > MAX_WAITING:
                    _, oldest = self._waiting.popitem(last=False)
                    with suppress(RuntimeError):  # it has just run out
                        oldest.reschedule(0)
                try:
                    return await anext(requests, _END)
                finally:
                    self._waiting.pop(id(limit), None)
        except TimeoutError as error:
            problem = f"no request came within {REQUEST_SECONDS:g} s"
            raise _AbortError(grpc.StatusCode.DEADLINE_EXCEEDED, problem) from error

    async def _in_threads(self, answers: Iterator[Any]) -> AsyncIterator[Any]:
        """Yield what a generator yields that may block."""
        loop = asyncio.get_running_loop()
        step = None
        try:
            while True:
                step = self._threads.submit(next, answers, _END)
                answer = await asyncio.wrap_future(step, loop=loop)
                if answer is _END:
                    return
                yield answer
        finally:
            if step is not None:
                # A client that has gone ends the call while a step may still be under way.
                step.add_done_callback(lambda _: answers.close())  # type: ignore[attr-defined]


def _host(peer: str) -> str:
    """Return the address in `ipv4:127.0.0.1:5000` or `ipv6:[::1]:5000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]") or peer
