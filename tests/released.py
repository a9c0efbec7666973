"""The released networks of the CAM paper with seeded weights, and the crops that they see in the original demo."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import scipy.io

import converters
from converters import zoo
from converters.reader import parse_prototxt
from tests.seeded import SeededModel

SEED = 20160627
RELEASED = {
    "googlenetCAM": "deploy_googlenetCAM.prototxt",
    "googlenetCAM_places205": "deploy_googlenetCAM_places205.prototxt",
    "vgg16CAM": "deploy_vgg16CAM.prototxt",
    "alexnetplusCAM_imagenet": "deploy_alexnetplusCAM_imagenet.prototxt",
    "alexnetplusCAM_places205": "deploy_alexnetplusCAM_places205.prototxt",
}


def seeded(name: str, reference: Path, folder: Path) -> onnx.ModelProto:
    table = json.loads((reference / "nets" / name / "shapes.json").read_text())
    caffemodel = SeededModel.of_table(table).write(folder / "net.caffemodel", v1=True)
    return converters.convert(parse_prototxt(zoo.find(name).prototxt(), f"{name}.prototxt"), caffemodel)


def ten_crops(reference: Path, crop: int, middle: int | None = None) -> np.ndarray:
    """The demo's first image as its prepare_image.m cuts it: (10, 3, crop, crop) float32, BGR, minus the mean image.

    Corners in the order top left, bottom left, top right, bottom right, then the middle; then the same five mirrored.
    """
    image = cv2.imread(str(reference / "matlab_demo" / "img1.jpg")).astype(np.float32)
    mean = scipy.io.loadmat(reference / "matlab_demo" / "ilsvrc_2012_mean.mat")["mean_data"]
    image -= mean.transpose(1, 0, 2)  # MATLAB's has the width first
    room = image.shape[0] - crop
    if middle is None:
        middle = (room + 1) // 2  # prepare_image.m counts from 1: floor((room + 1) / 2) + 1
    corners = [(top, left) for left in (0, room) for top in (0, room)]
    cut = [image[top : top + crop, left : left + crop] for top, left in [*corners, (middle, middle)]]
    return np.stack([*cut, *(one[:, ::-1] for one in cut)]).transpose(0, 3, 1, 2)
