"""Localization: boxes from heatmaps and masks. `camrt.localize.crf` refines heatmaps."""

from camrt.localize.boxes import boxes_from_heatmap, format_boxes, read_boxes
from camrt.localize.components import boxes_from_mask

__all__ = ["boxes_from_heatmap", "boxes_from_mask", "format_boxes", "read_boxes"]
