# SPDX-License-Identifier: Apache-2.0
"""The routes of a server, and what keeps a client from harming it."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmsa.errors import DataError, dotted, printable
from hmsa.serve import pages, protocol
from hmsa.serve.batching import Answers, Batcher
from hmsa.serve.metrics import CONTENT_TYPE, Metrics
from hmsa.serve.model import Picture, ServedModel
from hmsa.serve.refusal import Refusal
from hmsa.system.environment import cores
from hmsa.system.version import VERSION

MODEL_VERSION = "1"

MAX_HEADERS = 16 << 10
"""Bytes of a request's."""

_MAX_PARTS = 16  # of an upload
_PARSED_AT_A_TIME = 1 << 16  # bytes of an upload
_MAX_BODIES = 4  # of the largest size, that all requests together may hold
_IMAGE_TYPES = ("image/", "application/octet-stream")
_PORT = re.compile(r":\d*$")
_LATER = {"Retry-After": "1"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        max_batch: images that the engine is given at once, and that a request may have; where the network takes a fixed
            number, it is that.
        max_wait_ms: how long the first of them waits for others.
        max_queue: requests that are read, wait or are computed at a time.
        max_pixels: of a request, and of what is run together.
        max_mb: of a request's body, in MB of 2**20 bytes.
        timeout: seconds for the body to come, and until the answer is there.
    """

    max_batch: int = 8
    max_wait_ms: float = 5
    max_queue: int = 32
    max_pixels: int = 1 << 21
    max_mb: float = 64
    timeout: float = 60


class Error(BaseModel):
    """What is sent in place of an answer."""

    error: str


_WHY = {
    400: "what was sent is damaged or does not fit",
    404: "there is no such thing",
    408: "the body came too slowly",
    413: "too large",
    415: "of a kind that is not taken",
    422: "a wrong parameter",
    503: "too many requests, or the engine has ended",
    504: "it took too long",
}


def _errors(*statuses: int) -> dict[Any, Any]:
    return {status: {"model": Error, "description": _WHY[status]} for status in statuses}


_WORK = _errors(400, 408, 413, 415, 503, 504)


def make_app(
    model: ServedModel,
    limits: Limits,
    *,
    folder: Optional[Path] = None,
    web: Optional[Path] = None,
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """A server of one model. When it is done with, call `app.state.server.close()`.

    Args:
        folder: of the export, to give browsers what they need of it; None to keep it.
        web: of a built page, see `pages`; None for a small one.
        allowed_hosts: names by which clients may ask for the server, without ports; none for any.
    """
    limits = replace(limits, max_batch=model.deployment.side("N") or limits.max_batch)
    state = ServerState(model, limits)
    app = FastAPI(
        title=model.name, version=VERSION, docs_url=None, redoc_url=None,
        summary="Semantic segmentation by an exported network",
    )  # fmt: skip
    app.state.server = state
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings are of what clients send
    app.add_middleware(_Middleware, metrics=state.metrics, allowed_hosts=allowed_hosts)
    _add_errors(app)
    _add_health(app, state)
    _add_protocol(app, state)
    _add_images(app, state)
    _add_pages(app, state, folder, web)
    _describe(app, model)
    return app


# --- The work of requests. ---


@dataclass
class ServerState:
    """A model with its engine, its threads and its numbers."""

    model: ServedModel
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    inside: int = 0  # requests
    held: int = 0  # bytes of their bodies

    def __post_init__(self) -> None:
        limits = self.limits
        self.batcher = Batcher(
            self.model.run,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            max_size=limits.max_pixels * self.model.in_channels,
            ran=self.metrics.engine_ran,
        )
        self.metrics.watch_queue(self.batcher.__len__)
        self._pool = ThreadPoolExecutor(cores(), "images")

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self.batcher.close()
        self._pool.shutdown()

    def check_running(self) -> None:
        """Refusal if no request can be answered any more."""
        if not self.batcher.is_running:
            raise Refusal(503, "the engine has ended, its log says why: start the server again")

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[ActiveRequest]:
        """Room for a request as long as it takes. Refusal if there is none."""
        if self.inside >= self.limits.max_queue:
            raise Refusal(
                503, f"{self.inside} requests are being answered, which are all that may be: try later", _LATER
            )
        self.inside += 1
        active = ActiveRequest(self)
        try:
            yield active
        finally:
            self.inside -= 1
            self.held -= active.held


class ActiveRequest:
    """A request that is being answered, with its time."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.held = 0  # bytes of its body
        self._ends = time.monotonic() + state.limits.timeout

    async def body(self, request: Request) -> bytes:
        """All of it. Refusal if it is too large, too slow, or too much beside those of other requests."""
        state = self._state
        most = int(state.limits.max_mb * 2**20)
        too_large = Refusal(413, f"expected a body of at most {most} bytes, found more: send less at once")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "expected a body as it is, found a content-encoding: send it without")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large

        async def read() -> bytes:
            content = io.BytesIO()
            async for piece in request.stream():
                content.write(piece)
                self.held += len(piece)
                state.held += len(piece)
                if self.held > most:
                    raise too_large
                if state.held > _MAX_BODIES * most:
                    raise Refusal(503, "the bodies of all requests are too much at once: try later", _LATER)
            return content.getvalue()  # which copies nothing

        try:
            return await self._in_time(read(), 408, "the body to come")
        except ClientDisconnect:
            raise Refusal(400, "the body ended too early") from None

    async def in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What a function returns that takes a while."""
        loop = asyncio.get_running_loop()
        return await self._in_time(
            loop.run_in_executor(self._state._pool, function, *arguments), 504, "the answer to be ready"
        )

    async def answers(self, images: Any) -> Answers:
        """The network's."""
        most = self._state.limits.max_batch
        if len(images) > most:
            raise Refusal(400, f"expected at most {most} images in a request, found {len(images)}: send less at once")
        self._state.check_running()
        future = self._state.batcher.submit(images)
        try:
            return await self._in_time(asyncio.wrap_future(future), 504, "the answer to be ready")
        except DataError as error:
            raise Refusal(400, str(error)) from None

    async def _in_time(self, work: Awaitable[_T], status: int, what: str) -> _T:
        try:
            return await asyncio.wait_for(work, max(self._ends - time.monotonic(), 0.001))
        except asyncio.TimeoutError:
            limit = self._state.limits.timeout
            raise Refusal(status, f"expected {what} within {limit:g} s, but it took longer: try again") from None


# --- Routes. ---


def _add_health(app: FastAPI, state: ServerState) -> None:
    @app.get("/health", responses=_errors(503))
    async def health() -> dict[str, Any]:
        state.check_running()
        waiting = len(state.batcher)
        return {
            "status": "ok", "model": state.model.name, "version": VERSION, "inside": state.inside, "waiting": waiting,
        }  # fmt: skip

    @app.get("/v2/health/live", responses=_errors(503))
    async def live() -> dict[str, bool]:
        state.check_running()
        return {"live": True}

    @app.get("/v2/health/ready", responses=_errors(503))
    async def ready() -> dict[str, bool]:
        state.check_running()
        return {"ready": True}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        return Response(state.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_protocol(app: FastAPI, state: ServerState) -> None:
    model = state.model
    described = {
        "name": model.name,
        "versions": [MODEL_VERSION],
        "platform": model.platform,
        "inputs": [protocol.metadata(model.input)],
        "outputs": [protocol.metadata(output) for output in model.outputs],
    }

    def check(name: str, version: str = MODEL_VERSION) -> None:
        if name != model.name:
            raise Refusal(404, f"expected the model {model.name}, found {name:.100}: there is no other")
        if version != MODEL_VERSION:
            raise Refusal(404, f"expected version {MODEL_VERSION} of {model.name}, found {version:.100}")

    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "hmsa", "version": VERSION, "extensions": protocol.EXTENSIONS}

    async def model_metadata(name: str, version: str = MODEL_VERSION) -> dict[str, Any]:
        check(name, version)
        return described

    async def model_ready(name: str, version: str = MODEL_VERSION) -> dict[str, Any]:
        check(name, version)
        state.check_running()
        return {"name": name, "ready": True}

    async def infer(request: Request, name: str, version: str = MODEL_VERSION) -> Response:
        check(name, version)
        return await _inferred(state, request)

    body = {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}}
    with_bytes = {"schema": {"type": "string", "format": "binary"}}
    documented = {"requestBody": {"required": True, "content": {**body, "application/octet-stream": with_bytes}}}
    answer = {"content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": with_bytes}}
    for place in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.get(place, responses=_errors(404))(model_metadata)
        app.get(f"{place}/ready", responses=_errors(404, 503))(model_ready)
        app.post(
            f"{place}/infer", response_class=Response, openapi_extra=documented,
            responses={200: {**answer, "description": "The outputs"}, **_errors(404), **_WORK},
        )(infer)  # fmt: skip


async def _inferred(state: ServerState, request: Request) -> Response:
    """The answer to a request of the protocol: JSON, or JSON with bytes behind it."""
    model = state.model
    async with state.admitted() as active:
        body = await active.body(request)
        length = request.headers.get(protocol.LENGTH_HEADER)
        names = [output.name for output in model.outputs]
        asked = await active.in_thread(protocol.understood, body, length, model.input, names)
        del body
        model.check(asked.images.shape)
        answers = await active.answers(asked.images)
        content, json_length = await active.in_thread(protocol.told, asked, answers, model.name, MODEL_VERSION)
    if json_length is None:
        return Response(content, media_type="application/json")
    headers = {protocol.LENGTH_HEADER: str(json_length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _add_images(app: FastAPI, state: ServerState) -> None:
    model = state.model
    png = {"content": {"image/png": {}}, "description": "A PNG as large as the image"}
    binary = {"type": "string", "format": "binary"}
    upload = {"type": "object", "properties": {"image": binary}, "required": ["image"]}
    sent = {
        "multipart/form-data": {"schema": upload},
        "image/*": {"schema": binary},
        "application/octet-stream": {"schema": binary},
    }

    @app.post(
        "/segment", response_class=Response, responses={200: png, **_WORK, **_errors(422)},
        openapi_extra={"requestBody": {"required": True, "content": sent}},
    )  # fmt: skip
    async def segment(
        request: Request,
        output: Annotated[
            Picture,
            Query(
                description="class numbers in grey; the same with their colours as a palette; colours over the image; "
                "or the probability of each pixel's class, of which 255 is 1"
            ),
        ] = "label",
    ) -> Response:
        if output == "confidence" and not model.gives_confidence:
            raise Refusal(
                422, "expected another output, as this model gives no confidences: export it with its confidence"
            )
        kind = request.headers.get("content-type", "application/octet-stream")
        is_form = kind.lower().startswith("multipart/form-data")
        if not is_form and not kind.lower().startswith(_IMAGE_TYPES):
            raise Refusal(
                415, "expected an image as the body (image/... or application/octet-stream) or in a form "
                f"(multipart/form-data), found {kind:.100}",
            )  # fmt: skip
        async with state.admitted() as active:
            data = await active.body(request)
            if is_form:
                data = await active.in_thread(uploaded, data, kind)
            prepared = await active.in_thread(model.read, data)
            del data
            answers = await active.answers(prepared.input)
            content = await active.in_thread(model.picture, output, prepared, answers)
        return Response(content, media_type="image/png")


def uploaded(body: bytes, content_type: str) -> bytes:
    """The file in a form. Refusal unless there is exactly one."""
    files: list[Any] = []
    parts = 0

    def count(part: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > _MAX_PARTS:
            raise Refusal(400, f"expected a form of at most {_MAX_PARTS} parts, found more")

    def found(file: Any) -> None:
        count(file)
        files.append(file)

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    try:
        if not boundary:
            raise FormParserError("its boundary is not given")
        parser = FormParser(
            "multipart/form-data", count, found, boundary=boundary, config={"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        )
        for start in range(0, len(body), _PARSED_AT_A_TIME):
            parser.write(body[start : start + _PARSED_AT_A_TIME])
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal(400, f"expected a form (multipart/form-data), but: {error!s:.200}") from None
    if len(files) != 1:
        raise Refusal(400, f"expected one file in the form, found {len(files)}: send one image in each request")
    return files[0].file_object.getvalue()


def _add_pages(app: FastAPI, state: ServerState, folder: Optional[Path], web: Optional[Path]) -> None:
    model = state.model
    files = pages.files_of(web) if web else {}
    headers = {"Cache-Control": "no-cache", **(pages.headers_of(web) if web else {})}
    if folder is not None:
        # In place of a model that the page was built with.
        files = {place: file for place, file in files.items() if not place.startswith("/model/")}
        files.update(pages.model_files(folder, model.deployment))
    for place, (path, media_type) in files.items():
        app.get(place, include_in_schema=False, response_class=FileResponse)(_sender(path, media_type, headers))
    if not web:
        page = pages.small_page(model)
        app.get("/", include_in_schema=False, response_class=HTMLResponse)(lambda: page)


def _sender(path: Path, media_type: str, headers: dict[str, str]) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers=headers)

    return send


def _describe(app: FastAPI, model: ServedModel) -> None:
    """Put into the server's description what FastAPI cannot know: names of this model and of its tensors."""
    described = app.openapi()  # which keeps it
    described["components"]["schemas"].update(protocol.schemas(model.input, model.outputs))
    known = {"name": model.name, "version": MODEL_VERSION}
    for operation in (operation for path in described["paths"].values() for operation in path.values()):
        for parameter in operation.get("parameters", []):
            if parameter["name"] in known:
                parameter["schema"]["enum"] = [known[parameter["name"]]]


# --- Errors, headers and numbers of all routes. ---


def _error(status: int, sentence: str, headers: Optional[Mapping[str, str]] = None) -> JSONResponse:
    return JSONResponse({"error": printable(sentence)}, status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return _error(refusal.status, str(refusal), refusal.headers)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path[:100]
        sentences = {
            404: f"expected a path of this server, found {path!r}: /openapi.json lists them",
            405: f"expected another method for {path}, found {request.method[:20]}: /openapi.json lists them",
        }
        return _error(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(422, f"a wrong parameter, {dotted(first['loc'][1:])}: {first['msg']}")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the server failed: its log says why", pages.HEADERS)


class _Middleware:
    """Around all routes: for whom they are, headers of every answer, and the numbers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, allowed_hosts: Sequence[str]) -> None:
        self._app, self._metrics, self._allowed_hosts = app, metrics, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.monotonic()
        status = 500
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn sends no body

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in pages.HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app_for(scope)(scope, receive, with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - started)
        return None

    def _app_for(self, scope: Scope) -> ASGIApp:
        """The routes, or what refuses a request that asked for another host: a page of anyone's whose name was made to
        lead here, else read what this server says; or one with too long headers."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            return _error(431, f"expected headers of at most {MAX_HEADERS} bytes, found more: send less")
        host = _PORT.sub("", Headers(scope=scope).get("host", "")).lower()
        if not host or not self._allowed_hosts or host in self._allowed_hosts:
            return self._app
        known = " or ".join(self._allowed_hosts)
        return _error(421, f"expected a request for {known}, found {host:.100}: add it to the server's allowed_hosts")
