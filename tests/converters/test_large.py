"""Networks that are large in odd ways: time grows with their size, and not with its square."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from converters.conversion import build
from converters.net import read_net
from converters.reader import parse_prototxt
from tests.bounded import within
from tests.caffe_files import input_layer

INPUT = input_layer("data", 1, 3, 4, 4)
SPLIT = 'layer {{ name: "split" type: "Split" bottom: "data" {tops} }}'
RELU = 'layer {{ name: "{name}" type: "ReLU" bottom: "{blob}" top: "{blob}" }}\n'


def in_place_under_one_name(count: int) -> str:
    return INPUT + RELU.format(name="relu", blob="data") * count


def in_place_behind_a_layer(count: int) -> str:
    first = 'layer { name: "first" type: "Power" bottom: "data" top: "blob" }\n'
    return INPUT + first + RELU.format(name="relu", blob="blob") * count


def split_of_many(count: int) -> str:
    return INPUT + SPLIT.format(tops=" ".join(f'top: "t{index}"' for index in range(5 * count)))


@pytest.mark.parametrize("network", [in_place_under_one_name, in_place_behind_a_layer, split_of_many])
def test_time_grows_with_the_size_and_not_with_its_square(network: Callable[[int], str]) -> None:
    """8,000 layers, or 40,000 tops. They took 9 s and more; the limit leaves a slow machine room."""
    with within(6):
        converted = build(read_net(parse_prototxt(network(8000))))
    names = [node.name for node in converted.draft.graph.nodes]
    assert len(names) == len(set(names)) >= 8000
