"""The command `camrt bbox`: boxes around what stands out in a heatmap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camrt.commands.options import STATUS, Json, Thresholds, check_picture, is_same_file
from camrt.commands.output import reporting, write_picture
from camrt.errors import CamrtError
from camrt.localize import THRESHOLDS
from camrt.results import json_line, write
from converters.terminal import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXAMPLES = f"""Examples:

  camrt bbox heatmap_6.jpg

  camrt bbox heatmap_6.jpg heatmap_6.txt --thresholds 20 100 110

  camrt bbox heatmap_6.jpg --image sample_6.jpg --picture boxes.png

The text is the original's: x y width height of each box in pixels, all on one line, the largest box first.
{STATUS}
"""


def bbox(
    heatmap: Annotated[Path, typer.Argument(help="A gray image: a map at the size of its image.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT.txt]", help="The text to write; by default it is printed.")
    ] = None,
    thresholds: Thresholds = THRESHOLDS,
    image: Annotated[Path | None, typer.Option(help="The image of the map: draws what generate_bbox.m shows.")] = None,
    picture: Annotated[Path, typer.Option(help="The picture to write, with --image.")] = Path("boxes.png"),
    as_json: Json = False,
) -> None:
    """Find boxes around what stands out in a heatmap, as the original's bboxgenerator."""
    check_picture(picture, "--picture")
    targets = [*([out] if out else []), *([picture] if image else [])]
    for target in targets:
        if any(is_same_file(target, source) for source in (heatmap, image)):
            raise typer.BadParameter(f"{target} is one of the images to read")
    with reporting():
        from camrt import images
        from camrt.localize import boxes_from_heatmap, format_boxes

        levels = images.decode(heatmap)
        try:
            boxes = boxes_from_heatmap(levels, thresholds)
        except CamrtError as error:
            raise error.in_file(str(heatmap)) from None
        text = format_boxes(boxes)
        if image is not None:
            write_picture(picture, _boxes_drawn(images.decode(image), levels, boxes, image))
        if out is not None:
            write(out, text.encode())
        record = {"boxes": boxes.tolist(), "text": text, "picture": str(picture) if image else None}
        if as_json:
            print(json_line(record))
        elif out is None:
            print(text)
        if not as_json:
            for target in targets:
                say(f"wrote {target}")


def _boxes_drawn(
    image: NDArray[np.uint8], heatmap: NDArray[np.uint8], boxes: NDArray[np.int64], file: Path
) -> NDArray[np.uint8]:
    """Draw the image with red boxes, and beside it the map in colors."""
    from camrt import matlab, render

    if image.shape != heatmap.shape:
        height, width = heatmap.shape[:2]
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise CamrtError(
            f"found an image of {found} for a heatmap of {width} x {height}, expected the same: the boxes count the "
            f"heatmap's pixels, so resize it to {found} first",
            file=str(file),
        )
    drawn = render.draw_boxes(image, boxes, color=(255, 0, 0), edge=None)
    return render.row([drawn, matlab.im2uint8(matlab.map2jpg(heatmap[:, :, 0]))])
