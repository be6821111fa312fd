"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from .worker import Worker

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)


class Metrics:
    """The figures of one server."""

    content_type = CONTENT_TYPE

    def __init__(self, worker: Worker):
        self.registry = CollectorRegistry()
        kept = self.registry
        self.requests = Counter("lmf_requests", "Requests that were answered.", ["path", "status"], registry=kept)
        self.seconds = Histogram(
            "lmf_request_seconds",
            "Time from a request to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=kept,
        )
        self.first = Histogram(
            "lmf_first_token_seconds",
            "Time from a request to the first text of its reply.",
            buckets=_SECONDS,
            registry=kept,
        )
        self.read = Counter("lmf_prompt_tokens", "Tokens of prompts.", registry=kept)
        self.written = Counter("lmf_reply_tokens", "Tokens of replies.", registry=kept)
        Gauge("lmf_replies_writing", "Replies that are being written.", registry=kept).set_function(
            lambda: worker.writing
        )
        Gauge("lmf_replies_waiting", "Replies that were not begun.", registry=kept).set_function(lambda: worker.waiting)

    def answered(self, scope: Any, status: int, seconds: float) -> None:
        """Count an answer. Paths that nobody serves are one: they could be any number."""
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self.registry)
