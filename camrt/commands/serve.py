"""The command `camrt serve`: explanations over HTTP."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    Labels,
    MapOptions,
    MaxPixels,
    Precision,
    PreprocessOptions,
    Provider,
    Weights,
    check_model,
    expanded,
    read_labels,
)
from camrt.commands.output import reporting
from camrt.errors import CamrtError
from camrt.loading import LENET, is_explainer, title_of
from camrt.triton import NAME
from converters.errors import install

if TYPE_CHECKING:
    from camrt.serve.limits import Limits
    from camrt.serve.model import Loaded

STREAMS = 2
MAX_SIDE = 1024  # pixels: the longer side of the pictures that are sent

_PACKAGES = {  # of the extra serve: module -> package
    "fastapi": "fastapi",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "uvicorn": "uvicorn",
}

EXAMPLES = """Examples:

  camrt serve

  camrt serve --model resnet50.onnx --method gradcam --preprocess torchvision

  camrt serve --model cat=cats.onnx --model dog=dogs.onnx --port 8080 --max-batch 16

  camrt serve --repository models/ --host 0.0.0.0

  camrt web resnet50.onnx --preprocess torchvision --out site && camrt serve --model resnet50.onnx --site site

Then, from another terminal:

  curl -F image=@photo.jpg http://127.0.0.1:8000/explain

  curl -F image=@photo.jpg 'http://127.0.0.1:8000/explain?format=png' -o seen.png

The page is at /, the documentation of the API at /docs, metrics at /metrics; the Open Inference Protocol is below /v2.
There is no password and no encryption: --host 0.0.0.0 belongs behind a proxy that has both. docs/serving.md says more.
Exit status: 0 after SIGTERM or Ctrl-C, 1 (it failed) or 2 (usage).
"""


@dataclasses.dataclass(frozen=True)
class LimitOptions:
    """What the server takes on at most: `camrt.serve.limits.Limits` in the user's units, and the largest image."""

    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Images computed at once; by default 8, or what the repository says.")
    ] = None
    max_delay: Annotated[
        float | None,
        typer.Option(min=0, metavar="MS", help="How long a batch waits for requests on their way; by default 5 ms."),
    ] = None
    max_queue: Annotated[int | None, typer.Option(min=1, help="Requests under way; by default 128. More get 503.")] = (
        None
    )
    timeout: Annotated[float | None, typer.Option(min=0.001, metavar="S", help="For an answer; by default 30 s.")] = (
        None
    )
    body_timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="S", help="For the body of a request; by default 15 s.")
    ] = None
    max_upload: Annotated[
        float | None, typer.Option(min=0.001, metavar="MB", help="The largest body; by default 32 MB.")
    ] = None
    max_pixels: MaxPixels = None

    def limits(self) -> Limits:
        """Return the limits."""
        from camrt.serve.limits import Limits

        given: dict[str, Any] = {
            "max_batch": self.max_batch,
            "max_delay": None if self.max_delay is None else self.max_delay / 1000,
            "max_queue": self.max_queue,
            "timeout": self.timeout,
            "body_timeout": self.body_timeout,
            "max_upload": None if self.max_upload is None else int(self.max_upload * 1e6),
        }
        return Limits(**{name: value for name, value in given.items() if value is not None})


@expanded
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL", help=f"A named model, or an ONNX model; may be repeated. By default {LENET}."
        ),
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model repository, as camrt export --triton writes it.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one, which is printed.")] = 8000,
    site: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A site of camrt web for /: it computes in the browser, not on this server."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web origin whose pages may use the API; may be repeated."),
    ] = None,
    *,
    what: MapOptions,
    wants: PreprocessOptions,
    weights: Weights = None,
    labels: Labels = None,
    provider: Provider = None,
    precision: Precision = None,
    streams: Annotated[
        int,
        typer.Option(
            min=1,
            help="Batches computed at once on a CPU, each with its share of the threads. 1: one client alone is "
            "answered soonest.",
        ),
    ] = STREAMS,
    bounds: LimitOptions,
) -> None:
    """Serve explanations: a page, POST /explain, and the Open Inference Protocol."""
    named = [] if repository is not None and not model else [_named(text) for text in model or [LENET]]
    for _, path in named:
        check_model(path, weights if len(named) == 1 else None)
    if weights is not None and len(named) != 1:
        raise typer.BadParameter(f"goes with one model, found {len(named)}", param_hint="--weights")
    arguments = {**what.as_arguments(), "providers": provider, "precision": precision.value if precision else None}
    wants.check()
    with reporting(interrupted="nothing was served"):
        _check_installed()
        from camrt.images import MAX_PIXELS
        from camrt.serve.app import Application
        from camrt.serve.logs import json_logs
        from camrt.serve.server import bound, run

        limits = bounds.limits()
        with json_logs(), bound(host, port) as listening:
            arguments |= {"labels": read_labels(labels), "weights": weights}
            arguments |= {"max_pixels": bounds.max_pixels or MAX_PIXELS, "max_side": MAX_SIDE}
            arguments |= {"streams": min(streams, os.cpu_count() or 1)}
            loaded = [
                _loaded(name, path, {**arguments, "preprocess": wants.preprocessing(path)}) for name, path in named
            ]
            if repository is not None:
                own = {
                    name: arguments[name] for name in ("providers", "precision", "max_pixels", "max_side", "streams")
                }
                loaded += _stored(repository, own, bounds)
            run(Application(loaded, limits, origins=cors or (), site=site), listening)


def _named(text: str) -> tuple[str | None, str]:
    """The name and the model of NAME=MODEL; a path may hold an equals sign too."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, text
    if not NAME.fullmatch(name) or not path:
        raise typer.BadParameter(
            f"found {text!r}, expected NAME=MODEL, the name of letters, digits, dots, dashes and underscores",
            param_hint="--model",
        )
    return name, path


def _check_installed() -> None:
    """Say which packages are missing before anything is loaded."""
    missing = [package for module, package in _PACKAGES.items() if not find_spec(module)]
    if missing:
        raise CamrtError(f"{', '.join(missing)} cannot be imported, expected the extra serve: {install(*missing)}")


def _loaded(name: str | None, model: str, arguments: dict[str, Any]) -> Loaded:
    from camrt.explainer import Explainer
    from camrt.serve.model import Loaded
    from camrt.web.site import ANY

    if arguments["target"] is None and not is_explainer(model):  # then the page, and clients, may ask for any class
        arguments = {**arguments, "target": ANY}
    explainer = Explainer(model, **arguments)
    found = name or title_of(model)
    if not NAME.fullmatch(found):
        raise CamrtError(f"found the name {found!r}, which is not fit for a URL. Choose one: --model NAME={model}")
    return Loaded(found, "1", explainer)


def _stored(repository: Path, arguments: dict[str, Any], bounds: LimitOptions) -> list[Loaded]:
    """The models of a repository. An option goes before what a model's configuration says."""
    from camrt import triton
    from camrt.explainer import Explainer
    from camrt.serve.model import Loaded

    models = []
    for entry in triton.read(repository):
        explainer = Explainer(entry.file, labels=entry.labels, **arguments)
        entry.check(explainer.session.inputs, explainer.session.outputs)
        max_batch = None if bounds.max_batch is not None else entry.max_batch
        max_delay = None if bounds.max_delay is not None else entry.max_delay
        models.append(Loaded(entry.name, entry.version, explainer, max_batch, max_delay))
    return models
