# SPDX-License-Identifier: Apache-2.0
"""What a browser is given: the demonstration that runs the model in the browser, if it was built, else a small page."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from pydantic import TypeAdapter

from hmsa.deploy.runtime import DEPLOY_FILE, Deployment
from hmsa.errors import UsageError
from hmsa.serve.model import PICTURES, ServedModel

_TYPES = {
    ".css": "text/css", ".html": "text/html", ".ico": "image/x-icon", ".jpg": "image/jpeg", ".js": "text/javascript",
    ".json": "application/json", ".mjs": "text/javascript", ".png": "image/png", ".svg": "image/svg+xml",
    ".txt": "text/plain", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json",
    ".webp": "image/webp", ".woff2": "font/woff2", ".yaml": "text/yaml",
}  # fmt: skip

_STYLE = (
    "body{font:1rem/1.5 sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#eee;padding:0 .2em}button{margin:.3rem .3rem 0 0}"
    "iframe{box-sizing:border-box;width:100%;height:30rem;border:1px solid #ccc}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        f"default-src 'none'; img-src 'self'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'self'; "
        "frame-src 'self'; frame-ancestors 'self'"
    ),
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer, but those of a built page, which has its own."""

_FILES = ("index.html", "headers.json")  # of every built page


def built_page() -> Path | None:
    """Where the demonstration lies in a clone of the sources, if it was built."""
    folder = Path(__file__).parents[2] / "deploy/web/dist"
    return folder if all((folder / name).is_file() for name in _FILES) else None


def files_of(folder: Path) -> dict[str, tuple[Path, str]]:
    """Every file of a built page: the path under which it is asked for -> (file, media type).

    Raises:
        UsageError: there is no built page in the folder.
    """
    root = folder.resolve()
    for name in _FILES:
        if not (root / name).is_file():
            raise UsageError(
                f"{folder}: expected the folder of a built page, found no {name} in it: build it in deploy/web",
                settings=["web"],
            )
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and path.resolve().is_relative_to(root)]
    files = {f"/{path.relative_to(root).as_posix()}": (path, _type_of(path)) for path in found}
    return {"/": files["/index.html"], **files}


def headers_of(folder: Path) -> dict[str, str]:
    """Headers that a built page needs, of each of its files. UsageError if they cannot be read."""
    try:
        return TypeAdapter(dict[str, str]).validate_json((folder / "headers.json").read_bytes())
    except (OSError, ValueError):
        raise UsageError(
            f"{folder}: expected headers and their values in headers.json, found something else: build it anew in "
            "deploy/web",
            settings=["web"],
        ) from None


def model_files(folder: Path, deployment: Deployment) -> dict[str, tuple[Path, str]]:
    """What a browser needs of an export to run it."""
    names = [DEPLOY_FILE, *(name for entry in deployment.formats if entry.format == "onnx" for name in entry.files)]
    return {f"/model/{name}": (folder / name, _type_of(Path(name))) for name in names if (folder / name).is_file()}


def _type_of(path: Path) -> str:
    return _TYPES.get(path.suffix.lower(), "application/octet-stream")


def small_page(model: ServedModel) -> str:
    """A page to try the server with, which needs no script."""
    kinds = [kind for kind in PICTURES if kind != "confidence" or model.gives_confidence]
    buttons = "".join(f'<button formaction="/segment?output={kind}">{kind}</button>' for kind in reversed(kinds))
    names = ", ".join(map(escape, model.deployment.class_names)) or "not recorded"
    name = escape(model.name)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>{_STYLE}</style>
<h1>{name}</h1>
<p>This server says what every pixel of an image shows. Its classes: {names}.</p>
<form action="/segment?output=overlay" method="post" enctype="multipart/form-data" target="answer">
<p><label>An image: <input type="file" name="image" accept="image/*" required></label></p>
<p>Show: {buttons}</p>
</form>
<iframe name="answer" title="The answer"></iframe>
<h2>For programs</h2>
<ul>
<li><code>POST /segment?output=label</code>: an image in, a PNG out ({", ".join(kinds)})</li>
<li><a href="/v2"><code>/v2</code></a>: the Open Inference Protocol, for tensors;
<a href="/v2/models/{name}"><code>/v2/models/{name}</code></a> describes them</li>
<li><a href="/openapi.json"><code>/openapi.json</code></a>, <a href="/health"><code>/health</code></a>,
<a href="/metrics"><code>/metrics</code></a></li>
</ul>
</html>
"""
