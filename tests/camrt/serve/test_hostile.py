"""Clients that break the rules, by accident or on purpose: each is told or dropped, and the server goes on serving."""

from __future__ import annotations

import contextlib
import io
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camrt.serve.limits import Limits
from tests.camrt.serve.serving import (  # skips where the extra is not installed
    NAME,
    Serving,
    head_of,
    infer_body,
    read_answer,
    serving,
)
from tests.tiny_models import photo

LIMITS = Limits(max_upload=1 << 20, max_held=8 << 20, body_timeout=1.0, timeout=5.0, max_queue=16, max_connections=64)
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
INFER = f"/v2/models/{NAME}/infer"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(limits=LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def goes_on(server: Serving) -> Iterator[None]:
    """After each test the server answers, holds no request, and no bytes of one."""
    yield
    guard: Any = server.application._asgi
    until = time.monotonic() + 10
    while (status := server.explain(GOOD).status_code) == 503 and time.monotonic() < until:
        time.sleep(0.02)  # what the test left is still under way
    assert status == 200
    while guard._under_way and time.monotonic() < until:
        time.sleep(0.02)
    assert (guard._under_way, guard._held) == (0, 0)
    assert all(model.batcher.depth == 0 for model in server.application.service.models)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


GOOD = encoded(Image.fromarray(photo(60, 80, 0)))


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that says it has side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_decompression_bombs(server: Serving, side: int) -> None:
    answer = server.explain(bomb(side))
    assert answer.status_code == 400
    assert "image.png" in answer.json()["error"]


def test_a_gzip_bomb_is_not_unpacked(server: Serving) -> None:
    content = zlib.compress(bytes(1 << 20), wbits=31)
    answer = server.post(INFER, data=content, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"inputs": ' + b"[[]," * 50_000,
        json.dumps({"inputs": [{**IMAGE, "data": [[[]]] * 9999}]}).encode(),
        b"\x00" * 1000,
        b"",
    ],
)  # fmt: skip
def test_json_that_is_none(server: Serving, content: bytes) -> None:
    assert server.post(INFER, data=content).status_code == 400


def test_sizes_that_lie(server: Serving) -> None:
    for size in (0, 1, 3071, 3073, -1, 2**63, 10**400, "3072", None, 3072.0, [3072]):
        body, headers = infer_body([{**IMAGE, "parameters": {"binary_data_size": size}}], bytes(3000))
        assert server.post(INFER, data=body, headers=headers).status_code == 400, size
    for length in ("0", "-1", "5", "999999999999999999999", "1e3", "\x00", "१२"):
        body, _ = infer_body([{**IMAGE, "parameters": {"binary_data_size": 3072}}], bytes(3072))
        raw = head_of(
            INFER, {"Content-Length": len(body), "Inference-Header-Content-Length": length, "Connection": "close"}
        )
        assert status_of(server.raw(raw + body)) in (0, 400), length


@pytest.mark.parametrize("length", ["-5", "abc", "5, 6", "99999999999999999999999"])
def test_content_lengths_that_are_none(server: Serving, length: str) -> None:
    assert status_of(server.raw(head_of(INFER, {"Content-Length": length}) + b"12345")) in (400, 413)


def test_giant_heads(server: Serving) -> None:
    assert status_of(server.raw(head_of(INFER, {"X-Long": "x" * 300_000}))) in (0, 400, 431)
    assert status_of(server.raw(head_of(INFER, {f"X-{n}": "x" * 50 for n in range(5000)}))) in (0, 400, 431)
    assert status_of(server.raw(head_of("/" + "a" * 300_000, {}, "GET"))) in (0, 400, 414, 431)


@pytest.mark.parametrize(
    "text", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100]
)
def test_what_is_not_http(server: Serving, text: bytes) -> None:
    assert status_of(server.raw(text, half_close=True)) in (0, 400, 505)


def test_a_slow_head_is_dropped(server: Serving) -> None:
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: ")
        until = time.monotonic() + 8
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until:
                connection.sendall(b"x")  # one byte after the other does not make it last
                time.sleep(0.1)
        assert time.monotonic() < until, "the server waits for ever"


def test_a_connection_without_a_request_is_dropped(server: Serving) -> None:
    with socket.create_connection(server.address, 10) as connection:
        assert read_answer(connection) == b""


def test_a_slow_body_is_told(server: Serving) -> None:
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(head_of(INFER, {"Content-Length": 1000}) + b"{")
        answer = read_answer(connection)
    assert status_of(answer) == 408
    assert b"found 1 byte of a body, expected all of it in 1 s" in answer
    assert b"connection: close" in answer.lower()


def test_a_slow_upload_of_an_image_is_told(server: Serving) -> None:
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(
            head_of("/explain", {"Content-Length": 1000, "Content-Type": "multipart/form-data; boundary=x"})
        )
        connection.sendall(b"--x\r\n")
        assert status_of(read_answer(connection)) == 408


def test_half_closed_and_reset_connections(server: Serving) -> None:
    for sent in (b"", b"POST", head_of(INFER, {"Content-Length": 1000}) + b"{}"):
        server.raw(sent, half_close=True)
    for _ in range(20):
        connection = socket.create_connection(server.address, 10)
        connection.sendall(head_of(INFER, {"Content-Length": 100_000}) + bytes(5000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()  # a reset in the middle of a body


def test_a_client_that_leaves_before_its_answer(server: Serving) -> None:
    body, headers = infer_body(
        [{**IMAGE, "parameters": {"binary_data_size": 3072}}],
        bytes(3072),
    )
    for _ in range(20):
        with socket.create_connection(server.address, 10) as connection:
            connection.sendall(head_of(INFER, {"Content-Length": len(body), **headers}) + body)


def test_a_body_that_is_refused_does_not_cost_its_size(server: Serving) -> None:
    size = 1 << 30
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(head_of(INFER, {"Content-Length": size}))
        sent = 0
        try:
            while sent < size:
                sent += connection.send(bytes(1 << 16))
        except (ConnectionError, TimeoutError):
            pass
        assert sent < size // 4, "the server reads what it refuses"


def test_expect_continue_is_refused_before_the_body(server: Serving) -> None:
    answer = server.raw(head_of(INFER, {"Content-Length": 1 << 30, "Expect": "100-continue"}))
    assert status_of(answer) == 413


def test_more_bytes_than_fit_are_refused(server: Serving) -> None:
    """Many large bodies that do not end: what they hold together is bounded."""
    connections = []
    try:
        for _ in range(14):
            connection = socket.create_connection(server.address, 10)
            connections.append(connection)
            connection.sendall(head_of(INFER, {"Content-Length": 1 << 20}) + bytes(1_000_000))
        statuses = {status_of(read_answer(connection)) for connection in connections}
    finally:
        for connection in connections:
            connection.close()
    assert statuses <= {503, 408}
    assert 503 in statuses


def test_too_many_connections(server: Serving) -> None:
    connections = [socket.create_connection(server.address, 10) for _ in range(150)]
    time.sleep(0.2)
    for connection in connections:
        connection.close()


def test_pipelined_requests(server: Serving) -> None:
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(head_of("/v2", {}, "GET") * 5)
        found = b""
        while found.count(b"HTTP/1.1 200") < 5:
            part = connection.recv(65536)
            assert part
            found += part


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "BREW", "OPTIONS"])
def test_other_methods(server: Serving, method: str) -> None:
    assert status_of(server.raw(head_of("/explain", {"Content-Length": 3}, method) + b"abc")) in (400, 405)


@pytest.mark.parametrize("boundary", ["", "x" * 5000, "\x00"])
def test_multipart_that_is_none(server: Serving, boundary: str) -> None:
    body = b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n" + GOOD
    raw = head_of(
        "/explain", {"Content-Length": len(body), "Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    assert status_of(server.raw(raw + body)) in (0, 400)


def test_thousands_of_fields(server: Serving) -> None:
    fields = "".join(f'--x\r\nContent-Disposition: form-data; name="f{n}"\r\n\r\n1\r\n' for n in range(5000))
    body = fields.encode() + b"--x--\r\n"
    answer = server.post("/explain", data=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400


def test_fuzz(server: Serving) -> None:
    """Valid requests with bytes changed, cut, doubled: any answer but a hang, and no traceback for the client."""
    generator = random.Random(14)
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    body, headers = infer_body(
        [{**IMAGE, "parameters": {"binary_data_size": 3072}}],
        pixels.tobytes(),
    )
    valid = head_of(INFER, {"Content-Length": len(body), **headers, "Connection": "close"}) + body
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + GOOD + b"\r\n--x--\r\n"
    upload = head_of(
        "/explain",
        {"Content-Length": len(form), "Content-Type": "multipart/form-data; boundary=x", "Connection": "close"},
    ) + form  # fmt: skip
    for n in range(150):
        sent = bytearray(valid if n % 2 else upload)
        for _ in range(generator.randint(1, 8)):
            at = generator.randrange(min(len(sent), 600) if generator.random() < 0.8 else len(sent))
            kind = generator.randrange(4)
            if kind == 0:
                sent[at] = generator.randrange(256)
            elif kind == 1:
                del sent[at : at + generator.randint(1, 40)]
            elif kind == 2:
                sent[at:at] = sent[at : at + generator.randint(1, 40)]
            else:
                sent[at:at] = bytes([generator.randrange(256)]) * generator.randint(1, 100)
        answer = server.raw(bytes(sent), half_close=True)
        assert status_of(answer) in {0, 200, 400, 404, 405, 408, 411, 413, 414, 415, 431, 501, 505}, (n, answer[:300])
        assert b"Traceback" not in answer
