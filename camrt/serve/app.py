"""The web application: the Open Inference Protocol, ``POST /explain``, metrics and the page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, File, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from camrt import __version__, render
from camrt.errors import CamrtError
from camrt.render import STYLE, Style
from camrt.serve import protocol
from camrt.serve.batching import Overloaded
from camrt.serve.guard import GONE, Guard, error_response, refusal
from camrt.serve.limits import Limits
from camrt.serve.metrics import CONTENT_TYPE, Metrics
from camrt.serve.model import Loaded, ServedModel
from camrt.web.server import headers_of
from camrt.web.site import PAGE, SERVED_POLICY, served_files

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from camrt.explanation import Explanation

_SMALL = 1 << 16  # bytes of JSON that are parsed in the event loop, values that are written there
_PAGE_HEADERS = {
    "Content-Security-Policy": f"{SERVED_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
T = TypeVar("T")


class Format(StrEnum):
    """What ``POST /explain`` answers with."""

    JSON = "json"
    PNG = "png"
    JPEG = "jpeg"


class Boxes(StrEnum):
    """Which boxes `camrt.Style` knows."""

    BEST = "best"
    ALL = "all"
    NONE = "none"


_BOXES: dict[Boxes, Literal["best", "all"] | None] = {Boxes.BEST: "best", Boxes.ALL: "all", Boxes.NONE: None}


class Service:
    """The models that are served, and what they share.

    Args:
        models: The models; the first one explains where none is named.
        limits: The limits.

    Raises:
        CamrtError: There is no model, or two are of one name and version.

    Attributes:
        metrics: The metrics of the server.
        is_stopping: Whether it finishes what it has and takes on nothing more.
    """

    def __init__(self, models: Sequence[Loaded], limits: Limits) -> None:
        if not models:
            raise CamrtError("found no model, expected at least one to serve")
        self.limits, self.metrics, self.is_stopping = limits, Metrics(), False
        self._models: dict[str, dict[str, ServedModel]] = {}
        for loaded in models:
            versions = self._models.setdefault(loaded.name, {})
            if loaded.version in versions:
                raise CamrtError(
                    f"found two models called {loaded.name!r}, expected different names: --model NAME=FILE names one"
                )
            versions[loaded.version] = self._served(loaded)
        self._default = models[0].name
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "camrt-prepare")

    def _served(self, loaded: Loaded) -> ServedModel:
        limits = self.limits
        served = ServedModel(
            loaded,
            max_batch=limits.max_batch,
            max_delay=limits.max_delay,
            max_queue=limits.max_queue,
            observe=lambda batch: self.metrics.count_batch(loaded.name, batch),
        )
        self.metrics.watch(loaded.name, loaded.version, lambda: served.batcher.depth)
        return served

    @property
    def models(self) -> list[ServedModel]:
        """All models, in all versions."""
        return [served for versions in self._models.values() for served in versions.values()]

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the lowest first."""
        return sorted(self._models[name], key=int)

    def find(self, name: str | None, version: str | None = None) -> ServedModel:
        """Find a model; the first one without a name, the latest version without a version.

        Raises:
            HTTPException: 404: there is none.
        """
        versions = self._models.get(name or self._default)
        if versions is None:
            raise refusal(404, f"found the model {str(name)[:80]!r}, expected one of {', '.join(self._models)}")
        wanted = version or max(versions, key=int)
        if wanted not in versions:
            raise refusal(404, f"found version {wanted[:80]!r} of {name}, expected {', '.join(versions)}")
        return versions[wanted]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute while the block runs; at its end finish what waits."""
        for served in self.models:
            served.batcher.start()
        try:
            yield
        finally:
            self.is_stopping = True
            for served in self.models:
                await served.batcher.close()
            self._threads.shutdown(wait=True)

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call a function in one of the threads that decode and draw."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def finish(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the work on a request whose body is there, as long as its client waits too.

        Raises:
            HTTPException: 504 after the limit of time; 499 when the client is gone.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({working, watching}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if watching.done():
                raise HTTPException(GONE)
            raise refusal(504, f"found no answer after {self.limits.timeout:g} s: try fewer images at once")
        finally:
            working.cancel()
            watching.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Application:
    """The application: ASGI.

    Args:
        models: The models; the first one explains where none is named.
        limits: The limits.
        origins: Web origins whose pages may use the API (CORS); none by default.
        site: A folder that `camrt.web.site.build` wrote, for ``/``; by default the same page, computed by this server.

    Raises:
        CamrtError: As for `Service`; the folder holds no site.
    """

    def __init__(
        self,
        models: Sequence[Loaded],
        limits: Limits | None = None,
        *,
        origins: Sequence[str] = (),
        site: Path | None = None,
    ) -> None:
        limits = Limits() if limits is None else limits
        self.service = service = Service(models, limits)

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with service.running():
                yield

        api = FastAPI(
            title="camrt",
            version=__version__,
            description="Which classes a network sees in an image, and where. `/v2` is the Open Inference Protocol.",
            lifespan=lifespan,
        )
        _handle_errors(api)
        _add_health(api, service)
        _add_models(api, service)
        _add_explain(api, service)
        _add_page(api, service, site)
        if origins:
            api.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"])
        self._asgi: ASGIApp = Guard(api, limits, service.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        await self._asgi(scope, receive, send)


def _handle_errors(api: FastAPI) -> None:
    """All errors have the form of the protocol."""

    @api.exception_handler(HTTPException)
    async def answer(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), error.headers)

    @api.exception_handler(CamrtError)
    async def bad_request(_: Request, error: CamrtError) -> Response:
        return error_response(400, str(error))

    @api.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> Response:
        return error_response(503, str(error), refusal(503, "").headers)

    @api.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return error_response(GONE, "the client is gone")

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        problems = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10])
        return error_response(400, "; ".join(problems))


# ------------------------------------------------------------------------------------------ the Open Inference Protocol


def _add_health(api: FastAPI, service: Service) -> None:
    @api.get("/v2/health/live", tags=["Open Inference Protocol"])
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @api.get("/v2/health/ready", tags=["Open Inference Protocol"])
    async def ready() -> JSONResponse:
        """Whether all models can be asked."""
        return JSONResponse({"ready": not service.is_stopping}, 503 if service.is_stopping else 200)

    @api.get("/v2", tags=["Open Inference Protocol"])
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return {"name": "camrt", "version": __version__, "extensions": list(protocol.EXTENSIONS)}

    @api.get("/metrics", tags=["Operation"])
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_models(api: FastAPI, service: Service) -> None:
    @api.get("/v2/models/{model}", tags=["Open Inference Protocol"])
    @api.get("/v2/models/{model}/versions/{version}", tags=["Open Inference Protocol"])
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """The inputs and outputs of a model."""
        return service.find(model, version).describe(service.versions(model))

    @api.get("/v2/models/{model}/ready", tags=["Open Inference Protocol"])
    @api.get("/v2/models/{model}/versions/{version}/ready", tags=["Open Inference Protocol"])
    async def model_ready(model: str, version: str | None = None) -> JSONResponse:
        """Whether a model can be asked."""
        found = service.find(model, version)
        return JSONResponse({"name": found.name, "ready": not service.is_stopping}, 503 if service.is_stopping else 200)

    @api.post("/v2/repository/index", tags=["Open Inference Protocol"])
    async def index() -> list[dict[str, str]]:
        """All models, as Triton lists its repository."""
        return [
            {"name": served.name, "version": served.version, "state": "READY", "reason": ""}
            for served in service.models
        ]

    @api.post("/v2/models/{model}/infer", tags=["Open Inference Protocol"])
    @api.post("/v2/models/{model}/versions/{version}/infer", tags=["Open Inference Protocol"])
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Tensors in, tensors out: as JSON, or in binary behind the JSON."""
        served = service.find(model, version)
        with served.batcher.coming() as arrived:
            served.batcher.check_room()
            body = await request.body()
            return await service.finish(request, _inferred(service, served, request, body, arrived))


async def _inferred(
    service: Service, served: ServedModel, request: Request, body: bytes, arrived: Callable[[], None]
) -> Response:
    length = request.headers.get(protocol.HEADER_LENGTH)
    arguments = body, length, served.inputs, served.outputs, served.optional
    is_small = len(body) < _SMALL or (length is not None and len(length) < 6)
    parsed = (
        protocol.parse_request(*arguments) if is_small else await service.in_thread(protocol.parse_request, *arguments)
    )
    request.scope["camrt.log"] = {"model": served.name, "images": parsed.rows}
    arrived()
    found = await served.infer(parsed.feeds)
    written = parsed, found, served.name, served.version, served.explainer.labels
    values = sum(found[output.name].size for output in parsed.outputs if not output.binary)
    parts, header = (
        protocol.write_response(*written)
        if values < _SMALL // 16
        else await service.in_thread(protocol.write_response, *written)
    )
    return _Parts(parts, header)


class _Parts(Response):
    """An answer in parts, which are not copied together."""

    def __init__(self, parts: Sequence[bytes | memoryview], header: int | None) -> None:
        headers = {"content-length": str(sum(map(len, parts)))}
        if header is not None:
            headers[protocol.HEADER_LENGTH] = str(header)
        super().__init__(None, 200, headers, "application/json" if header is None else "application/octet-stream")
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


# ------------------------------------------------------------------------------------------------------ POST /explain


def _add_explain(api: FastAPI, service: Service) -> None:
    @api.post(
        "/explain",
        tags=["Explain"],
        response_model=None,
        responses={200: {"content": {"application/json": {}, "image/png": {}, "image/jpeg": {}}}},
    )
    async def explain(
        request: Request,
        image: Annotated[UploadFile, File(description="An image file: JPEG, PNG, WebP, TIFF, ...")],
        model: Annotated[str | None, Query(description="The model; by default the first one.")] = None,
        version: Annotated[str | None, Query(description="Its version; by default the latest.")] = None,
        target: Annotated[
            list[str] | None, Query(description="Classes, by number or name, where the model takes them.")
        ] = None,
        format: Annotated[
            Format | None, Query(description="The answer: JSON or a picture; by default what Accept says.")
        ] = None,
        rank: Annotated[int, Query(ge=1, description="Which class a picture shows: 1 is the best.")] = 1,
        boxes: Annotated[
            Boxes, Query(description="One box around the best region of each class, all of the original's, or none.")
        ] = Boxes.BEST,
        colormap: Annotated[str, Query(description="Of a picture: a color map of docs/drawing.md.")] = STYLE.colormap,
        opacity: Annotated[float, Query(ge=0, le=1, description="Of the strongest pixels.")] = STYLE.opacity,
        caption: Annotated[bool, Query(description="Whether class and score stand below a picture.")] = False,
        heatmaps: Annotated[bool, Query(description="Whether JSON has the heatmaps too: float32 as base64.")] = False,
    ) -> Response:
        """Explain an image file: which classes the network sees, and where."""
        served = service.find(model, version)
        style = Style(colormap, opacity, _BOXES[boxes], caption=caption)
        kind = format or _accepted(request.headers.get("accept", ""))
        if kind is not Format.JSON and rank > served.explainer.top:
            raise refusal(400, f"found the rank {rank}, expected 1 to {served.explainer.top}: as many are explained")
        content = await image.read()
        name = os.path.basename((image.filename or "image").replace("\\", "/"))[:255] or "image"  # noqa: PTH119
        request.scope["camrt.log"] = {"model": served.name, "images": 1}

        async def explained() -> Response:
            with served.batcher.coming() as arrived:
                served.batcher.check_room()
                prepared = await service.in_thread(served.prepare, content, name, target)
                arrived()
                explanation = await served.explain(prepared)
            if kind is Format.JSON:
                return await service.in_thread(_as_json, served, explanation, _BOXES[boxes], heatmaps)
            return await service.in_thread(_as_picture, explanation, kind, rank, style)

        return await service.finish(request, explained())


def _accepted(accept: str) -> Format:
    """What a client wants best of what there is; JSON if it does not say."""
    kinds = {"application/json": Format.JSON, "image/png": Format.PNG, "image/jpeg": Format.JPEG}
    kinds |= {"*/*": Format.JSON, "application/*": Format.JSON, "image/*": Format.PNG}
    wanted: list[tuple[float, Format]] = []
    for entry in accept.split(",")[:50]:
        media, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        if media in kinds:
            with contextlib.suppress(ValueError):
                wanted.append((float(weight), kinds[media]))
    return max(wanted, key=lambda one: one[0])[1] if wanted else Format.JSON


def _as_json(
    served: ServedModel, explanation: Explanation, boxes: Literal["best", "all"] | None, heatmaps: bool
) -> Response:
    record: dict[str, Any] = {
        "model": served.name,
        "version": served.version,
        **explanation.as_dict(boxes),
    }
    if heatmaps:
        maps = explanation.heatmaps.astype("<f4", copy=False)
        encoded = base64.b64encode(maps.tobytes()).decode()
        record["heatmaps"] = {"datatype": "FP32", "shape": list(maps.shape), "base64": encoded}
    return JSONResponse(record)


def _as_picture(explanation: Explanation, kind: Format, rank: int, style: Style) -> Response:
    drawn = explanation.overlay(rank - 1, style)
    if kind is Format.PNG:
        return Response(render.png(drawn), media_type="image/png")
    return Response(render.jpeg(drawn), media_type="image/jpeg")


# ------------------------------------------------------------------------------------------------------------ the page


def _add_page(api: FastAPI, service: Service, site: Path | None) -> None:
    if site is not None:
        api.mount("/", _Site(site, headers_of(site)), name="page")
        return
    files = served_files([served.facts() for served in service.models], title="What does the network see?")
    for name, content in files.items():
        response = Response(content, headers=_PAGE_HEADERS, media_type=_MEDIA[Path(name).suffix])
        api.router.routes.append(Route("/" if name == PAGE else f"/{name}", _constant(response)))


def _constant(response: Response) -> Callable[[Request], Response]:
    return lambda _: response


class _Site(StaticFiles):
    """A folder of files, whose index.html is the page."""

    def __init__(self, folder: Path, headers: Mapping[str, str]) -> None:
        super().__init__(directory=folder, html=True)
        self._headers = headers

    def file_response(self, *arguments: Any, **settings: Any) -> Response:
        """Return a file with the headers of the page."""
        response: Response = super().file_response(*arguments, **settings)
        response.headers.update(self._headers)
        return response
