"""The command `camrt web`: a static site that explains images in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    STATUS,
    Classifier,
    Json,
    Labels,
    Layer,
    PreprocessOptions,
    Protocol,
    Scores,
    Settings,
    Smooth,
    Top,
    Weights,
    check_model,
    expanded,
    method_name,
    one_or_several,
    read_labels,
    settings_of,
    smoothing_of,
)
from camrt.commands.output import reporting, show
from camrt.graph.methods import METHODS
from camrt.loading import Request
from camrt.results import json_line
from converters.terminal import amount, say, table

if TYPE_CHECKING:
    from camrt.web.site import SiteModel

EXAMPLES = f"""Examples:

  camrt web lenetCAM --open                   write site/, serve it on this machine, open it

  camrt web squeezenet.onnx --method cam --method gradcam --preprocess torchvision --out site

  camrt web a.onnx b.onnx --vendor            onnxruntime-web beside the page: it works without internet

  camrt web a.onnx --runtime node_modules/onnxruntime-web

  camrt web --serve --out site                serve a site that is there

The site is static: upload the folder to any host. Images never leave the browser. Models may be classifiers or
explainers of camrt export; options apply to all of them.
{STATUS}
"""


@expanded
def web(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Named models, or ONNX models.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the site.")] = Path("site"),
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            parser=method_name,
            help=f"How the maps are computed: {', '.join(METHODS)}; may be repeated. By default cam where the network "
            "has its head, else gradcam.",
        ),
    ] = None,
    protocol: Protocol = None,
    top: Top = None,
    layer: Layer = None,
    classifier: Classifier = None,
    scores: Scores = None,
    settings: Settings = None,
    smooth: Smooth = None,
    weights: Weights = None,
    *,
    wants: PreprocessOptions,
    labels: Labels = None,
    title: Annotated[str, typer.Option(help="The page's title.")] = "What does the network see?",
    samples: Annotated[
        list[Path] | None,
        typer.Option("--sample", metavar="IMAGE", help="An image that the page offers; may be repeated."),
    ] = None,
    vendor: Annotated[
        bool, typer.Option("--vendor", help="Put onnxruntime-web beside the page; 33 MB are downloaded once.")
    ] = False,
    runtime_dir: Annotated[
        Path | None,
        typer.Option("--runtime", metavar="DIR", help="Likewise, from an unpacked npm package onnxruntime-web."),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the site on this machine, until Ctrl-C.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Serve it, and open it in the browser.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to serve on; 0 for a free one.")] = 8000,
    as_json: Json = False,
) -> None:
    """Write a static site that explains images in the browser."""
    names = models or []
    if not names and not (serve or open_page):
        raise typer.BadParameter("name at least one model, or serve a site that is there (--serve)")
    if vendor and runtime_dir is not None:
        raise typer.BadParameter("give --vendor or --runtime, not both")
    for name in names:
        check_model(name, weights)
    wants.check()
    chosen: dict[str, Any] = {
        "protocol": protocol.value if protocol else None,
        "top": top,
        "layer": one_or_several(layer),
        "classifier": classifier,
        "scores": scores,
        "settings": settings_of(settings),
        "smooth": smoothing_of(smooth),
        "weights": weights,
    }
    with reporting():
        if names:
            from camrt.web import runtime
            from camrt.web.site import build

            chosen["labels"] = read_labels(labels)
            made = [one for name in names for one in _explainers(name, methods or [None], wants, chosen)]
            package = runtime.downloaded() if vendor else runtime_dir
            site = build(made, out, title=title, samples=samples or (), package=package)
            _report(site, out, as_json=as_json)
        if serve or open_page:
            from camrt.web.server import serve_site

            serve_site(out, port, is_opened=open_page)


def _explainers(
    name: str, methods: Sequence[str | None], wants: PreprocessOptions, chosen: dict[str, Any]
) -> list[SiteModel]:
    from camrt.web.site import ANY, site_model

    preprocess = wants.preprocessing(name)
    return [site_model(name, Request(method, preprocess=preprocess, target=ANY, **chosen)) for method in methods]


def _report(site: dict[str, Any], out: Path, *, as_json: bool) -> None:
    runtime = site["runtime"]
    place = "beside the page" if runtime["vendored"] else "from cdn.jsdelivr.net"
    record = {
        "out": str(out),
        "models": [{key: model[key] for key in ("title", "method", "protocol", "top", "file", "bytes")}
                   for model in site["models"]],
        "runtime": {"version": runtime["version"], "vendored": runtime["vendored"]},
        "bytes": site["written"],
    }  # fmt: skip
    if as_json:
        print(json_line(record))
        return
    listed = [f"{one['title']}, {one['method']}, {one['protocol']}: {amount(one['bytes'])}" for one in site["models"]]
    show(
        table(
            {
                "site": str(out),
                "models": listed,
                "runtime": f"onnxruntime-web {runtime['version']}, {place}",
                "size": amount(site["written"]),
            }
        )
    )
    say(f"look at it with: camrt web --open --out {out}")
