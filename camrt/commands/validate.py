"""The command `camrt validate`: a network's answers beside the original's."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camrt.commands.options import Json, Provider, Weights, named_caffe
from camrt.commands.output import reporting, show
from camrt.commands.reference import ReferenceDir, hint_of_download, reference_folder
from camrt.errors import CamrtError
from camrt.loading import preprocess_of_named
from camrt.results import json_line

if TYPE_CHECKING:
    from camrt.preprocess import Preprocess
    from camrt.validate import Report
    from converters.zoo import NamedModel

EXAMPLES = """Examples:

  camrt validate googlenetCAM

  camrt validate googlenetCAM --weights imagenet_googlenetCAM_train_iter_120000.caffemodel

  camrt validate vgg16CAM --reference answers.npz --image photo.jpg

A reference is .npz with any of features (10, C, h, w), weights (K, C), scores (10, K), cams (10, top, h, w) and top5,
or .mat as MATLAB writes them, of the ten crops of --image.

Exit status: 0 (the same or close), 1 (something differs, or nothing could be compared) or 2 (usage).
"""


def validate(
    name: Annotated[str, typer.Argument(help="A named model.")],
    weights: Weights = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE.npz|FILE.mat", help="Answers to compare with.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The image that they are of; by default the original's img1.jpg.")
    ] = None,
    reference_dir: ReferenceDir = None,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Compare a network's answers with the original's: its released features, weights and scores."""
    model = named_caffe(name)
    with reporting():
        report = _validated(model, weights, reference, image, reference_folder(reference_dir), provider)
        if as_json:
            print(json_line(report.as_dict()))
        else:
            show(f"{report.name} against {report.against}", report.as_table())
        if not report.passed:
            raise typer.Exit(1)


def _validated(
    model: NamedModel,
    weights: Path | None,
    reference: Path | None,
    image: Path | None,
    folder: Path,
    provider: str | None,
) -> Report:
    import numpy as np

    from camrt import images
    from camrt import validate as validation
    from converters import zoo

    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camrt-validate-")))
        name, prototxt, file = model.name, model.prototxt(), zoo.weights(model, weights)
        has_released = name in validation.RELEASED_FOR
        if reference is None and not has_released:
            return validation.against_opencv(name, prototxt, file, scratch)
        with hint_of_download() if reference is None else contextlib.nullcontext():
            expected = validation.read_reference(reference) if reference else validation.released(folder)
        with hint_of_download() if image is None else contextlib.nullcontext():
            photo = images.decode(image or folder / "img1.jpg")
        wants = _demo_preprocess(model, folder)
        mean = np.array(wants.mean) if wants.mean_image is None else wants.mean_image.transpose(1, 2, 0)
        classifier = validation.classifier(name, prototxt, file, features=model.features, linear=model.classifier)
        crops = validation.crops_of(photo, mean, wants.crop)
        ours = validation.answers(classifier, crops, source=name, providers=provider)
        return validation.compare(ours, expected, name=name)


def _demo_preprocess(model: NamedModel, folder: Path) -> Preprocess:
    """Return the preprocessing of the original demo, with the mean image, which is one of its data files."""
    if (mean := model.preprocessing.mean_image) is None:
        return preprocess_of_named(model)
    with hint_of_download():
        if not (folder / Path(mean).name).is_file():
            raise CamrtError("there is no such file", file=str(folder / Path(mean).name))
        return preprocess_of_named(model, folder)
