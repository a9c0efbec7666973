"""Localization: boxes from heatmaps and masks. `camrt.localize.crf` refines heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from camrt.localize.boxes import boxes_from_heatmap, format_boxes, read_boxes
    from camrt.localize.components import best_box, boxes_from_mask

# The gray levels of generate_bbox.m. They stand here so that the command line can name them without loading OpenCV.
THRESHOLDS = (20, 100, 110)

__all__ = ["THRESHOLDS", "best_box", "boxes_from_heatmap", "boxes_from_mask", "format_boxes", "read_boxes"]

__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "boxes": ["boxes_from_heatmap", "format_boxes", "read_boxes"],
        "components": ["best_box", "boxes_from_mask"],
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
