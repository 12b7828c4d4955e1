"""The image of a request: read into memory within limits of bytes and time, and taken from a form.

No path comes from a request: a file's name is only repeated in the JSON of its result.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deeplab_jax.errors import clip
from deeplab_jax.serve.limits import RATE, Gone, Held, Limits, Refusal, too_large

_PART = "image"
_CURL = f"curl -F {_PART}=@FILE"
_FORM_EXTRA = 16 * 2**10  # bytes of a form beside its file
_MAX_NAME = 255  # characters


class Upload(NamedTuple):
    """The bytes of an image file, and its name if the form gave one."""

    data: bytes
    name: str | None


class _InMemory(MultiPartParser):
    spool_max_size = 2**40  # nothing is written to the disk


async def read(request: Request, limits: Limits, held: Held) -> Upload:
    """Returns the image of a request.

    Raises:
      Refusal: the body is of another kind, too large, too slow, empty, or no such form.
      Gone: the client has left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if kind and not (is_form or kind.startswith("image/") or kind == "application/octet-stream"):
        what = f"is {clip(kind)!r}; accepted are image/*, application/octet-stream and a form"
        raise Refusal(415, "Content-Type", what, f"send a form: {_CURL}")
    body = await _read_body(request, limits, _FORM_EXTRA if is_form else 0, held)
    upload = await _from_form(request, body) if is_form else Upload(body, None)
    _check_length(len(upload.data), limits.max_bytes)
    if not upload.data:
        raise Refusal(400, "image", "is empty", f"send the bytes of an image file: {_CURL}")
    return upload


def _check_length(num_bytes: int, limit: int, extra: int = 0) -> None:
    if num_bytes > limit + extra:
        what = f"has more than {limit} bytes, the limit"
        raise too_large("body", what, "send a smaller file, such as a JPEG")


async def _read_body(request: Request, limits: Limits, extra: int, held: Held) -> bytes:
    length = request.headers.get("content-length", "0")
    _check_length(int(length) if length.isdecimal() else 0, limits.max_bytes, extra)
    clock = asyncio.get_running_loop().time
    began, body = clock(), bytearray()
    while True:
        left = began + limits.timeout + len(body) / RATE - clock()
        try:
            message = await asyncio.wait_for(request.receive(), max(left, 0.001))
        except TimeoutError as error:
            what = f"came too slowly: {len(body)} bytes in {clock() - began:.1f} s"
            fix = f"send it at {RATE // 1024} KiB/s or faster, or a smaller file"
            raise Refusal(408, "body", what, fix) from error
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        _check_length(len(body) + len(part), limits.max_bytes, extra)
        held.add(len(part))
        body += part
        if not message.get("more_body", False):
            return bytes(body)


async def _from_form(request: Request, body: bytes) -> Upload:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = _InMemory(request.headers, whole(), max_files=4, max_fields=4)
        items = (await parser.parse()).multi_items()
    except MultiPartException as error:
        what = f"is no valid multipart/form-data ({error.message.rstrip('.').lower()})"
        raise Refusal(400, "body", what, f"send one file: {_CURL}") from error
    files = [value for _, value in items if isinstance(value, UploadFile)]
    try:
        names = sorted({clip(name) for name, _ in items})
        if names != [_PART] or len(items) > 1:
            found = f"{len(items)} fields ({', '.join(names)})" if items else "no complete field"
            raise Refusal(400, "body", f"has {found}; one is accepted, {_PART}", f"use {_CURL}")
        if not files:
            what = f"{_PART} holds text, not a file"
            raise Refusal(400, "body", what, f"mark it as a file: {_CURL}")
        return Upload(await files[0].read(), clip(files[0].filename or "", _MAX_NAME) or None)
    finally:
        for file in files:
            await file.close()
