"""Where in the image: boxes from heatmaps."""

from camrt.localize.boxes import boxes_from_heatmap, format_boxes, read_boxes

__all__ = ["boxes_from_heatmap", "format_boxes", "read_boxes"]
