#!/usr/bin/env python3
"""Where ONNX Runtime's CUDA provider would run the nodes of our graphs; on a machine without a GPU.

usage: python scripts/cuda_placement.py [--model classifier.onnx --preprocess torchvision] [--folder build/cuda]

Takes the wheel of onnxruntime-gpu (pip downloads it, 250 MB) and a CUDA that computes nothing (cuda_stub/stub.c, built
with cc; nm and strings of binutils list the functions that are missing). With them ONNX Runtime assigns every node to a
provider as it would on a GPU. For each method and protocol, in fp32 and fp16, the table names what does not run on the
GPU, with a free batch and with a fixed one: nodes on the CPU, copies between CPU and GPU (Memcpy), control flow; and
whether ONNX Runtime would capture a CUDA graph. Nothing is run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path.insert(0, str(REPOSITORY))

# Their functions; ONNX Runtime opens the last two by name.
LIBRARIES = (
    "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1", "libcudnn.so.9",
    "libcudnn.so",
)  # fmt: skip
MAKES_A_HANDLE = re.compile(r"(Create|CreateWithFlags|Create\w*Descriptor|Desc?Create|LayoutCreate|Instantiate)(_v2)?$")


def prepare(folder: Path) -> None:
    """Unpack the wheel and build the stub, where that is not done yet."""
    folder.mkdir(parents=True, exist_ok=True)
    site, stub = folder / "site", folder / "stub"
    if not site.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, "onnxruntime-gpu>=1.31"], check=True)
        with zipfile.ZipFile(next(folder.glob("onnxruntime_gpu*.whl"))) as wheel:
            wheel.extractall(site)
    provider = site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    stub.mkdir(exist_ok=True)
    source = stub / "stub.c"
    source.write_text((HERE / "cuda_stub" / "stub.c").read_text() + "\n".join(missing(provider)))
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", stub / LIBRARIES[0], source], check=True)
    for name in LIBRARIES[1:]:
        (stub / name).unlink(missing_ok=True)
        (stub / name).symlink_to(LIBRARIES[0])


def missing(provider: Path) -> Iterator[str]:
    """The functions that the provider needs and the stub has not: they make a handle, or do nothing."""
    needed = output("nm", "-D", "--undefined-only", provider).split()
    names = {name.partition("@")[0] for name in needed if re.match(r"(cu|__cuda)", name)}
    names |= {line for line in output("strings", provider).splitlines() if re.fullmatch(r"cudnn[A-Z]\w+", line)}
    written = set(re.findall(r"\b(\w+)\(", (HERE / "cuda_stub" / "stub.c").read_text()))
    for name in sorted(names - written):
        if MAKES_A_HANDLE.search(name) and "Backend" not in name:
            yield f"int {name}(void **handle) {{ return *handle = malloc(64), 0; }}"
        else:
            yield f"int {name}(void) {{ return 0; }}"


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# ----------------------------------------------------------------------------------------------- with the stub in place


def report(model: Any, preprocess: str | None) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    from camrt.engines.half import halved
    from camrt.errors import CamrtError
    from camrt.graph import explain_graph
    from camrt.graph.methods import METHODS

    table = Table(title="What does not run on the GPU", min_width=100)
    for column in ("method", "protocol", "precision", "free batch", "fixed batch", "CUDA graph"):
        table.add_column(column)
    for method in METHODS:
        for protocol in ("whole", "ten-crop", "center", "full"):
            try:
                graph = explain_graph(model, method, protocol, preprocess=preprocess)
            except CamrtError as error:
                table.add_row(method, protocol, "", str(error)[:60])
                continue
            for precision, form in (("fp32", graph), ("fp16", halved(graph))):
                table.add_row(method, protocol, precision, off_gpu(form), off_gpu(form, 4), captured(form))
    Console(width=120).print(table)


def session(model: Any, batch: int | None, options: dict[str, str], optimized: Path | None = None) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if batch:
        settings.add_free_dimension_override_by_name("N", batch)
    if optimized:
        settings.optimized_model_filepath = str(optimized)
    providers = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers, enable_fallback=0)


def off_gpu(model: Any, batch: int | None = None) -> str:
    """The nodes that ONNX Runtime gives to the CPU, its copies, and control flow; "-" for none."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        found = session(model, batch, {}, Path(folder) / "optimized.onnx")
        graph = onnx.load(Path(folder) / "optimized.onnx").graph
    counts = Counter(
        node.op_type
        for part in found.get_provider_graph_assignment_info()
        if part.ep_name != "CUDAExecutionProvider"
        for node in part.get_nodes()
    )
    operators = ("MemcpyToHost", "MemcpyFromHost", "Loop", "If", "Scan")
    counts.update(node.op_type for node in nodes(graph) if node.op_type in operators)
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "-"


def nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def captured(model: Any) -> str:
    """Whether ONNX Runtime takes the model, with a fixed batch, for CUDA graphs."""
    try:
        session(model, 4, {"enable_cuda_graph": "1"})
    except Exception as error:  # its exceptions have no common base
        return "no: control flow" if "control flow" in str(error) else f"no: {str(error)[:60]}"
    return "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a classifier; by default a small one of the tests")
    parser.add_argument("--preprocess", choices=("caffe", "torchvision"))
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "cuda")
    options = parser.parse_args()
    stub = str(options.folder.resolve() / "stub")
    if os.environ.get("LD_LIBRARY_PATH") != stub:  # read when a process starts
        prepare(options.folder)
        arguments = [sys.executable, __file__, *sys.argv[1:]]
        sys.exit(subprocess.run(arguments, env={**os.environ, "LD_LIBRARY_PATH": stub}, check=False).returncode)
    sys.path.insert(0, str(options.folder.resolve() / "site"))
    if options.model:
        return report(options.model, options.preprocess)
    from tests.camrt.classifiers import classifier

    return report(classifier("gemm", side=224), options.preprocess or "torchvision")


if __name__ == "__main__":
    main()
