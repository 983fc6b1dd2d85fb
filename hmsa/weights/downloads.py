# SPDX-License-Identifier: Apache-2.0
"""Weights behind web addresses: downloaded once, and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Callable, Optional, Union
from urllib.parse import unquote, urljoin, urlsplit

from filelock import FileLock

from hmsa.errors import DataError, UsageError, printable
from hmsa.system.files import cache_folder, flush_to_disk, sha256
from hmsa.weights.files import read_weights

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS, SILENT_SECONDS = 15, 60
"""How long a server may take to answer at all, and between two pieces of a file."""

MAX_REDIRECTIONS = 10

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//|/(?!/))")
_BY_HAND = "download the file by hand and give its path instead"
_BLOCK = 1 << 20


def web_address(path: Union[str, Path]) -> Optional[str]:
    """The address, if this is one and not a path; `Path` would have made one slash of two."""
    found = _ADDRESS.match(str(path))
    return f"{found[1]}://{str(path)[found.end() :]}" if found else None


def downloaded(address: str, check: Callable[[Path, str], object] = read_weights) -> Path:
    """The weight file behind `http(s)://...`, downloaded unless the cache has it; `#sha256=<hex>` says what it must be.

    Of another kind of file than weights, `check` is given the file and its address, and raises DataError unless it is
    whole.

    Of all processes that ask for it on one machine, one downloads it and the others wait. It is kept only if it
    arrived whole and holds weights, and downloaded anew if it changes on the disk.

    Raises:
        UsageError: an address that cannot be one of a weight file.
        DataError: it cannot be downloaded or kept, or is not what it should be.
    """
    name, expected = _checked(address)
    key = hashlib.sha256(address.partition("#")[0].encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        folder = cache_folder() / "downloads"
        if kept := _kept(folder, key, expected):
            return kept  # also from a cache that can only be read
        folder.mkdir(parents=True, exist_ok=True)
        # A lock goes with the process that holds it, however that ends.
        with FileLock(folder / f"{key}.lock"):
            return _kept(folder, key, expected) or _download(address, folder, key, name, expected, check)
    except (OSError, NotImplementedError) as error:  # the second from file systems without locks
        raise DataError(
            f"{address}: expected to keep the download, but: {error}; set HMSA_CACHE to a folder that can be written "
            f"to and has room, or {_BY_HAND}"
        ) from error


def _checked(address: str) -> tuple[str, Optional[str]]:
    """The name of the file behind an address, and the SHA-256 it demands."""
    try:
        parts = urlsplit(address)
        name = PurePosixPath(unquote(parts.path)).name if not parts.path.endswith("/") else ""
        is_web = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_web, name = False, ""
    if not is_web:
        raise UsageError(f"{address}: expected a path or an http(s) address of weights, found another: give a path")
    if not name:
        raise UsageError(f"{address}: expected the address of a weight file, found one without its name: add it")
    digest = re.fullmatch("sha256=([0-9a-fA-F]{64})", parts.fragment)
    if parts.fragment and not digest:
        raise UsageError(
            f"{address}: expected #sha256= and 64 hexadecimal digits, or nothing, behind the address of weights, found "
            "something else: correct it"
        )
    # It ends in what tells the kind of file.
    return re.sub("[^A-Za-z0-9._-]", "_", name)[-100:], digest[1].lower() if digest else None


def _kept(folder: Path, key: str, expected: Optional[str]) -> Optional[Path]:
    """The file that was downloaded before, if it still is what it was; the name says its SHA-256."""
    for path in folder.glob(f"{key}-*"):
        digest = path.name.split("-")[1]
        if sha256(path) == digest and expected in (None, digest):
            return path
    return None


def _download(
    address: str, folder: Path, key: str, name: str, expected: Optional[str], check: Callable[[Path, str], object]
) -> Path:
    """Download to a file beside its place, check it, and give it its name. There is one writer a key."""
    partial = folder / f".{key}-{name}"
    try:
        with partial.open("wb") as file:
            digest = _fetch(address, file)
        if expected not in (None, digest):
            raise DataError(
                f"{address}: expected a file with this SHA-256, found one with {digest}; correct the address or the "
                "hash, if you trust the file"
            )
        check(partial, address)
        flush_to_disk(partial)
        for older in folder.glob(f"{key}-*"):
            older.unlink()
        return partial.replace(folder / f"{key}-{digest}-{name}")
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _fetch(address: str, file: IO[bytes]) -> str:
    """Write what is behind an address to `file`; returns its SHA-256."""
    import requests
    import urllib3
    from tqdm import tqdm

    print(printable(f"downloading {address}"), file=sys.stderr)
    digest, count = hashlib.sha256(), 0
    try:
        with _open(address) as response:
            length = response.headers.get("Content-Length", "")
            size = int(length) if length.isdecimal() else None
            with tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as progress:
                # As it is: what a server calls compressed may be a file that is.
                for block in response.raw.stream(_BLOCK, decode_content=False):
                    file.write(block)
                    digest.update(block)
                    count += len(block)
                    progress.update(len(block))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise DataError(f"{address}: expected to download the file, but {_reason(error)}; {_BY_HAND}") from error
    if size not in (None, count):
        raise DataError(
            f"{address}: expected to download {size} bytes, but it ended after {count}; try again, or {_BY_HAND}"
        )
    return digest.hexdigest()


def _open(address: str) -> requests.Response:
    """The answer behind an address and its redirections, none of which gives up encryption; its content is not read."""
    import requests

    url = address.partition("#")[0]
    with requests.Session() as session:
        for _ in range(MAX_REDIRECTIONS):
            request = session.prepare_request(requests.Request("GET", url, headers={"Accept-Encoding": "identity"}))
            settings = session.merge_environment_settings(url, {}, True, None, None)
            # Not `get`, which reads whatever comes with a redirection, however much.
            response = session.get_adapter(url).send(request, timeout=(CONNECT_SECONDS, SILENT_SECONDS), **settings)
            target = session.get_redirect_target(response)
            if target is None:
                response.raise_for_status()
                return response
            response.close()
            following = urljoin(url, target)
            if urlsplit(following).scheme not in ("https", urlsplit(url).scheme):
                raise DataError(
                    f"{address}: expected to download the file, but it leads to {following}, which is not encrypted or "
                    f"no web address; {_BY_HAND}"
                )
            url = following
    raise requests.TooManyRedirects(f"more than {MAX_REDIRECTIONS} redirections")


def _reason(error: Exception) -> str:
    """What went wrong, in a few words; those of the libraries are pages of nested names."""
    import requests
    import urllib3

    known = {
        requests.exceptions.SSLError: "the server's certificate cannot be verified",
        requests.exceptions.ProxyError: "the proxy cannot be reached or refuses",
        (requests.Timeout, urllib3.exceptions.TimeoutError): "the server does not answer in time",
        requests.ConnectionError: "the server cannot be reached (is this machine offline?)",
        requests.TooManyRedirects: "it leads from one address to the next without end",
        urllib3.exceptions.HTTPError: "the connection broke off",
    }
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason or ''}"[:100].rstrip()
    return next((text for kind, text in known.items() if isinstance(error, kind)), "it is no address")
