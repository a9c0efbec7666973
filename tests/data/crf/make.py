"""Writes answers.npz beside it. Needs pydensecrf2 1.1: pip install pydensecrf2 (it is compiled)."""

from pathlib import Path

import numpy as np
from pydensecrf.densecrf import DenseCRF
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian

# height, width, kind of image, bilateral, gaussian, iterations
CASES = {
    "seed": (47, 61, "scene", (10, 20, 10), None, 50),
    "both": (40, 40, "scene", (30, 13, 10), (3, 3), 10),
    "gaussian": (33, 29, "scene", None, (4, 3), 5),
    "weak": (30, 50, "scene", (6, 40, 0.7), (1.5, 0.4), 20),
    "noise": (24, 31, "noise", (10, 20, 10), None, 20),
    "flat": (20, 30, "flat", (4, 20, 1), (3, 1), 10),
    "fine": (25, 25, "scene", (0.5, 2, 10), None, 10),
    "column": (37, 1, "scene", (10, 20, 10), None, 10),
    "pixel": (1, 1, "noise", (10, 20, 10), (3, 3), 10),
}


def scene(height, width, generator):
    """A disc and a bar on a slope, with a little noise."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([90 + 60 * x, 120 - 50 * y, 80 + 40 * x * y], axis=-1)
    image[(y - 0.4) ** 2 + (x - 0.55) ** 2 < 0.06] = (200, 60, 40)
    image[(np.abs(y - 0.62) < 0.05) & (x > 0.1)] = (30, 160, 220)
    return np.clip(image + generator.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def picture(kind, height, width, generator):
    if kind == "scene":
        return scene(height, width, generator)
    if kind == "noise":
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.full((height, width, 3), 77, np.uint8)


def blob(height, width, generator):
    y, x = np.mgrid[:height, :width] / max(height, width)
    bump = np.exp(-((y - 0.45) ** 2 + (x - 0.5) ** 2) / 0.09) + generator.normal(0, 0.02, (height, width))
    return np.clip(bump, 0.001, 0.999).astype(np.float32)


def answer(image, probability, bilateral, gaussian, iterations):
    """The marginals (H, W) of the object: the second of two labels."""
    field = DenseCRF(probability.size, 2)
    both = np.stack([1 - probability.astype(np.float64), probability]).reshape(2, -1)
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(both), np.float32))
    if bilateral:
        sdims, schan, compat = bilateral
        field.addPairwiseEnergy(create_pairwise_bilateral((sdims,) * 2, (schan,) * 3, image, chdim=2), compat)
    if gaussian:
        sdims, compat = gaussian
        field.addPairwiseEnergy(create_pairwise_gaussian((sdims,) * 2, probability.shape), compat)
    return np.array(field.inference(iterations))[1].reshape(probability.shape)


def main():
    generator = np.random.default_rng(2011)
    arrays = {}
    for name, (height, width, kind, bilateral, gaussian, iterations) in CASES.items():
        image, probability = picture(kind, height, width, generator), blob(height, width, generator)
        arrays[f"{name}_image"], arrays[f"{name}_probability"] = image, probability
        arrays[f"{name}_bilateral"], arrays[f"{name}_gaussian"] = bilateral or (), gaussian or ()
        arrays[f"{name}_iterations"] = iterations
        arrays[f"{name}_marginal"] = answer(image, probability, bilateral, gaussian, iterations)
    np.savez_compressed(Path(__file__).with_name("answers.npz"), **arrays)


if __name__ == "__main__":
    main()
