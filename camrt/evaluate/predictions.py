"""Results of `camrt batch` as predictions: images are explained on a cluster, and evaluated without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from camrt.cluster.shards import Shards, unpacked
from camrt.errors import CamrtError
from camrt.evaluate.experiment import Pending

_COLUMNS = ("path", "width", "height", "classes", "scores", "peaks", "heatmap", "all_scores", "error")


@dataclass(frozen=True)
class Predicted:
    """What is known of an image.

    Attributes:
        classes: (top,) the numbers of the classes.
        scores: (top,) their scores.
        heatmaps: (top, S, S) float32.
        all_scores: (K,) float32.
        size: Width and height of the image in pixels.
    """

    classes: Sequence[int]
    scores: Sequence[float]
    heatmaps: NDArray[np.float32]
    all_scores: NDArray[np.float32]
    size: tuple[int, int]


@dataclass(frozen=True)
class Predictions:
    """The rows of a folder of `camrt batch`.

    Attributes:
        shards: Its files.
        paths: Image of the dataset -> the path in its row.
        fingerprints: Image of the dataset -> what must not have changed for an earlier result to count.
    """

    shards: Shards
    paths: Mapping[str, str]
    fingerprints: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, names: Sequence[str], *, stems: bool) -> Predictions:
        """Find the rows of the images of a dataset.

        Args:
            folder: The folder that `camrt batch` wrote to.
            names: The images.
            stems: Whether they are named without folder and ending, as in ILSVRC; else by the end of their path.

        Raises:
            CamrtError: The folder holds no results, none of these images, or one of them twice; a file cannot be read.
        """
        shards = Shards.of(folder)
        if not shards.files:
            raise CamrtError("holds no results of camrt batch (shard-*.parquet), expected its folder", file=str(folder))
        wanted, paths, fingerprints = set(names), dict[str, str](), dict[str, Any]()
        for row in shards.table(["path", "size", "mtime_ns"]).to_pylist():
            name = _name_of(row["path"], wanted, stems=stems)
            if name is None:
                continue
            if name in paths:
                raise CamrtError(
                    f"found the image {name!r} twice: {paths[name]} and {row['path']}, expected it once",
                    file=str(folder),
                )
            paths[name] = row["path"]
            fingerprints[name] = [row["path"], row["size"], row["mtime_ns"]]
        if not paths:
            raise CamrtError(
                f"holds none of the {len(names):,} images, the first of which is {names[0]!r}, expected rows of them",
                file=str(folder),
            )
        return cls(shards, paths, {name: fingerprints.get(name) for name in names})

    @property
    def method(self) -> str:
        """Return how the maps were computed."""
        return str(self._settings["job"]["method"])

    @property
    def labels(self) -> Sequence[str] | None:
        """Return the names of the classes, or None."""
        labels = self._settings.get("labels")
        return None if labels is None else [str(label) for label in labels]

    @property
    def settings(self) -> dict[str, Any]:
        """Return what the maps depend on."""
        return {"predictions": dict(self._settings["job"])}

    @property
    def files(self) -> dict[str, Path | None]:
        """Return the path of each image; None for an image without a row."""
        return {name: Path(self.paths[name]) if name in self.paths else None for name in self.fingerprints}

    def pending(self, pending: Pending) -> Iterator[tuple[str, Predicted]]:
        """Read the images that are left. Those whose row has an error are recorded as failures.

        Raises:
            CamrtError: A row is damaged, or a file cannot be read.
        """
        names = {self.paths[name]: name for name in pending.files}
        for row in self.shards.rows(_COLUMNS):
            if (name := names.get(row["path"])) is None:
                continue
            if row["error"] is not None:
                pending.record_failure(name, row["error"])
            else:
                pending.ran[name] = row["ran"]
                yield name, self._predicted(row)

    def _predicted(self, row: Mapping[str, Any]) -> Predicted:
        try:
            heatmaps = unpacked(row["peaks"], row["heatmap"])
            scores = np.array(row["all_scores"], np.float32)
            if not len(heatmaps) == len(row["classes"]) == len(row["scores"]):
                raise ValueError(f"{len(heatmaps)} maps of {len(row['classes'])} classes")
            return Predicted(row["classes"], row["scores"], heatmaps, scores, (row["width"], row["height"]))
        except (TypeError, ValueError) as error:
            raise CamrtError(
                f"the row of {row['path']!r} is damaged ({error})", file=str(self.shards.folder)
            ) from error

    @property
    def _settings(self) -> Mapping[str, Any]:
        assert self.shards.settings is not None
        return self.shards.settings


def _name_of(path: str, names: set[str], *, stems: bool) -> str | None:
    """Return the image of a dataset that a path leads to: the longest end of the path that is a name."""
    parts = PurePosixPath(unquote(path.partition("?")[0]) if "://" in path else path)
    if stems:
        return parts.stem if parts.stem in names else None
    ends = ("/".join(parts.parts[start:]) for start in range(len(parts.parts)))
    return next((end for end in ends if end in names), None)
