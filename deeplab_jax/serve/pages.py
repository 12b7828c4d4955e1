"""What is shown: the page, its style and script, the description of the interface in two forms."""

import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from deeplab_jax import __version__
from deeplab_jax.report.html import Html, join, table, tag
from deeplab_jax.serve.limits import Limits
from deeplab_jax.serve.worker import ANSWERS

_CODES = {
    200: "The answer.",
    400: "The body is no readable image or form, or the query is unknown.",
    403: "Origin names another site.",
    404: "There is no such path.",
    405: "The path is not for this method.",
    408: "Headers or body came too slowly.",
    413: "The image has too many bytes or pixels; seen before it is decoded.",
    415: "The body is of another kind.",
    421: "Host is no name of this server.",
    500: "An error of the server; its terminal tells more.",
    503: "Too many images wait, or the server is starting; Retry-After says when to try again.",
}
_HTML = "text/html; charset=utf-8"


def documents(about: Mapping[str, object], limits: Limits) -> dict[str, tuple[bytes, str]]:
    """Returns {path: (bytes, media type)} of all that stays the same."""
    api = describe(limits)
    report, own = files("deeplab_jax.report"), files("deeplab_jax.serve")
    style = report.joinpath("style.css").read_text("utf-8")
    style += own.joinpath("style.css").read_text("utf-8")
    return {
        "/": (_page(about, limits).encode(), _HTML),
        "/style.css": (style.encode(), "text/css; charset=utf-8"),
        "/script.js": (own.joinpath("script.js").read_bytes(), "text/javascript; charset=utf-8"),
        "/docs": (_docs(api, about).encode(), _HTML),
        "/openapi.json": (json.dumps(api, indent=1).encode() + b"\n", "application/json"),
    }


def _page(about: Mapping[str, object], limits: Limits) -> str:
    template = files("deeplab_jax.serve").joinpath("template.html").read_text("utf-8")
    return Template(template).substitute(
        title=tag("title", f"Try {about['model']}"),
        headline=tag("h1", f"Try {about['model']}"),
        about=tag("p", _about(about), class_="about"),
        limits=f"{limits.max_bytes / 1e6:g} MB and {limits.max_pixels / 1e6:g} megapixels",
    )


def _about(about: Mapping[str, object]) -> str:
    weights = f", {about['weights']} weights" if "weights" in about else ""
    return f"Step {about['step']} of {about['checkpoint']}{weights}"


def describe(limits: Limits) -> dict[str, Any]:
    """Returns the interface as an OpenAPI document."""
    fault = _object(
        where=_text("What is at fault, such as image, body or Host."),
        what=_text("The fault, with the value at hand and the accepted ones."),
        fix=_text("The remedy."),
    )
    error = _object(error=fault)
    entry = _object(
        id=_number("integer", "The value in masks."),
        name=_text("Its name."),
        color=_list(_number("integer", "Red, green, blue.")),
    )
    share = _object(
        name=_text("The class."),
        share=_number("number", "Of the image's area."),
        confidence=_number("number", "Mean; null where the class is not in the image."),
    )
    summary = _object(
        file=_text("The name that the form gave, or null."),
        size=_list(_number("integer", "Height, width.")),
        checkpoint=_text("As the server was started."),
        step=_number("integer", "Of the checkpoint."),
        protocol=_text("How the network was applied."),
        classes=_list(share),
    )
    state = _object(
        status=_text("ready or starting."),
        model=_text("Name of the recipe."),
        checkpoint=_text("The last part of its path."),
        step=_number("integer", "Of the checkpoint."),
        waiting=_number("integer", "Images before the network."),
        queue=_number("integer", "Images that may wait."),
    )
    image = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": image}, "required": ["image"]}
    answers = {
        answer.media_type: {"schema": summary if name == "json" else image}
        for name, answer in ANSWERS.items()
    }
    formats = "; ".join(f"{name}: {answer.text}" for name, answer in ANSWERS.items())
    text = (
        f"An image in JPEG, PNG, WebP, TIFF or BMP of at most {limits.max_bytes} bytes and"
        f" {limits.max_pixels} pixels. The answer has the image's own size, upright, and is byte"
        " for byte the file that deeplab predict writes for the image by itself. The first image"
        " of a size compiles the network, which takes seconds."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "deeplab serve",
            "version": __version__,
            "description": "Semantic segmentation of one image at a time.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Segment an image",
                    "description": text,
                    "parameters": [
                        {
                            "name": "format",
                            "in": "query",
                            "description": formats,
                            "schema": {"enum": list(ANSWERS), "default": "png"},
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "description": "The file's bytes, or a form with one file.",
                        "content": {
                            "multipart/form-data": {"schema": form},
                            "image/*": {"schema": image},
                            "application/octet-stream": {"schema": image},
                        },
                    },
                    "responses": {
                        "200": {"description": _CODES[200], "content": answers},
                        **_failures(error, 400, 403, 408, 413, 415, 421, 500, 503),
                    },
                }
            },
            "/healthz": _get("Whether images are taken; 503 until the network is compiled", state),
            "/labels": _get("The classes", _object(classes=_list(entry))),
        },
    }


def _object(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: object) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _number(kind: str, description: str) -> dict[str, Any]:
    return {"type": kind, "description": description}


def _failures(error: object, *codes: int) -> dict[str, Any]:
    content = {"application/json": {"schema": error}}
    return {str(code): {"description": _CODES[code], "content": content} for code in codes}


def _get(summary: str, schema: object) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    found = {"description": _CODES[200], "content": content}
    return {"get": {"summary": summary, "responses": {"200": found}}}


def _docs(api: Mapping[str, Any], about: Mapping[str, object]) -> str:
    """Returns the description as a page, which loads its style alone."""
    head = join(
        [
            Html('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css">'),
            tag("title", f"Interface of {about['model']}"),
            Html("</head>"),
        ]
    )
    sections = [
        _section(path, method, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    codes = [[str(code), text] for code, text in _CODES.items()]
    links = tag("nav", tag("a", "The page to try it", href="/"), Html(" "),
                tag("a", "openapi.json", href="/openapi.json"), aria_label="Pages")  # fmt: skip
    top = [tag("h1", f"Interface of {about['model']}"), tag("p", _about(about), class_="about")]
    told = 'Every error is JSON: {"error": {"where", "what", "fix"}}.'
    errors = tag(
        "section",
        tag("h2", "Answers"),
        tag("p", told),
        table(["Code", "When"], codes, "Codes", "wrap"),
    )
    body = tag("body", links, tag("main", *top, *sections, errors))
    return f"{head}{body}</html>\n"


def _section(path: str, method: str, operation: Mapping[str, Any]) -> Html:
    parts: list[object] = [tag("h2", f"{method.upper()} {path}"), tag("p", operation["summary"])]
    if "description" in operation:
        parts.append(tag("p", operation["description"]))
    for parameter in operation.get("parameters", ()):
        rows = [[name, answer.media_type, answer.text] for name, answer in ANSWERS.items()]
        head = [f"?{parameter['name']}=", "Media type", "What it is"]
        parts.append(table(head, rows, "Formats", "wrap"))
    content = operation["responses"]["200"]["content"]
    fields = content.get("application/json", {"schema": {}})["schema"].get("properties", {})
    if fields:
        rows = [[name, *_kind(field)] for name, field in fields.items()]
        parts += [tag("h3", "JSON"), table(["Field", "Type", "Meaning"], rows, path, "wrap")]
    if "requestBody" in operation:
        lines = [
            'curl -F image=@street.jpg "http://127.0.0.1:8000/predict" -o mask.png',
            'curl -F image=@street.jpg "http://127.0.0.1:8000/predict?format=json"',
            'curl -H "Content-Type: image/jpeg" --data-binary @street.jpg'
            ' "http://127.0.0.1:8000/predict?format=overlay" -o overlay.jpg',
        ]
        parts += [tag("h3", "Examples"), tag("pre", "\n".join(lines), tabindex=0)]
    return tag("section", *parts)


def _kind(field: Mapping[str, Any]) -> list[str]:
    """Returns type and meaning of a field, those of a list's entries in one line."""
    inner = field.get("items", field)
    text = inner.get("description", "")
    if "properties" in inner:
        text = "; ".join(
            f"{name}: {part.get('items', part)['description'].rstrip('.')}"
            for name, part in inner["properties"].items()
        )
    kind = f"list of {inner['type']}s" if inner is not field else field["type"]
    return [kind, text]
