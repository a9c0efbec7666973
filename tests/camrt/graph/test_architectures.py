"""A handful of the networks of benchmarks/architectures.py: the layer by default, and Grad-CAM against autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.preprocess import Preprocess

pytest.importorskip("torch", reason="PyTorch is not installed: its networks are not tested")
pytest.importorskip("torchvision", reason="torchvision is not installed: its networks are not tested")
pytest.importorskip("timm", reason="timm is not installed: its networks are not tested")

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
# Library, network, options, the module that returns what is explained.
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("timm", "vit_tiny_patch16_224", SMALL, "blocks.1.norm1"),  # a class token
    ("timm", "deit_tiny_distilled_patch16_224", SMALL, "blocks.1.norm1"),  # two
    ("timm", "vit_small_patch14_reg4_dinov2", SMALL, "blocks.1.norm1"),  # and four registers
    ("timm", "vit_base_patch16_siglip_gap_224", SMALL, "norm"),  # the mean of all tokens
    ("timm", "levit_128s", {"depth": (1, 1, 1)}, "stages"),
    ("timm", "xcit_nano_12_p16_224", {"depth": 1}, "cls_attn_blocks.1.norm1"),
    ("timm", "sequencer2d_s", {"layers": (1, 1, 1, 1)}, "norm"),  # LSTMs
    ("timm", "test_mambaout", {}, "stages"),
    ("torchvision", "squeezenet1_1", {}, "features"),
    ("torchvision", "shufflenet_v2_x0_5", {}, "conv5"),
]


@pytest.mark.parametrize(("library", "name", "options", "module"), CASES, ids=[case[1] for case in CASES])
def test_an_architecture(library: str, name: str, options: dict[str, Any], module: str) -> None:
    _compare(library, name, options, module, "torchscript")


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name", "options", "module"), CASES[:4], ids=[case[1] for case in CASES[:4]])
def test_an_architecture_from_the_dynamo_exporter(
    library: str, name: str, options: dict[str, Any], module: str
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the dynamo exporter is not tested")
    _compare(library, name, options, module, "dynamo")


def _compare(library: str, name: str, options: dict[str, Any], module: str, exporter: str) -> None:
    from benchmarks import architectures

    made, side = architectures.network(library, name, options)
    model = architectures.exported(made, side, exporter)
    *_, row = architectures.explained(made, side, model, architectures.Row(library, name, name, exporter))
    assert row.module == module
    assert float(row.error) < 1e-4


def test_the_table_holds_reasons_and_no_paths() -> None:
    """Of an error as torch.onnx.export(dynamo=True) raises it."""
    from benchmarks import architectures

    error = RuntimeError(
        "Failed to decompose the FX graph. Next steps:\n- Create an issue\n\n## Exception summary\n\n"
        "<class 'torch._errors.Unsupported'>: Cannot view a tensor\n\nWhile executing %view\nOriginal traceback:\n"
        'File "/home/me/net.py", line 3\n'
    )
    assert architectures.said(error) == "Unsupported: Cannot view a tensor"
    assert architectures.said(ValueError("two\nlines")) == "ValueError: two lines"


def test_what_autograd_rounds_is_no_error() -> None:
    from benchmarks.architectures import AGREES, Row

    row = Row("timm", "a", "a", "dynamo", error=f"{1.5 * AGREES}")
    assert not row.is_explained
    assert replace(row, rounding=f"{AGREES}").is_explained
    assert not replace(row, rounding=f"{AGREES}", error=f"{2.5 * AGREES}").is_explained


def test_two_ways_to_the_scores() -> None:
    """CrossViT has two transformers of tokens of two sizes: the error names layers of both, which then work."""
    from benchmarks import architectures

    made, side = architectures.network("timm", "crossvit_tiny_240", {"depth": ((1, 1, 0),)})
    model = architectures.exported(made, side, "torchscript")
    wanted = Preprocess(side, side, (128.0, 128.0, 128.0), channels="RGB")
    with pytest.raises(
        CamrtError, match=r"no features .*Name one or more yourself \(--layer \S+ --layer \S+\)"
    ) as found:
        explain_graph(model, "gradcam", preprocess=wanted)
    words = str(found.value).partition("(--layer ")[2].partition(")")[0].split(" --layer ")
    explain_graph(model, "gradcam", preprocess=wanted, layer=words)
