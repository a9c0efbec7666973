"""Options that several commands have, and what is checked of them before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from camrt.loading import TINY, is_name

if TYPE_CHECKING:
    from converters.zoo import NamedModel

PROTOCOLS = ("ten-crop", "center", "full")
THRESHOLDS = (20, 100, 110)  # of generate_bbox.m
STATUS = "Exit status: 0, 1 (it failed, or an image did) or 2 (usage)."

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="cuda|cpu|...", help="Where it runs; by default CUDA where ONNX Runtime has it, else the CPU."
    ),
]
Thresholds = Annotated[
    tuple[int, int, int], typer.Option(metavar="A B C", help="The three grey levels of the box generator.")
]
Method = Annotated[str | None, typer.Option(help="How the maps come about; by default cam.")]
Protocol = Annotated[
    str | None,
    typer.Option(metavar="|".join(PROTOCOLS), help="What the network sees of an image; by default ten-crop."),
]
Top = Annotated[int | None, typer.Option(min=1, help="How many classes are explained; by default 5.")]


def named(name: str) -> NamedModel:
    """The named model.

    Raises:
        typer.BadParameter: There is none of that name.
    """
    from converters import zoo
    from converters.errors import ConversionError

    try:
        return zoo.find(name)
    except ConversionError as error:
        raise typer.BadParameter(str(error)) from None


def check_model(model: str) -> None:
    """A name must be one that is known; whether a file is there is seen when it is read."""
    if is_name(model) and model != TINY:
        named(model)


def check_protocol(protocol: str | None) -> None:
    """It must be one that is known."""
    if protocol is not None:
        check_choice(protocol, PROTOCOLS, "--protocol")


def check_method(method: str | None) -> None:
    """It must be one that is known. Loads what knows them."""
    if method is not None:
        from camrt.graph.explain import METHODS

        check_choice(method, METHODS, "--method")


def check_choice(value: str, choices: Sequence[str], flag: str) -> None:
    """It must be one of the choices.

    Raises:
        typer.BadParameter: It is not.
    """
    if value not in choices:
        raise typer.BadParameter(f"found {value!r}, expected one of {', '.join(choices)}", param_hint=flag)


def is_same_file(one: Path | None, other: Path | None) -> bool:
    """Whether both are there, and are one file."""
    return one is not None and other is not None and one.exists() and other.exists() and one.samefile(other)
