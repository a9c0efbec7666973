"""A web site on this machine, which answers as it is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What the site sends.

    Attributes:
        content: The body.
        status: The status.
        headers: Further headers. A Content-Length in place of the true one.
        pause_s: Between the first half of the body and the second.
        silence_s: Before anything.
        endless: Send the content again and again.
    """

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0
    silence_s: float = 0
    endless: bool = False


@dataclass
class Site:
    """Its answers are taken in turn; the last one stays.

    Attributes:
        url: Of a file on it.
        answers: What it sends.
        requests: The headers of each request.
        sent: The bytes of bodies that were taken off its hands.
    """

    url: str
    answers: list[Answer]
    requests: list[Mapping[str, str]] = field(default_factory=list)
    sent: int = 0

    @property
    def asked(self) -> int:
        return len(self.requests)


@contextlib.contextmanager
def serve(*answers: Answer) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(dict(self.headers))
            answer = site.answers[min(site.asked, len(site.answers)) - 1]
            closing.wait(answer.silence_s)
            try:
                self.send_response(answer.status)
                length = {} if answer.endless else {"Content-Length": str(len(answer.content))}
                for name, value in {**length, **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                half = len(answer.content) // 2
                self.write(answer.content[:half])
                closing.wait(answer.pause_s)
                self.write(answer.content[half:])
                while answer.endless and not closing.is_set():
                    self.write(answer.content)
            except OSError:
                pass  # the client has left

        def write(self, content: bytes) -> None:
            self.wfile.write(content)
            self.wfile.flush()
            site.sent += len(content)

        def log_message(self, *_: object) -> None:
            pass

    closing = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Site(f"http://127.0.0.1:{server.server_port}/net.caffemodel", list(answers))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield site
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
