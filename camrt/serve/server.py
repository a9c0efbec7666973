"""The server: sockets, time limits of connections, and a graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from camrt.errors import CamrtError
from camrt.serve.logs import LOGGER

if TYPE_CHECKING:
    from types import FrameType

    from camrt.serve.app import Application

_GRACE = 5.0  # seconds that a connection which is closed may take to read what is on its way
_log = logging.getLogger(LOGGER)


def bound(host: str, port: int) -> socket.socket:
    """Bind a socket, before models are loaded: a port that is taken is told at once.

    Args:
        host: A name or an address.
        port: 0 for a free one.

    Raises:
        CamrtError: The address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound_socket = socket.socket(family, kind, protocol)
        try:
            bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound_socket.bind(address)
        except OSError:
            bound_socket.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CamrtError(f"cannot serve at {host} port {port}: {reason}. Choose others: --host, --port") from error
    return bound_socket


def url_of(listening: socket.socket) -> str:
    """Return the address of a bound socket as a browser takes it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(application: Application, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish the requests that are under way.

    A second Ctrl-C ends it at once.

    Args:
        application: What is served.
        listening: A bound socket, as `bound` returns it.
    """
    _log.info("listening", extra={"fields": {"url": url_of(listening)}})
    server_of(application).run(sockets=[listening])
    _log.info("stopped")


def server_of(application: Application) -> uvicorn.Server:
    """Return the server of an application, set up and not started."""
    limits = application.service.limits
    config = uvicorn.Config(
        application,
        http=_Protocol,
        ws="none",
        lifespan="on",
        loop="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=limits.max_connections,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=int(limits.timeout + limits.body_timeout) + 1,
        h11_max_incomplete_event_size=64 << 10,  # bytes of the head of a request
    )
    return _Server(config, application)


class _Server(uvicorn.Server):
    """A server that ends with status 0 when it is told to stop."""

    should_exit: bool

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._service = application.service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking connections. uvicorn's own raises the signal again at the end."""
        _log.info("stopping")
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._service.is_stopping = True


class _Protocol(H11Protocol):
    """uvicorn's protocol, with time limits for the head of a request and for clients that do not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._head: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._limits = self.config.app.service.limits
        if len(self.connections) > self._limits.max_connections:
            _log.warning("too many connections", extra={"fields": {"connections": len(self.connections)}})
            transport.abort()
            return
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        """Limit how long a head takes, or the rest of a body whose request has been answered."""
        client = self.conn.their_state
        is_due = client is h11.IDLE or (client is h11.SEND_BODY and self.conn.our_state is h11.DONE)
        if is_due and self._head is None:
            self._head = self.loop.call_later(self._limits.body_timeout, self.transport.abort)
        elif not is_due and self._head is not None:
            self._head.cancel()
            self._head = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # what is written still goes out, if the client reads it
            self.loop.call_later(_GRACE, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        with contextlib.suppress(h11.LocalProtocolError):
            super().timeout_keep_alive_handler()
        self.loop.call_later(_GRACE, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
