"""Spans for OpenTelemetry, one for each stage of an answer (extra `otel`).

Bottom of `featurestore`. Nothing is traced, at the cost of a comparison, until `configure` finds
that the standard environment variables name a collector.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
IDS = 10
"""Requests that a span of a batch names; of more, the first."""

_tracer: Any = None


class TracingError(UserError):
    """A collector is named, and what sends to it is not installed."""

    def __init__(self, variable: str) -> None:
        super().__init__(f"{variable} is set, and needs: pip install 'steadfeast[otel]'")


def configure(service: str) -> Callable[[], None]:
    """Trace from now on, if the environment names a collector; return what sends the last spans.

    Args:
        service: Name of this process, where `OTEL_SERVICE_NAME` gives none.

    Raises:
        TracingError: The extra `otel` is not installed.
    """
    global _tracer  # noqa: PLW0603 - one tracer a process, as OpenTelemetry has it
    named = next((name for name in ENDPOINTS if os.environ.get(name)), "")
    if not named or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise TracingError(named) from error
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", service)})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("steadfeast")

    def end() -> None:
        global _tracer  # noqa: PLW0603
        _tracer = None
        provider.shutdown()

    return end


def span(stage: str, subject: str, request_ids: Sequence[str]) -> AbstractContextManager[Any]:
    """Return a context that is a span where anybody traces.

    Args:
        stage: What is done: `read`, `predict`, `log`.
        subject: Feature service or model.
        request_ids: Of the rows.
    """
    if _tracer is None:
        return nullcontext()
    found: AbstractContextManager[Any] = _tracer.start_as_current_span(
        stage,
        attributes={
            "steadfeast.subject": subject,
            "steadfeast.rows": len(request_ids),
            "steadfeast.request_ids": list(request_ids[:IDS]),
        },
    )
    return found
