#!/usr/bin/env python3
"""One converter of Caffe networks on many of them, each in a process of its own. benchmarks/converters.py starts it.

usage: python benchmarks/converter_peers.py PEER FOLDER [--seconds 60] [--megabytes 8192]

Runs in the peer's own environment, so it needs nothing but NumPy and the peer. Each subfolder of FOLDER is a network:
net.prototxt, net.caffemodel, inputs.npz (blob -> array) and case.json (what Caffe gives: a blob, the layer that writes
it, which of its tops; and input blob -> its layer). The peer's answers go to <peer>.npz there, or the reason why there
are none to <peer>.txt.

The peer is imported once. The process of a network is a fork, which may crash, hang or exhaust its memory alone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
PROTOTXT, CAFFEMODEL = "net.prototxt", "net.caffemodel"


class Refused(Exception):
    """The peer does not take the network; the text says why."""


# ----------------------------------------------------------------------------------------------------------- the peers


def camrt() -> tuple[str, Callable[..., Arrays]]:
    """converters and ONNX Runtime."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import onnxruntime

    import converters

    def answer(folder: Path, inputs: Arrays, case: Mapping[str, Any]) -> Arrays:
        model = converters.convert(folder / PROTOTXT, folder / CAFFEMODEL)
        return _on_onnxruntime(model.SerializeToString(), inputs)

    return f"{converters.__version__} with ONNX Runtime {onnxruntime.__version__}", answer


def camrt_opencv() -> tuple[str, Callable[..., Arrays]]:
    """converters, and OpenCV 5 for the ONNX model: what readNetFromCaffe is replaced with."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import cv2

    import converters

    def answer(folder: Path, inputs: Arrays, case: Mapping[str, Any]) -> Arrays:
        model = converters.convert(folder / PROTOTXT, folder / CAFFEMODEL)
        net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
        for name, values in inputs.items():
            net.setInput(values, name)
        names = [output.name for output in model.graph.output]
        return dict(zip(names, net.forward(names), strict=True))

    return f"{converters.__version__} with OpenCV {cv2.__version__}", answer


def opencv() -> tuple[str, Callable[..., Arrays]]:
    """OpenCV 4's importer."""
    import cv2

    def answer(folder: Path, inputs: Arrays, case: Mapping[str, Any]) -> Arrays:
        text, readers = _with_readers((folder / PROTOTXT).read_text(), case["outputs"])
        net = cv2.dnn.readNetFromCaffe(
            np.frombuffer(text.encode(), np.uint8), np.fromfile(folder / CAFFEMODEL, np.uint8)
        )
        for name, values in inputs.items():
            net.setInput(values, name)
        known = set(net.getLayerNames())
        layers = {each["blob"]: readers.get(each["blob"], each["layer"]) for each in case["outputs"]}
        wanted = {blob: layer for blob, layer in layers.items() if layer in known}
        names = wanted or {name: name for name in net.getUnconnectedOutLayersNames()}
        return dict(zip(names, net.forward(list(names.values())), strict=True))

    return cv2.__version__, answer


def _with_readers(prototxt: str, outputs: list[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """Let another layer read each top of a layer that has several.

    OpenCV counts a layer's outputs by those that read them, and refuses a Slice that ends a network.

    Returns:
        The network, and the reader of each of these blobs.
    """
    writers = [each["layer"] for each in outputs]
    readers = {each["blob"]: f"{each['blob']}/read" for each in outputs if writers.count(each["layer"]) > 1}
    added = [
        f'layer {{ name: "{name}" type: "Power" bottom: "{blob}" top: "{name}" }}' for blob, name in readers.items()
    ]
    return "\n".join([prototxt, *added]), readers


def mnn() -> tuple[str, Callable[..., Arrays]]:
    """MNN's converter, called as a function, and its interpreter."""
    import _tools
    import MNN

    def tensor(values: np.ndarray) -> Any:
        """A tensor on the array's memory, which must live as long."""
        return MNN.Tensor(values.shape, MNN.Halide_Type_Float, values, MNN.Tensor_DimensionType_Caffe)

    def answer(folder: Path, inputs: Arrays, case: Mapping[str, Any]) -> Arrays:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "net.mnn"
            given = {"modelFile": folder / CAFFEMODEL, "prototxt": folder / PROTOTXT, "MNNModel": file, "bizCode": "x"}
            options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
            _tools.mnnconvert(["mnnconvert", "-f", "CAFFE", *options])
            if not file.is_file():
                raise Refused("the converter wrote no model")
            net = MNN.Interpreter(str(file))
        session = net.createSession({"numThread": 1})
        read = net.getSessionInputAll(session)
        fed = {name: net.getSessionInput(session, name) for name in inputs if name in read}
        if not fed:
            raise Refused(f"the model has the inputs {', '.join(read) or 'none'}")
        for name, held in fed.items():
            net.resizeTensor(held, inputs[name].shape)
        net.resizeSession(session)
        arrays = {name: np.ascontiguousarray(inputs[name], np.float32) for name in fed}
        for name, held in fed.items():
            held.copyFrom(tensor(arrays[name]))
        net.runSession(session)
        found = {}
        for name, held in net.getSessionOutputAll(session).items():
            memory = np.zeros(held.getShape(), np.float32)
            copy = tensor(memory)
            held.copyToHostTensor(copy)
            found[name] = np.array(copy.getNumpyData(), np.float32).reshape(held.getShape())
        return found

    return MNN.version(), answer


def caffe2onnx() -> tuple[str, Callable[..., Arrays]]:
    """caffe2onnx and ONNX Runtime."""
    from importlib.metadata import version

    import onnxruntime
    from caffe2onnx.src.caffe2onnx import Caffe2Onnx
    from caffe2onnx.src.load_save_model import loadcaffemodel

    def answer(folder: Path, inputs: Arrays, case: Mapping[str, Any]) -> Arrays:
        network, weights = loadcaffemodel(str(folder / PROTOTXT), str(folder / CAFFEMODEL))
        model = Caffe2Onnx(network, weights, "net").createOnnxModel()
        return _on_onnxruntime(model.SerializeToString(), inputs)

    return f"{version('caffe2onnx')} with ONNX Runtime {onnxruntime.__version__}", answer


def x2paddle() -> tuple[str, Callable[..., Arrays]]:
    """X2Paddle and Paddle, by the code that it writes."""
    from importlib.metadata import version

    import paddle
    from x2paddle.convert import caffe2paddle
    from x2paddle.core.program import PaddleGraph

    # The code that it writes is run; without the static graph that it would make of it, whose parameters have the same
    # names and would be in the way.
    PaddleGraph.dygraph2static = lambda *_, **__: None

    def answer(folder: Path, inputs: Arrays, case: Mapping[str, Any]) -> Arrays:
        with tempfile.TemporaryDirectory() as scratch:
            code = Path(scratch) / "x2paddle_code.py"
            # Without feedback: by default it reports each conversion to a server.
            given = str(folder / PROTOTXT), str(folder / CAFFEMODEL)
            caffe2paddle(*given, scratch, None, disable_feedback=True)
            space: dict[str, Any] = {}
            exec(compile(code.read_text(), "x2paddle_code.py", "exec"), space)
            wanted = list(inspect.signature(space["main"]).parameters)
            # An argument has the name of the layer or of the blob. Inputs that no layer reads are left out.
            layers = {layer.replace("/", "_").replace("-", "_").lower(): blob for blob, layer in case["inputs"].items()}
            fed = [inputs[layers.get(name, name)] for name in wanted if layers.get(name, name) in inputs]
            if len(fed) != len(wanted):
                fed = list(inputs.values())
            result = space["main"](*(paddle.to_tensor(values) for values in fed))
        results = result if isinstance(result, (tuple, list)) else [result]
        return {f"#{index}": np.array(one.numpy()) for index, one in enumerate(results)}

    return f"{version('x2paddle')} with Paddle {paddle.__version__}", answer


PEERS = {
    "camrt": camrt,
    "camrt-opencv5": camrt_opencv,
    "opencv4": opencv,
    "mnn": mnn,
    "caffe2onnx": caffe2onnx,
    "x2paddle": x2paddle,
}


def _on_onnxruntime(model: bytes, inputs: Arrays) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    wanted = [one.name for one in session.get_inputs()]
    # caffe2onnx puts an ending behind the names, and keeps the order.
    fed = inputs if set(wanted) <= set(inputs) else dict(zip(wanted, inputs.values(), strict=False))
    return dict(zip(names, session.run(names, {name: fed[name] for name in wanted}), strict=True))


# --------------------------------------------------------------------------------------------------------- processes


def run(peer: str, answer: Callable[..., Arrays], folder: Path, seconds: int, megabytes: int) -> None:
    """What the fork of a network does; it never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        with np.load(folder / "inputs.npz") as stored:
            inputs = {name: stored[name] for name in stored.files}
        found = answer(folder, inputs, json.loads((folder / "case.json").read_text()))
        np.savez(folder / f"{peer}.part.npz", **{name.replace("/", "\\"): values for name, values in found.items()})
        (folder / f"{peer}.part.npz").rename(folder / f"{peer}.npz")
    except BaseException as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or traceback.format_exc().splitlines()[-1:]
        (folder / f"{peer}.txt").write_text(f"{error.__class__.__name__}: {lines[-1].strip()}")
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--megabytes", type=int, default=8192)
    given = parser.parse_args()
    version, answer = PEERS[given.peer]()
    (given.folder / f"{given.peer}.version").write_text(version)
    for folder in sorted(path.parent for path in given.folder.glob("*/case.json")):
        for name in (f"{given.peer}.npz", f"{given.peer}.txt"):
            (folder / name).unlink(missing_ok=True)
        process = os.fork()
        if not process:
            run(given.peer, answer, folder, given.seconds, given.megabytes)
        # The alarm counts from within the process, which may block it.
        ended, status, end = 0, 0, time.monotonic() + given.seconds + 10
        while not ended:
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                time.sleep(0.005)
                if time.monotonic() > end:
                    os.kill(process, signal.SIGKILL)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            stopped = name in ("SIGALRM", "SIGKILL")
            (folder / f"{given.peer}.txt").write_text(f"more than {given.seconds} s" if stopped else f"crash: {name}")


if __name__ == "__main__":
    main()
