"""A server in a thread of the test, and clients that break the rules."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("python_multipart", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

import requests

from camrt import Explainer
from camrt.serve.app import Application
from camrt.serve.limits import Limits
from camrt.serve.model import Loaded
from camrt.serve.server import bound, server_of, url_of
from tests.tiny_models import tiny_explainer

NAME = "tiny"


@dataclass(frozen=True)
class Serving:
    """A server that runs.

    Attributes:
        url: Its address.
        explainer: That of its first model.
        application: What it serves.
    """

    url: str
    explainer: Explainer
    application: Application

    @property
    def place(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.place.partition(":")
        return host, int(port)

    def post(self, path: str, **arguments: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=30, **arguments)

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **arguments)

    def explain(self, image: bytes, name: str = "image.png", **parameters: Any) -> requests.Response:
        return self.post("/explain", files={"image": (name, image)}, params=parameters)

    def is_alive(self) -> bool:
        return self.get("/v2/health/ready").status_code == 200

    def raw(self, sent: bytes, *, half_close: bool = False, seconds: float = 10) -> bytes:
        """Send bytes and return what comes back until the server closes, or nothing more comes."""
        with socket.create_connection(self.address, seconds) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_answer(connection)


def read_answer(connection: socket.socket) -> bytes:
    """What comes until the server closes, or a whole answer is there."""
    found = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while part := connection.recv(65536):
            found += part
            head, separator, body = found.partition(b"\r\n\r\n")
            lengths = [
                line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            ]
            if separator and lengths and len(body) >= int(lengths[0]):
                break
    return found


def head_of(path: str, headers: Mapping[str, Any], method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.contextmanager
def serving(
    *models: Loaded, limits: Limits | None = None, explainer: Explainer | None = None, **arguments: Any
) -> Iterator[Serving]:
    """Serve models, or an explainer as ``tiny``, until the block is left."""
    if not models:
        models = (Loaded(NAME, "1", explainer or Explainer(tiny_explainer(), providers="cpu")),)
    application = Application(models, limits, **arguments)
    with bound("127.0.0.1", 0) as listening:
        server = server_of(application)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        url = url_of(listening)
        thread.start()
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        try:
            yield Serving(url, models[0].explainer, application)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server does not stop"


def infer_body(inputs: list[dict[str, Any]], tail: bytes = b"", **more: Any) -> tuple[bytes, dict[str, str]]:
    """A body of the protocol, and its headers."""
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + tail, {"Inference-Header-Content-Length": str(len(header))} if tail else {}
