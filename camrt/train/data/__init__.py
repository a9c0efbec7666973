"""Training data: sources of images, Caffe's transformations, batches. Only `loading` and `dummy` import PyTorch."""

from __future__ import annotations

from camrt.train.data.feed import Feed, ImageBatch, Order
from camrt.train.data.sources import Clutters, Digits, ImageFiles, Source, from_layer, has_test_part, open_source
from camrt.train.data.transform import Transform

__all__ = [
    "Clutters",
    "Digits",
    "Feed",
    "ImageBatch",
    "ImageFiles",
    "Order",
    "Source",
    "Transform",
    "from_layer",
    "has_test_part",
    "open_source",
]
