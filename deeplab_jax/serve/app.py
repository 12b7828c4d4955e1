"""The routes: a prediction, the server's state, the classes, and the pages."""

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from deeplab_jax.data.images import decode_size
from deeplab_jax.errors import DataError, clip
from deeplab_jax.inference.segmenter import Segmenter
from deeplab_jax.serve import pages, upload
from deeplab_jax.serve.guard import Answer, Guard, Receive, Scope, Send, as_answer
from deeplab_jax.serve.limits import Budget, Gone, Held, Limits, Refusal, of_data, too_large
from deeplab_jax.serve.worker import ANSWERS, Job, Worker
from deeplab_jax.utils.places import is_address

_LOOK = 0.2  # seconds between looks whether the server stops
_JSON = "application/json"


def build(model: Segmenter, worker: Worker, limits: Limits) -> Guard:
    """Returns the ASGI application."""
    about = {
        "model": model.config.name,
        "checkpoint": _name_of(model.path),
        "step": model.step,
        **({"weights": model.weights} if model.weights else {}),
    }
    labels = [
        {"id": number, "name": name, "color": model.palette[number].tolist()}
        for number, name in enumerate(model.class_names)
    ]
    documents = pages.documents(about, limits)

    async def healthz(_: Request) -> Answer:
        state = {
            "status": "ready" if worker.is_ready else "starting",
            **about,
            "waiting": worker.num_waiting,
            "queue": limits.queue,
        }
        return _as_json(state, 200 if worker.is_ready else 503)

    async def show_labels(_: Request) -> Answer:
        return _as_json({"classes": labels})

    async def show(request: Request) -> Answer:
        body, media_type = documents[request.url.path]
        return Answer(body, media_type, headers={"Cache-Control": "no-cache"})

    async def refuse(_: Request, error: Exception) -> Answer:
        if isinstance(error, HTTPException):
            headers = dict(error.headers or {})
            if error.status_code == 405:
                what, fix = "is not for this path", f"use {headers.get('Allow', 'another')}"
                error = Refusal(405, "method", what, fix, headers)
            else:
                fix = "see /docs for what there is"
                error = Refusal(error.status_code, "path", "is not there", fix, headers)
        if not isinstance(error, Refusal):
            fix = "report it; the server's terminal has the details"
            error = Refusal(500, "server", "has an error", fix)
        return as_answer(error)

    routes = [
        Route("/predict", Predict(model, worker, limits), methods=["POST"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/labels", show_labels, methods=["GET"]),
        *(Route(path, show, methods=["GET"]) for path in documents),
    ]
    kinds = HTTPException, Refusal, Exception
    handlers: dict[Any, Any] = dict.fromkeys(kinds, refuse)
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # the target would be made of Host
    return Guard(app, limits)


def _name_of(place: Path) -> str:
    """Returns the last part of a checkpoint's place: strangers need not know the others."""
    return place.name if is_address(place) else os.path.basename(os.path.abspath(place))


def _as_json(content: Mapping[str, object], status: int = 200) -> Answer:
    return Answer(json.dumps(content).encode() + b"\n", _JSON, status)


class Predict:
    """POST /predict: the bytes that `deeplab predict` writes for the image by itself."""

    def __init__(self, model: Segmenter, worker: Worker, limits: Limits):
        self._model, self._worker, self._limits = model, worker, limits
        self._budget = Budget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request; its bytes count until the answer is sent."""
        with self._budget.held() as held, contextlib.suppress(Gone):
            answer = await self._answer(Request(scope, receive), held)
            await answer(scope, receive, send)

    async def _answer(self, request: Request, held: Held) -> Answer:
        kind = _answer_kind(request)
        self._worker.check_ready()
        image = await upload.read(request, self._limits, held)
        try:
            size = await run_in_threadpool(
                decode_size, "image", image.data, self._limits.max_pixels
            )
        except DataError as error:
            raise of_data(error) from error
        self._hold_answer(kind, size[0] * size[1], held)
        job = Job(image.data, self._model.input_size(size), kind, image.name)
        del image
        self._worker.submit(job)
        body = await self._wait(job, request)
        return Answer(body, ANSWERS[kind].media_type)

    def _hold_answer(self, kind: str, pixels: int, held: Held) -> None:
        each = 2 * len(self._model.class_names) if kind == "npz" else 3  # bytes, at most
        if each * pixels > self._budget.limit // 2:
            limit = self._budget.limit // 2 // each
            what = f"has {pixels} pixels; for probabilities of its classes {limit} are the limit"
            raise too_large("image", what, "send a smaller image, or ask for format=png")
        held.add(each * pixels)

    async def _wait(self, job: Job, request: Request) -> bytes:
        """Returns the answer's bytes; a job that has not begun is dropped with its client.

        Raises:
          Refusal: the image cannot be used, or did not have its turn in time.
          Gone: the client has left.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + self._limits.timeout
        result = asyncio.wrap_future(job.future)
        left = asyncio.ensure_future(_until_gone(request))
        both: tuple[asyncio.Future[Any], ...] = result, left
        try:
            while True:
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait(both, timeout=_LOOK, return_when=first)
                if result.done():
                    return result.result()
                if left.done():
                    raise Gone
                # What was accepted is finished before the server stops, however long it waits.
                if clock() > end and not self._worker.is_stopping and job.future.cancel():
                    raise self._worker.busy()
        finally:
            left.cancel()
            result.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer_kind(request: Request) -> str:
    """Returns the value of ?format=, "png" by default.

    Raises:
      Refusal: it is no format, or there are other parameters.
    """
    query = request.query_params.multi_items()
    for name, value in query:
        if name != "format":
            raise Refusal(400, "query", f"has no parameter {clip(name)!r}", "use format alone")
        if value not in ANSWERS or len(query) > 1:
            what = f"must be one of {', '.join(ANSWERS)}, got {clip(value)!r}"
            raise Refusal(400, "format", what, "leave it out for png")
    return query[0][1] if query else "png"
