"""Networks to fine-tune: the features of a backbone, global average pooling, and one linear layer.

The backbone is a network of timm or torchvision, or a train_val prototxt. The classifier is the one of class activation
maps (Zhou et al. 2016): the map of a class is the sum of the feature maps, weighted by its row of the linear layer.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from camrt.catalog.pytorch import exported, network_named
from camrt.errors import CamrtError
from camrt.preprocess import Preprocess, preprocess_of
from camrt.train.networks import Network, network
from camrt.train.surgery import before_global_pooling, surgery
from camrt.train.weights import load_caffemodel, save_caffemodel
from converters import convert, metadata, read_net
from converters.errors import ConversionError
from converters.reader import parse_prototxt, read_prototxt
from converters.transform import metadata_of

if TYPE_CHECKING:
    import onnx

LIBRARIES = ("timm", "torchvision")
_HEADS = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d)  # what may follow the last feature maps of a backbone


class CamNetwork(nn.Module):
    """A network that ends in global average pooling and one linear layer.

    Attributes:
        preprocess: How it wants its images.
    """

    preprocess: Preprocess

    @abstractmethod
    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the linear layer, which starts from random numbers."""

    @abstractmethod
    def to_onnx(self, name: str) -> onnx.ModelProto:
        """Return the classifier as ONNX, with a free batch size."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, 3, H, W), float32, preprocessed."""
        raise NotImplementedError


def open_backbone(text: str, classes: int, *, size: int | None, weights: Path | None, seed: int) -> CamNetwork:
    """Make the network to fine-tune.

    Args:
        text: ``timm:NAME``, ``torchvision:NAME`` (with ``@random`` for random weights), or a train_val prototxt.
        classes: The number of classes.
        size: The side of its input in pixels. By default, the backbone's own.
        weights: A state dict or .caffemodel in place of the library's weights.
        seed: The seed of the new layer.

    Raises:
        CamrtError: There is no such network, its weights cannot be had, or it has no feature maps at its end.
    """
    kind, _, _ = text.partition(":")
    if kind in LIBRARIES:
        return _TorchCam(text, classes, size, weights, seed)
    if not Path(text).is_file():
        raise CamrtError(
            f"found the backbone {text!r}, expected timm:NAME, torchvision:NAME, or the file of a train_val prototxt"
        )
    return _CaffeCam(Path(text), classes, size, weights, seed)


# --------------------------------------------------------------------------------------------------- timm, torchvision


class _TorchCam(CamNetwork):
    """A network of timm or torchvision up to its last feature maps, and the new head."""

    def __init__(self, text: str, classes: int, size: int | None, weights: Path | None, seed: int) -> None:
        super().__init__()
        named = network_named(text)
        module, wants = named.module(weights), named.preprocess()
        assert wants is not None  # the libraries say it of each network
        side = size or wants.crop
        self.preprocess = Preprocess(side, side, wants.mean, wants.scale, wants.channels)
        try:
            self.features = _timm_features(module) if text.startswith("timm:") else _torchvision_features(module, side)
            with torch.no_grad():
                shape = tuple(self.features.eval()(torch.zeros(2, 3, side, side)).shape)
        except CamrtError as error:
            raise CamrtError(f"{text}: {error}") from None
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise CamrtError(f"{text} takes no images of {side} x {side} pixels: {reason}. Use --size") from error
        if len(shape) == 4 and max(shape[2:]) == 1:
            raise CamrtError(
                f"{text} has feature maps of 1 x 1 at images of {side} x {side} pixels, expected more positions: use a "
                "larger --size"
            )
        if len(shape) != 4 or min(shape[2:]) < 2:
            found = " x ".join(map(str, shape[1:]))
            raise CamrtError(
                f"{text} ends in features of {found}, expected feature maps (channels, height, width): a convolutional "
                "network such as timm:resnet18 or torchvision:resnet50"
            )
        self.fc = nn.Linear(shape[1], classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.fc.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.fc.bias)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        return self.fc.parameters()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(functional.adaptive_avg_pool2d(self.features(images), 1).flatten(1))

    def to_onnx(self, name: str) -> onnx.ModelProto:
        return exported(self.eval(), self.preprocess.crop, name)


class _TimmFeatures(nn.Module):
    """The features of a network of timm, (N, C, H, W)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.net = module
        self.channels = module.num_features

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.net.forward_features(images)
        is_last = maps.dim() == 4 and maps.shape[1] != self.channels and maps.shape[3] == self.channels
        return maps.permute(0, 3, 1, 2) if is_last else maps


def _timm_features(module: Any) -> nn.Module:
    module.reset_classifier(0, "")
    return _TimmFeatures(module)


def _torchvision_features(module: Any, side: int) -> nn.Module:
    """Cut a network of torchvision after its last feature maps that no pooling to a fixed size has made."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    train_nodes, eval_nodes = get_graph_node_names(module)
    shared = [name for name in eval_nodes if name in set(train_nodes)]
    with torch.no_grad():
        tops = create_feature_extractor(module.eval(), shared)(torch.zeros(2, 3, side, side))
    maps = [
        name
        for name, top in tops.items()
        if isinstance(top, Tensor) and top.dim() == 4 and min(top.shape[2:]) > 1 and "avgpool" not in name
    ]
    if not maps:
        raise CamrtError("found no feature maps, expected a convolutional network")
    chosen = {maps[-1]: "features"}
    features = create_feature_extractor(module, train_return_nodes=chosen, eval_return_nodes=chosen)
    kept = {id(parameter) for parameter in features.parameters()}
    for name, part in module.named_modules():
        own = list(part.parameters(recurse=False))
        auxiliary = name.startswith(("AuxLogits", "aux1", "aux2"))
        if any(id(one) not in kept for one in own) and not auxiliary and not isinstance(part, _HEADS):
            raise CamrtError(
                f"its last feature maps ({maps[-1]}) are followed by {name} ({type(part).__name__}), expected pooling "
                "and linear layers: use a convolutional network"
            )
    return _First(features)


class _First(nn.Module):
    """The only output of a feature extractor."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        (maps,) = self.extractor(images).values()
        return maps


# --------------------------------------------------------------------------------------------------------------- Caffe


class _CaffeCam(CamNetwork):
    """A network of a train_val prototxt, cut before its global pooling, with a new CAM_fc."""

    def __init__(self, file: Path, classes: int, size: int | None, weights: Path | None, seed: int) -> None:
        super().__init__()
        try:
            description = read_prototxt(file)
            made = surgery(description, before_global_pooling(description), classes=classes, channels=0)
            self.text = made.text()
            parsed = parse_prototxt(self.text, str(file))
            trained, tested = (read_net(parsed, phase=phase, training=True) for phase in ("TRAIN", "TEST"))
            properties, _ = metadata_of(read_net(parsed))
        except ConversionError as error:
            raise CamrtError(str(error)) from error
        if metadata.PREPROCESS not in properties:
            raise CamrtError(
                "does not say how images are prepared, expected a transform_param with mean_value and crop_size in its "
                "data layer",
                file=str(file),
            )
        stated = preprocess_of(None, properties)
        side = size or stated.crop
        self.preprocess = Preprocess(side, side, stated.mean, stated.scale, stated.channels)
        self.image, self.label = (one.name for one in trained.inputs)
        shapes = {self.image: (2, 3, side, side), self.label: (2,)}
        self.trained: Network = network(trained, input_shapes=shapes, seed=seed)
        self.tested: Network = network(tested, input_shapes=shapes, share=self.trained, seed=seed)
        (self.scores,) = made.new
        if weights is not None:
            load_caffemodel(self.trained, weights)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        return (blob.parameter for blob in self.trained.blobs if blob.layer == self.scores)

    def forward(self, images: Tensor) -> Tensor:
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        net = self.trained if self.training else self.tested
        return net({self.image: images, self.label: labels}, keep=[self.scores])[self.scores]

    def to_onnx(self, name: str) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "net.caffemodel"
            save_caffemodel(self.trained, weights)
            shape = (1, 3, self.preprocess.crop, self.preprocess.crop)
            return convert(parse_prototxt(self.text, name), weights, input_shapes={self.image: shape})
