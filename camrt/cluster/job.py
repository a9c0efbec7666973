"""What a run computes of each image, as it is sent to the workers and written into the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camrt.batch import MAX_SIDE
from camrt.errors import CamrtError
from camrt.loading import Request, explainer_graph
from camrt.render import STYLE, Style

# Parquet readers of the folder skip names that begin with a dot or an underscore.
GRAPH, OVERLAYS = "_explainer.onnx", "_overlays"
TOKEN, ATTEMPTS = ".camrt-run", ".attempts"


@dataclass(frozen=True)
class Job:
    """What is computed of each image, and where it runs.

    Attributes:
        folder: The folder of the results, which all machines see.
        graph: The explainer graph.
        sha256: The hash of the graph.
        model: The model that it was made of, as it was named.
        stated: What the graph says of itself.
        style: Which boxes are found, and how overlays are drawn.
        overlays: Whether overlays are written.
        map_side: The side of the maps in pixels; None for that of the graph.
        max_side: The longer side in pixels of overlays, and of the image that boxes are found in.
        max_pixels: The most pixels of an image that is read; None for the default.
        as_stored: Whether the EXIF orientation is ignored.
        engine: Further arguments of `camrt.Explainer`: ``providers``, ``precision``, ``threads``.
        batch: The number of images per run of the session; None for the default.
        token: What `TOKEN` in the folder says while this run goes on.
    """

    folder: Path
    graph: Path
    sha256: str
    model: str
    stated: Mapping[str, Any]
    style: Style = STYLE
    overlays: bool = False
    map_side: int | None = None
    max_side: int | None = MAX_SIDE
    max_pixels: int | None = None
    as_stored: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    token: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Return what the results depend on besides the images, as JSON holds it."""
        return {
            "model": self.model,
            "sha256": self.sha256,
            **{name: self.stated.get(name) for name in ("method", "protocol", "top", "target", "size")},
            "map_side": self.map_side or self.stated["size"],
            "boxes": self.style.boxes,
            "thresholds": list(self.style.thresholds) if self.style.boxes == "all" else None,
            "overlays": self.style.as_dict() if self.overlays else None,
            "max_side": self.max_side,
            "as_stored": self.as_stored,
            "precision": self.engine.get("precision") or "fp32",
        }

    @property
    def has_targets(self) -> bool:
        """Return whether a class comes with each image."""
        return self.stated.get("target") == "input"


def graph_of(model: str, request: Request) -> tuple[bytes | Path, str, dict[str, Any]]:
    """Make the explainer graph of a run, once for all workers.

    Args:
        model: A name, or the path of an ONNX model, as for `camrt.Explainer`.
        request: What the explainer is to do.

    Returns:
        The graph as the content of a file, or the path of a graph that has its weights beside it; its SHA-256; and what
        it says of itself.

    Raises:
        CamrtError: It cannot be made, or is too large for a file without weights beside it.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    from converters import metadata

    graph = explainer_graph(model, request)
    if isinstance(graph, Path):
        stated = metadata.explainer_of(metadata.of_file(graph)) or {}
        request.compare(stated)
        _expect_classes(stated, model)
        content = graph.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return (graph.absolute() if graph.with_name(f"{graph.name}.data").exists() else content), digest, stated
    stated = metadata.explainer_of(metadata.of_model(graph)) or {}
    _expect_classes(stated, model)
    try:
        content = graph.SerializeToString(deterministic=True)
    except ValueError as error:  # 2 GB: the limit of Protocol Buffers
        raise CamrtError(
            f"the explainer is too large to be sent ({error}). Write it with camrt export, and name that file",
            file=model,
        ) from error
    return content, hashlib.sha256(content).hexdigest(), stated


def _expect_classes(stated: Mapping[str, Any], model: str) -> None:
    if stated.get("explained") == "box":
        raise CamrtError(
            "found an explainer of detections, expected one of classes: the tables of a run have no boxes. camrt "
            "explain keeps them",
            file=model,
        )


def token_of(folder: Path) -> str | None:
    """Return the token of the run that owns a folder; None if there is none."""
    try:
        return str(json.loads((folder / TOKEN).read_bytes()))
    except (OSError, ValueError):
        return None
