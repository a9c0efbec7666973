"""The smallest networks of families that put the channels last, with random weights, and their exports."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its networks are not tested")

SIDE, CLASSES = 64, 7
DEPTHS, WIDTHS, HEADS = (1, 1, 1, 1), (8, 16, 24, 32), (1, 2, 3, 4)

pytest.importorskip("torchvision", reason="torchvision is not installed: its networks are not tested")
timm = pytest.importorskip("timm", reason="timm is not installed: its networks are not tested")


@dataclass(frozen=True)
class Family:
    """A network of a family.

    Attributes:
        make: Makes it.
        layer: The module whose output is the layer that is explained by default.
        channels_axis: The axis of the channels in that output.
    """

    make: Callable[[], Any]
    layer: str
    channels_axis: int


def _timm(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: timm.create_model(name, num_classes=CLASSES, depths=DEPTHS, dims=WIDTHS, **options)


def _poolformer() -> Any:
    from timm.layers import GroupNorm1
    from timm.models.metaformer import MetaFormer

    return MetaFormer(
        num_classes=CLASSES, depths=DEPTHS, dims=WIDTHS, downsample_norm=None, mlp_act=torch.nn.GELU, mlp_bias=True,
        norm_layers=GroupNorm1, layer_scale_init_values=0.5, res_scale_init_values=None, use_mlp_head=False,
    )  # fmt: skip


def _tiny_vit() -> Any:
    from timm.models.tiny_vit import TinyVit

    return TinyVit(num_classes=CLASSES, embed_dims=WIDTHS, depths=DEPTHS, num_heads=HEADS, window_sizes=(4, 4, 4, 4))


def _davit() -> Any:
    from timm.models.davit import DaVit

    return DaVit(num_classes=CLASSES, depths=DEPTHS, embed_dims=WIDTHS, num_heads=HEADS, window_size=4)


def _torchvision_convnext() -> Any:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], num_classes=CLASSES
    )


def _torchvision_swin() -> Any:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=CLASSES)


def _timm_swin() -> Any:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=CLASSES, img_size=SIDE, embed_dim=16, depths=DEPTHS,
        num_heads=(1, 2, 4, 8), window_size=4,
    )  # fmt: skip


FAMILIES = {
    "convnext": Family(_timm("convnext_atto"), "stages.3", 1),
    "convnextv2": Family(_timm("convnextv2_atto"), "stages.3", 1),
    "convnext of torchvision": Family(_torchvision_convnext, "features", 1),
    "poolformer": Family(_poolformer, "stages.3", 1),
    "edgenext": Family(_timm("edgenext_xx_small"), "stages.3", 1),
    "tinyvit": Family(_tiny_vit, "stages.3", 1),
    "davit": Family(_davit, "stages.3", 1),
    "mambaout": Family(_timm("mambaout_femto"), "stages.3", 3),
    "swin": Family(_timm_swin, "norm", 3),
    "swin of torchvision": Family(_torchvision_swin, "permute", 1),
}


def network(name: str) -> Any:
    """A seeded network, whose linear layers and convolutions have weights of a size that lets differences be seen."""
    torch.manual_seed(3)
    module = FAMILIES[name].make()
    for layer in module.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.normal_(layer.weight, std=(1 / layer.weight[0].numel()) ** 0.5)
    return module.eval()


def exported(module: Any, *, dynamo: bool) -> onnx.ModelProto:
    """The network as PyTorch exports it, for any number of images."""
    options: dict[str, Any] = {"input_names": ["data"], "output_names": ["logits"], "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("n", min=1)},)
            images = torch.zeros(2, 3, SIDE, SIDE)
            return torch.onnx.export(module, (images,), dynamo=True, dynamic_shapes=shapes, **options).model_proto
        stream, axes = io.BytesIO(), {"data": {0: "n"}, "logits": {0: "n"}}
        torch.onnx.export(
            module, (torch.zeros(1, 3, SIDE, SIDE),), stream, dynamo=False, dynamic_axes=axes, **options
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())
