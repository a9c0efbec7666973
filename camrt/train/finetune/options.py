"""Options and results of fine-tuning. PyTorch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from camrt.errors import CamrtError
from camrt.train.options import Precision

Optimizer = Literal["adamw", "sgd"]
OPTIMIZERS = ("adamw", "sgd")
# Options that do not change the weights, so that a run may go on with other ones.
_FREE = ("out", "resume", "restart", "workers", "device", "threads", "snapshot", "worst")


@dataclass(frozen=True)
class FinetuneOptions:
    """The options of fine-tuning.

    Attributes:
        backbone: ``timm:NAME``, ``torchvision:NAME`` (with ``@random`` for random weights), or a train_val prototxt.
        data: The training images, as a source for `camrt.train.data.sources.open_source`.
        test_data: The test images, with the same classes. By default, the test part of ``data`` if it has one, else
            ``holdout`` of its images.
        classes: ``"auto"`` for the classes of ``data``, or a file with a name per line.
        holdout: The fraction of the images of each class that is kept for testing.
        weights: The initial weights: a state dict (.pth, .safetensors), or a .caffemodel. By default, the library's.
        out: The prefix of all output files.
        head_epochs: The epochs of the first stage, in which only the linear layer is trained.
        epochs: The epochs of the second stage, in which all layers are trained.
        batch: The batch size of each process.
        size: The side of the network's input in pixels. By default, the backbone's.
        optimizer: ``"adamw"`` or ``"sgd"`` (momentum 0.9, Nesterov).
        rate: The largest learning rate of the second stage.
        head_rate: The largest learning rate of the first stage.
        weight_decay: The weight decay. Biases and the parameters of normalization have none.
        warmup: The epochs at the start of the second stage in which the learning rate rises linearly.
        smoothing: The label smoothing, 0 to less than 1.
        mixup: The alpha of mixup; 0 for none.
        randaugment: The magnitude of RandAugment, 1 to 30; 0 for none.
        ema: The decay of the exponential moving average of the weights; 0 for none.
        amp: The data type of mixed precision. By default, float32 everywhere.
        seed: The seed of all random numbers.
        snapshot: The number of steps between two snapshots. By default, an epoch.
        worst: The number of mistakes in the report.
        resume: Whether to resume from the snapshot, if there is one.
        restart: Whether to remove a snapshot and start over.
        workers: The number of processes that load images. The results do not depend on it.
        device: The device, by PyTorch's name. By default, a GPU if one is available.
        threads: The number of CPU threads. By default, PyTorch's.

    Raises:
        CamrtError: An option is invalid.
    """

    backbone: str
    data: str
    test_data: str | None = None
    classes: str = "auto"
    holdout: float = 0.2
    weights: Path | None = None
    out: Path = Path("finetuned")
    head_epochs: int = 1
    epochs: int = 10
    batch: int = 32
    size: int | None = None
    optimizer: Optimizer = "adamw"
    rate: float = 3e-4
    head_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 1.0
    smoothing: float = 0.1
    mixup: float = 0.0
    randaugment: int = 0
    ema: float = 0.0
    amp: Precision | None = None
    seed: int = 0
    snapshot: int | None = None
    worst: int = 12
    resume: bool = False
    restart: bool = False
    workers: int | None = None
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "--holdout": (self.holdout, 0 < self.holdout < 1, "more than 0, and less than 1"),
            "--epochs": (self.epochs, self.epochs >= 0 and self.epochs + self.head_epochs > 0, "1 epoch or more"),
            "--head-epochs": (self.head_epochs, self.head_epochs >= 0, "0 or more"),
            "--batch": (self.batch, self.batch >= 1, "1 or more"),
            "--size": (self.size, self.size is None or 32 <= self.size <= 4096, "32 to 4096 pixels"),
            "--lr": (self.rate, self.rate > 0, "more than 0"),
            "--head-lr": (self.head_rate, self.head_rate > 0, "more than 0"),
            "--weight-decay": (self.weight_decay, self.weight_decay >= 0, "0 or more"),
            "--warmup": (self.warmup, self.warmup >= 0, "0 or more"),
            "--label-smoothing": (self.smoothing, 0 <= self.smoothing < 1, "0 or more, and less than 1"),
            "--mixup": (self.mixup, self.mixup >= 0, "0 or more"),
            "--randaugment": (self.randaugment, 0 <= self.randaugment <= 30, "0 to 30"),
            "--ema": (self.ema, 0 <= self.ema < 1, "0 or more, and less than 1"),
        }
        for name, (found, is_valid, expected) in checks.items():
            if not is_valid:
                raise CamrtError(f"found {name} {found}, expected {expected}")
        if self.restart and self.resume:
            raise CamrtError("found --restart together with --resume, expected only one of them")

    def recipe(self) -> dict[str, Any]:
        """Return the options that determine the weights, of JSON types."""
        return {key: _plain(value) for key, value in asdict(self).items() if key not in _FREE}

    def named(self, ending: str) -> Path:
        """Return the path of an output file."""
        return self.out.with_name(self.out.name + ending)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class FinetuneResult:
    """The result of fine-tuning.

    Attributes:
        classifier: The ONNX classifier; None if a signal stopped the training.
        explainer: The ONNX explainer, likewise.
        report: The page, likewise.
        card: The model card, likewise.
        steps: The number of steps done.
        accuracy: The accuracy on the test images at the end; None if a signal stopped the training.
        per_class: Class -> its accuracy.
        seconds: The training time in seconds, over all runs.
        signal: The number of the signal that stopped the training; 0 if it ran to the end.
    """

    classifier: Path | None
    explainer: Path | None
    report: Path | None
    card: Path | None
    steps: int
    accuracy: float | None
    per_class: Mapping[str, float]
    seconds: float
    signal: int = 0
