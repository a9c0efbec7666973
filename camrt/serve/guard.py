"""What stands before the application: limits on requests, and a line of the log and a count for each.

It is an ASGI middleware, so that limits hold while a body arrives, before anything has parsed it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from camrt.serve.limits import Limits
from camrt.serve.logs import LOGGER
from camrt.serve.metrics import Metrics
from converters.terminal import amount

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER = {"Retry-After": "1"}
GONE = 499  # in logs and metrics: the client left before its answer, as nginx counts it
_DRAIN_SECONDS = 2.0  # that the rest of a refused body is read, so that the client sees the answer
_QUIET = ("/v2/health/", "/metrics")  # asked every few seconds by machines: logged only when they fail
_log = logging.getLogger(LOGGER)


def refusal(status: int, message: str) -> HTTPException:
    """Return an error for the client; with a time to try again where the server has too much to do."""
    return HTTPException(status, message, headers=RETRY_AFTER if status == 503 else None)


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer for an error, as the Open Inference Protocol has it: ``{"error": "..."}``."""
    return JSONResponse({"error": message}, status, headers)


@dataclass
class _Exchange:
    """A request and its answer."""

    scope: Scope
    began: float = field(default_factory=time.monotonic)
    received: int = 0
    sent: int = 0
    status: int = 0
    is_whole: bool = False  # the body has arrived

    def header(self, name: bytes) -> str | None:
        """The value of a header of the request."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), None)

    @property
    def route(self) -> str:
        """The template of the path: ``/v2/models/{model}``. What matches none is counted together."""
        return getattr(self.scope.get("route"), "path", "other")


class Guard:
    """An application behind limits.

    Args:
        app: The application.
        limits: The limits.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self._limits, self._metrics = app, limits, metrics
        self._under_way = 0  # requests with a body
        self._held = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope)
        length, coding = exchange.header(b"content-length"), exchange.header(b"transfer-encoding")
        exchange.is_whole = coding is None and length in (None, "0")
        has_work = scope["method"] == "POST"
        self._under_way += has_work
        self._metrics.in_progress.inc()

        async def receive_limited() -> Message:
            return await self._received(exchange, receive)

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                if not exchange.is_whole and not await self._drained(exchange, receive):
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            exchange.sent += len(message.get("body", b""))
            await send(message)

        try:
            refused = self._refused(exchange) if has_work else None
            if refused is None:
                await self.app(scope, receive_limited, send_watched)
            else:
                answer = error_response(refused.status_code, refused.detail, refused.headers)
                await answer(scope, receive_limited, send_watched)
        except Exception as error:
            _log.exception("failed", extra={"fields": {"path": scope["path"]}})
            if not exchange.status:
                answer = error_response(500, f"the server failed ({type(error).__name__}); its log says more")
                await answer(scope, receive_limited, send_watched)
        finally:
            self._under_way -= has_work
            self._held -= exchange.received
            self._metrics.in_progress.dec()
            self._record(exchange)

    def _refused(self, exchange: _Exchange) -> HTTPException | None:
        """Why a request is refused by its head."""
        length, coding = exchange.header(b"content-length"), exchange.header(b"content-encoding")
        if self._under_way > self._limits.max_queue:
            return refusal(
                503, f"found more requests at once than the limit of {self._limits.max_queue}: try again later"
            )
        if length is not None and int(length) > self._limits.max_upload:
            return self._too_large()
        if coding is not None and coding.strip().lower() != "identity":
            return refusal(415, f"found Content-Encoding: {coding[:40]}, expected none: send the body as it is")
        return None

    def _too_large(self) -> HTTPException:
        return refusal(413, f"found a body that is too large, expected at most {amount(self._limits.max_upload)}")

    async def _received(self, exchange: _Exchange, receive: Receive) -> Message:
        """The next part of a body, within its limits."""
        if exchange.is_whole:
            return await receive()
        try:
            async with asyncio.timeout(exchange.began + self._limits.body_timeout - time.monotonic()):
                message = await receive()
        except TimeoutError:
            raise refusal(
                408,
                f"found {amount(exchange.received)} of a body, expected all of it in {self._limits.body_timeout:g} s",
            ) from None
        size = len(message.get("body", b""))
        exchange.received += size
        self._held += size
        exchange.is_whole = not message.get("more_body", False)
        if exchange.received > self._limits.max_upload:
            raise self._too_large()
        if self._held > self._limits.max_held:
            raise refusal(503, f"found {amount(self._held)} of requests, which is more than fits: try again later")
        return message

    async def _drained(self, exchange: _Exchange, receive: Receive) -> bool:
        """Read the rest of a body that nobody wants, for a while; whether it is over."""
        if exchange.header(b"expect") is not None:  # the client waits with its body
            return False
        dropped = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not exchange.is_whole and dropped <= self._limits.max_upload:
                    message = await receive()
                    dropped += len(message.get("body", b""))
                    exchange.is_whole = not message.get("more_body", False)
        except TimeoutError:
            return False
        return exchange.is_whole

    def _record(self, exchange: _Exchange) -> None:
        scope, status = exchange.scope, exchange.status or GONE
        seconds = time.monotonic() - exchange.began
        self._metrics.count_request(scope["method"], exchange.route, status, seconds)
        if status < 400 and scope["path"].startswith(_QUIET):
            return
        client = scope.get("client")
        fields = {
            "client": f"{client[0]}:{client[1]}" if client else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "received": exchange.received,
            "sent": exchange.sent,
            **scope.get("camrt.log", {}),
        }
        _log.log(
            logging.ERROR if status >= 500 and status != 503 else logging.INFO, "request", extra={"fields": fields}
        )
