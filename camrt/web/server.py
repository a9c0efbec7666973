"""A server for a site on this machine: to look at it. Any static host serves it as well."""

from __future__ import annotations

import contextlib
import sys
import threading
import webbrowser
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from camrt.errors import CamrtError
from camrt.web.site import content_policy, stated_site
from converters.terminal import say

HOST = "127.0.0.1"


def serve_site(folder: Path, port: int, *, is_opened: bool) -> None:
    """Serve a site until Ctrl-C, and say where.

    Args:
        folder: Of the site.
        port: 0 for a free one.
        is_opened: Whether the browser opens it.

    Raises:
        CamrtError: The folder holds no site, or the port is taken.
    """
    with serving(folder, port) as server:
        say(f"serving {folder} at {url_of(server)} (Ctrl-C stops)")
        if is_opened:
            threading.Thread(target=webbrowser.open, args=[url_of(server)], daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[ThreadingHTTPServer]:
    """Listen on this machine alone, with the headers that isolate the page, so that wasm gets threads.

    Args:
        folder: Of a site.
        port: 0 for a free one.

    Yields:
        The server; its ``serve_forever`` serves.

    Raises:
        CamrtError: The folder holds no site, or the port is taken.
    """
    headers = headers_of(folder)

    def handler(*arguments: Any) -> _Handler:
        return _Handler(*arguments, directory=str(folder), headers=headers)

    try:
        server = _Server((HOST, port), handler)
    except OSError as error:
        raise CamrtError(
            f"{HOST}:{port} cannot be listened on ({error.strerror or error}). Name another port with --port, or 0 "
            "for a free one"
        ) from error
    with server:
        yield server


def headers_of(folder: Path) -> dict[str, str]:
    """Return the headers of a site's files: they isolate the page, so that wasm gets threads.

    Args:
        folder: Of the site.

    Raises:
        CamrtError: It holds no site.
    """
    site = stated_site(folder)
    if site is None:
        raise CamrtError("holds no site, expected one of camrt web MODEL --out", file=str(folder))
    return {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": content_policy(is_vendored=bool(site.get("runtime", {}).get("vendored"))),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def url_of(server: ThreadingHTTPServer) -> str:
    """Return the address of the page."""
    return f"http://{HOST}:{server.server_address[1]}/"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was closed while it was loading."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "camrt"
    timeout = 30  # seconds for a request: a connection that says nothing does not hold its thread for ever
    extensions_map = {  # noqa: RUF012 - as the base class has it; not the system's table, which may be wrong
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".wasm": "application/wasm",
        ".png": "image/png",
        ".jpg": "image/jpeg",
        ".jpeg": "image/jpeg",
        ".webp": "image/webp",
        "": "application/octet-stream",
    }

    def __init__(self, *arguments: Any, directory: str, headers: Mapping[str, str]) -> None:
        self._site_headers = headers
        super().__init__(*arguments, directory=directory)

    def end_headers(self) -> None:
        for name, value in self._site_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: a page asks for a dozen files."""
