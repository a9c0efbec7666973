"""The log of a training run for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camrt.errors import CamrtError
from converters.errors import install

BOARD = "_tensorboard"
_TRAINED = ("loss", "smoothed_loss", "rate", "images_per_second")


class Board:
    """Writes the records of a training log as scalars.

    Args:
        folder: The folder of the event files.
        iteration: The iteration at which training starts. TensorBoard hides later records of an earlier run.

    Raises:
        CamrtError: The package tensorboard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, iteration: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise CamrtError(
                f"--tensorboard needs the package tensorboard, which is not installed: {install('tensorboard')}"
            ) from None
        try:
            self._writer = SummaryWriter(str(folder), purge_step=iteration)
        except OSError as error:
            raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(folder)) from error

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record of the log: see `camrt.train.log`."""
        if record["phase"] == "test":
            scalars = {f"test {record['net']}/{name}": value for name, value in record["outputs"].items()}
        else:
            scalars = {f"train/{name}": record[name] for name in _TRAINED}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, record["iteration"])

    def close(self) -> None:
        """Write what is left, and close the files."""
        self._writer.close()
