from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from camrt import CamrtError
from camrt.serve.protocol import InferRequest, RequestedOutput, TensorSpec, parse_request, write_response

IMAGE, TARGET = TensorSpec("image", "UINT8", (-1, 2, 2, 3)), TensorSpec("target", "INT64", (-1, 1))
OUTPUTS = (TensorSpec("scores", "FP32", (-1, 4)), TensorSpec("classes", "INT64", (-1, 2)))
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)


def image(**changes: Any) -> dict[str, Any]:
    """The input image, two of them, in JSON, with fields changed, or without those that are None."""
    whole = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 2, 3], "data": PIXELS.tolist(), **changes}
    return {name: value for name, value in whole.items() if value is not None}


def binary(size: Any = 24, **changes: Any) -> dict[str, Any]:
    return image(data=None, parameters={"binary_data_size": size}, **changes)


def parsed(request: Any, tail: bytes = b"", header: str | None = None) -> InferRequest:
    text = json.dumps(request).encode()
    length = str(len(text)) if tail and header is None else header
    return parse_request(text + tail, length, [IMAGE], OUTPUTS)


def test_the_three_forms_of_a_tensor_are_the_same() -> None:
    flat = parsed({"inputs": [image(data=PIXELS.ravel().tolist())]})
    nested = parsed({"inputs": [image()], "id": "a"})
    raw = parsed({"inputs": [binary()]}, PIXELS.tobytes())
    for request in (flat, nested, raw):
        np.testing.assert_array_equal(request.feeds["image"], PIXELS, strict=True)
        assert request.rows == 2
        assert [output.name for output in request.outputs] == ["scores", "classes"]
    assert (flat.id, nested.id) == (None, "a")


def test_outputs_that_are_asked_for() -> None:
    request = parsed(
        {
            "inputs": [image()],
            "parameters": {"binary_data_output": True, "priority": 1},
            "outputs": [
                {"name": "classes", "parameters": {"binary_data": False}},
                {"name": "scores", "parameters": {"classification": 2}},
            ],
        }
    )
    assert request.outputs == (RequestedOutput("classes"), RequestedOutput("scores", True, 2))


HOSTILE: dict[str, tuple[Any, bytes, str | None, str]] = {
    "no object": ([], b"", None, "expected a JSON object"),
    "no inputs": ({}, b"", None, "for inputs, expected a JSON list"),
    "empty inputs": ({"inputs": []}, b"", None, "found no input image"),
    "no object in it": ({"inputs": [3]}, b"", None, "found 3 for an input"),
    "another name": ({"inputs": [image(name="img")]}, b"", None, "found the input 'img', expected image"),
    "name that is a list": ({"inputs": [image(name=["image"])]}, b"", None, "expected image"),
    "twice": ({"inputs": [image(), image()]}, b"", None, "'image' twice"),
    "another type": ({"inputs": [image(datatype="FP32")]}, b"", None, "found the datatype 'FP32', expected UINT8"),
    "another shape": ({"inputs": [image(shape=[2, 2, 3, 2])]}, b"", None, r"expected \[-1, 2, 2, 3\]"),
    "no batch": ({"inputs": [image(shape=[0, 2, 2, 3], data=[])]}, b"", None, "at least 1"),
    "negative shape": ({"inputs": [image(shape=[-2, 2, 2, 3])]}, b"", None, "whole numbers"),
    "gigantic shape": ({"inputs": [image(shape=[2**62, 2, 2, 3])]}, b"", None, "whole numbers"),
    "shape of truths": ({"inputs": [image(shape=[True, 2, 2, 3])]}, b"", None, "whole numbers"),
    "many dimensions": ({"inputs": [image(shape=[1] * 10_000)]}, b"", None, "a list of 10000"),
    "no data": ({"inputs": [image(data=None)]}, b"", None, "for data, expected a JSON list"),
    "too few": ({"inputs": [image(data=[1, 2])]}, b"", None, r"data of the shape \[2\]"),
    "ragged": ({"inputs": [image(data=[[1, 2], [3]])]}, b"", None, "different lengths"),
    "too large a value": ({"inputs": [image(data=[256] * 24)]}, b"", None, "from 256 to 256"),
    "negative": ({"inputs": [image(data=[-1] * 24)]}, b"", None, "from -1"),
    "gigantic value": ({"inputs": [image(data=[10**30] * 24)]}, b"", None, "another kind"),
    "fractions": ({"inputs": [image(data=[0.5] * 24)]}, b"", None, "another kind"),
    "texts": ({"inputs": [image(data=["1"] * 24)]}, b"", None, "another kind"),
    "nothing at all": ({"inputs": [image(data=[None] * 24)]}, b"", None, "another kind"),
    "too little binary": ({"inputs": [binary()]}, bytes(23), None, "found 23 bytes of binary data, expected 24"),
    "lying size": ({"inputs": [binary(12)]}, bytes(24), None, "binary_data_size of 12, expected 24"),
    "negative size": ({"inputs": [binary(-24)]}, bytes(24), None, "expected 24"),
    "size of text": ({"inputs": [binary("24")]}, bytes(24), None, "expected 24"),
    "bytes left": ({"inputs": [binary()]}, bytes(25), None, "found 1 bytes behind the tensors"),
    "both": ({"inputs": [{**binary(), "data": [1]}]}, bytes(24), None, "one of the two"),
    "shared memory": (
        {"inputs": [image(parameters={"shared_memory_region": "x"})]}, b"", None, "does not share memory"
    ),
    "header too long": ({"inputs": [image()]}, b"", "99999", "expected JSON of at least 1 byte"),
    "header too short": ({"inputs": [binary()]}, bytes(24), "5", "not JSON"),
    "header of text": ({"inputs": [image()]}, b"", "ten", "expected a number of bytes"),
    "negative header": ({"inputs": [image()]}, b"", "-1", "expected a number of bytes"),
    "no header": ({"inputs": [image()]}, b"", "0", "at least 1 byte"),
    "unknown output": ({"inputs": [image()], "outputs": [{"name": "x"}]}, b"", None, "found the output 'x'"),
    "output twice": ({"inputs": [image()], "outputs": [{"name": "scores"}] * 2}, b"", None, "twice"),
    "output that is no object": ({"inputs": [image()], "outputs": ["scores"]}, b"", None, "for an output"),
    "binary that is no truth": (
        {"inputs": [image()], "parameters": {"binary_data_output": 1}}, b"", None, "expected true or false"
    ),
    "parameters of text": ({"inputs": [image()], "parameters": "x"}, b"", None, "for parameters"),
    "id of a number": ({"inputs": [image()], "id": 3}, b"", None, "expected a text"),
    "classification of text": (
        {"inputs": [image()], "outputs": [{"name": "scores", "parameters": {"classification": "3"}}]},
        b"", None, "a number of classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bodies_are_told(case: str) -> None:
    request, tail, header, message = HOSTILE[case]
    with pytest.raises(CamrtError, match=message) as raised:
        parsed(request, tail, header)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 50_000, b"1" * 100_000, b"NaN"])
def test_bodies_that_are_not_json(body: bytes) -> None:
    with pytest.raises(CamrtError, match="JSON"):
        parse_request(body, None, [IMAGE], OUTPUTS)


def test_batches_of_different_lengths() -> None:
    target = {"name": "target", "datatype": "INT64", "shape": [1, 1], "data": [3]}
    body = json.dumps({"inputs": [image(), target]}).encode()
    with pytest.raises(CamrtError, match="'image': 2, 'target': 1"):
        parse_request(body, None, [IMAGE, TARGET], OUTPUTS)


FOUND = {
    "scores": np.array([[0.1, 0.7, 1e-30, 0.2], [3.25, -1, 0, 16777217]], np.float32),
    "classes": np.array([[1, 3], [3, 0]], np.int64),
}


def written(*outputs: RequestedOutput, identifier: str | None = "x") -> tuple[dict[str, Any], bytes]:
    parts, header = write_response(InferRequest(identifier, {}, outputs), FOUND, "m", "1", ["a", "b", "c", "d"])
    body = b"".join(parts)
    return json.loads(body[:header]), body[header:] if header else b""


def test_answers_in_json_are_exact() -> None:
    pytest.importorskip("pydantic_core", reason="the extra serve is not installed")
    answer, tail = written(RequestedOutput("scores"), RequestedOutput("classes"))
    assert not tail
    assert {name: answer[name] for name in ("id", "model_name", "model_version")} == {
        "id": "x", "model_name": "m", "model_version": "1"
    }  # fmt: skip
    scores, classes = answer["outputs"]
    assert (scores["datatype"], scores["shape"], classes["datatype"]) == ("FP32", [2, 4], "INT64")
    np.testing.assert_array_equal(np.array(scores["data"], np.float32), FOUND["scores"].ravel(), strict=True)
    assert classes["data"] == [1, 3, 3, 0]


def test_answers_in_binary_follow_the_json_in_order() -> None:
    answer, tail = written(RequestedOutput("classes", True), RequestedOutput("scores", True), identifier=None)
    assert [output["parameters"]["binary_data_size"] for output in answer["outputs"]] == [32, 32]
    assert "id" not in answer
    assert tail == FOUND["classes"].tobytes() + FOUND["scores"].tobytes()


def test_classification_is_tritons() -> None:
    answer, tail = written(RequestedOutput("scores", False, 2))
    assert answer["outputs"] == [
        {
            "name": "scores", "datatype": "BYTES", "shape": [2, 2],
            "data": ["0.700000:1:b", "0.200000:3:d", "16777216.000000:3:d", "3.250000:0:a"],
        }
    ]  # fmt: skip
    answer, tail = written(RequestedOutput("scores", True, 1))
    assert tail == b"\x0c\0\0\x000.700000:1:b\x13\0\0\x0016777216.000000:3:d"


def test_json_has_no_values_that_are_not_finite() -> None:
    found = {**FOUND, "scores": np.array([[np.nan]], np.float32)}
    with pytest.raises(CamrtError, match="Ask for it in binary"):
        write_response(InferRequest(None, {}, (RequestedOutput("scores"),)), found, "m", "1")
    parts, _ = write_response(InferRequest(None, {}, (RequestedOutput("scores", True),)), found, "m", "1")
    assert np.isnan(np.frombuffer(parts[1], np.float32)).all()
