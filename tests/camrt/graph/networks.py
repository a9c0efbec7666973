"""Small networks of the families that PyTorch's users export: every layer of theirs, fewer and narrower ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SIDE, CLASSES = 32, 7


def build(name: str, torch: Any) -> Any:
    """A network with seeded weights and statistics, in eval mode."""
    torch.manual_seed(5)
    network = NETWORKS[name](torch, torch.nn)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    return network.eval()


def _module(nn: Any, forward: Callable[..., Any], **layers: Any) -> Any:
    """A module of layers and a function of them and the input."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Module()


def _convolution(nn: Any, inputs: int, outputs: int, kernel: int = 3, act: Any = None, **options: Any) -> Any:
    options = {"padding": kernel // 2, "bias": False, **options}
    layers = [nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act] if act else []))


def _head(nn: Any, channels: int) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, CLASSES)]


def vgg(torch: Any, nn: Any) -> Any:
    layers: list[Any] = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
    fully = [nn.Linear(16 * 16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, CLASSES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(1), *fully)


def alexnet(torch: Any, nn: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 12, 7, 3, 2), nn.ReLU(), nn.LocalResponseNorm(5, 0.1, 0.75, 1.0), nn.MaxPool2d(3, 2),
        nn.Conv2d(12, 16, 5, padding=2, groups=2), nn.ReLU(), nn.Flatten(1), nn.Linear(16 * 16, CLASSES),
    )  # fmt: skip


def resnet(torch: Any, nn: Any) -> Any:
    def block(inputs: int, outputs: int, stride: int) -> Any:
        inner = nn.Sequential(
            _convolution(nn, inputs, 6, 1, nn.ReLU()),
            _convolution(nn, 6, 6, 3, nn.ReLU(), stride=stride),
            _convolution(nn, 6, outputs, 1),
        )
        side = _convolution(nn, inputs, outputs, 1, stride=stride) if stride > 1 else nn.Identity()
        return _module(nn, lambda self, x: torch.relu(self.side(x) + self.inner(x)), side=side, inner=inner)

    stem = [_convolution(nn, 3, 12, 7, nn.ReLU(), stride=2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, block(12, 16, 2), block(16, 16, 1), *_head(nn, 16))


def _squeeze(torch: Any, nn: Any, channels: int, gate: Any, act: Any) -> Any:
    inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), act, nn.Conv2d(4, channels, 1), gate)
    return _module(nn, lambda self, x: x * self.inner(x), inner=inner)


def _inverted(torch: Any, nn: Any, inputs: int, outputs: int, stride: int, act: Any, squeeze: Any = None) -> Any:
    wide = inputs * 2
    inner = nn.Sequential(
        _convolution(nn, inputs, wide, 1, act),
        _convolution(nn, wide, wide, 3, act, stride=stride, groups=wide),
        *([squeeze] if squeeze else []),
        _convolution(nn, wide, outputs, 1),
    )
    if stride == 1 and inputs == outputs:
        return _module(nn, lambda self, x: x + self.inner(x), inner=inner)
    return inner


def mobilenet(torch: Any, nn: Any) -> Any:
    """Version 2: ReLU6."""
    act = nn.ReLU6()
    blocks = [_inverted(torch, nn, 8, 8, 1, act), _inverted(torch, nn, 8, 12, 2, act)]
    return nn.Sequential(_convolution(nn, 3, 8, 3, act, stride=2), *blocks, nn.Dropout(), *_head(nn, 12))


def mobilenet_v3(torch: Any, nn: Any) -> Any:
    act = nn.Hardswish()
    squeeze = [_squeeze(torch, nn, 16, nn.Hardsigmoid(), nn.ReLU()) for _ in range(2)]
    blocks = [_inverted(torch, nn, 8, 8, 1, act, squeeze[0]), _inverted(torch, nn, 8, 12, 2, act, squeeze[1])]
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(12, 16), act, nn.Linear(16, CLASSES)]
    return nn.Sequential(_convolution(nn, 3, 8, 3, act, stride=2), *blocks, *top)


def efficientnet(torch: Any, nn: Any) -> Any:
    act = nn.SiLU()
    squeeze = [_squeeze(torch, nn, 16, nn.Sigmoid(), nn.SiLU()) for _ in range(2)]
    blocks = [_inverted(torch, nn, 8, 8, 1, act, squeeze[0]), _inverted(torch, nn, 8, 12, 2, act, squeeze[1])]
    return nn.Sequential(_convolution(nn, 3, 8, 3, act, stride=2), *blocks, *_head(nn, 12))


def densenet(torch: Any, nn: Any) -> Any:
    def layer(inputs: int) -> Any:
        inner = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4, 3, padding=1, bias=False))
        return _module(nn, lambda self, x: torch.cat([x, self.inner(x)], 1), inner=inner)

    transition = [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2, 2)]
    last = [layer(8), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(
        _convolution(nn, 3, 8, 7, nn.ReLU(), stride=2), layer(8), layer(12), *transition, *last, *_head(nn, 12)
    )


def squeezenet(torch: Any, nn: Any) -> Any:
    def fire(inputs: int) -> Any:
        def forward(self: Any, x: Any) -> Any:
            x = torch.relu(self.squeeze(x))
            return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)

        three = nn.Conv2d(4, 8, 3, padding=1)
        return _module(nn, forward, squeeze=nn.Conv2d(inputs, 4, 1), one=nn.Conv2d(4, 8, 1), three=three)

    pool = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(2)]
    top = [nn.Dropout(), nn.Conv2d(16, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), pool[0], fire(8), pool[1], fire(16), *top)


def inception(torch: Any, nn: Any) -> Any:
    """Branches, among them uneven kernels and an average over a padded map; and normalised input."""

    def forward(self: Any, x: Any) -> Any:
        pooled = nn.functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.seven(x), self.pool(pooled), nn.functional.max_pool2d(x, 3, 1, 1)], 1)

    def mixed(inputs: int) -> Any:
        conv = lambda kernel, pad: nn.Sequential(nn.Conv2d(inputs, 4, kernel, padding=pad), nn.ReLU())  # noqa: E731
        seven = nn.Sequential(conv((1, 7), (0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0)), nn.ReLU())
        return _module(nn, forward, one=conv(1, 0), seven=seven, pool=conv(1, 0))

    def scaled(self: Any, x: Any) -> Any:
        channels = [x[:, channel : channel + 1] * (0.5 + channel) - 0.1 for channel in range(3)]
        return self.inner(torch.cat(channels, 1))

    inner = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), mixed(8), nn.MaxPool2d(3, 2), *_head(nn, 20))
    return _module(nn, scaled, inner=inner)


def shufflenet(torch: Any, nn: Any) -> Any:
    def forward(self: Any, x: Any) -> Any:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.inner(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def block() -> Any:
        inner = nn.Sequential(_convolution(nn, 6, 6, 1, nn.ReLU()), _convolution(nn, 6, 6, 3, groups=6))
        return _module(nn, forward, inner=inner)

    return nn.Sequential(_convolution(nn, 3, 12, 3, nn.ReLU(), stride=2), block(), block(), *_head(nn, 12))


def convnext(torch: Any, nn: Any) -> Any:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8, eps=1e-6)
            self.inner = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
            self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

        def forward(self, x: Any) -> Any:
            y = self.inner(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            return x + self.scale * y

    norm = lambda: _module(  # noqa: E731
        nn, lambda self, x: self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(8, eps=1e-6)
    )
    down = [norm(), nn.Conv2d(8, 8, 2, 2)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        norm(),
        Block(),
        *down,
        Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.LayerNorm(8),
        nn.Linear(8, CLASSES),
    )


def vit(torch: Any, nn: Any) -> Any:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(12), nn.LayerNorm(12)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.inner = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

        def forward(self, x: Any) -> Any:
            y = self.first(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            return x + self.inner(self.second(x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 8, 8)
            self.token, self.places = (nn.Parameter(torch.randn(1, size, 12)) for size in (1, 17))
            self.layers = nn.Sequential(Layer(), Layer())
            self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
            return self.head(self.norm(self.layers(x))[:, 0])

    return Transformer()


def swin(torch: Any, nn: Any) -> Any:
    """Attention in shifted windows, so that images and windows stand along one axis."""

    class Layer(nn.Module):
        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift, self.norm = shift, nn.LayerNorm(8)
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
            self.bias = nn.Parameter(torch.randn(2, 16, 16))

        def forward(self, x: Any) -> Any:
            n, h, w, c = x.shape
            y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
            y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
            q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
            y = (torch.softmax(q @ k.transpose(-2, -1) * 0.5 + self.bias, -1) @ v).transpose(1, 2).reshape(-1, 16, c)
            y = self.out(y).view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
            return x + torch.roll(y, (self.shift, self.shift), (1, 2))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.layers = nn.Conv2d(3, 8, 4, 4), nn.Sequential(Layer(0), Layer(2))
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.layers(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))

    return Transformer()


NETWORKS: dict[str, Callable[[Any, Any], Any]] = {
    each.__name__: each
    for each in (
        vgg, alexnet, resnet, mobilenet, mobilenet_v3, efficientnet, densenet, squeezenet, inception, shufflenet,
        convnext, vit, swin,
    )
}  # fmt: skip
