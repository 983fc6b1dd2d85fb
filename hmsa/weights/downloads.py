# SPDX-License-Identifier: Apache-2.0
"""Weights behind web addresses: downloaded once, and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Callable, Optional, Union
from urllib.parse import unquote

from filelock import FileLock

from hmsa.errors import DataError, UsageError, printable
from hmsa.system.files import cache_folder, sha256
from hmsa.weights.files import read_weights

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS, SILENT_SECONDS = 15, 60
"""How long a server may take to answer at all, and between two pieces of a file."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//|/(?!/))")
_WEIGHTS = re.compile(
    r"https?://[^/?#]+/([^?#]*/)?(?P<name>[^/?#]+)(\?[^#]*)?(#sha256=(?P<digest>[0-9a-f]{64}))?", re.IGNORECASE
)
_BY_HAND = "download the file by hand and give its path instead"


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
    found = _WEIGHTS.fullmatch(address)
    if found is None:
        raise UsageError(
            f"{address}: expected a path or the http(s) address of a weight file, with nothing or #sha256= and 64 "
            "hexadecimal digits behind its name, found another: correct it"
        )
    # It ends in what tells the kind of file.
    name = re.sub("[^A-Za-z0-9._-]", "_", unquote(found["name"]))[-100:]
    return name, found["digest"].lower() if found["digest"] else None


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
            _fetch(address, file)
        digest = sha256(partial)
        if expected not in (None, digest):
            raise DataError(
                f"{address}: expected a file with this SHA-256, found one with {digest}; correct the address or the "
                "hash, if you trust the file"
            )
        check(partial, address)
        for older in folder.glob(f"{key}-*"):
            older.unlink()
        return partial.replace(folder / f"{key}-{digest}-{name}")
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _fetch(address: str, file: IO[bytes]) -> None:
    """Write what is behind an address to `file`."""
    import requests
    import urllib3
    from tqdm import tqdm

    print(printable(f"downloading {address}"), file=sys.stderr)
    try:
        with _open(address) as response:
            length = response.headers.get("Content-Length", "")
            size = int(length) if length.isdecimal() else None
            with tqdm.wrapattr(file, "write", total=size, leave=False, disable=None) as shown:
                # As it is: what a server calls compressed may be a file that is.
                for block in response.raw.stream(1 << 20, decode_content=False):
                    shown.write(block)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise DataError(f"{address}: expected to download the file, but {_reason(error)}; {_BY_HAND}") from error
    if size not in (None, file.tell()):
        raise DataError(
            f"{address}: expected to download {size} bytes, but it ended after {file.tell()}; try again, or {_BY_HAND}"
        )


def _open(address: str) -> requests.Response:
    """The answer behind an address and its redirections, none of which gives up encryption; its content is not read."""
    import requests

    session = requests.Session()
    if address.lower().startswith("https:"):
        del session.adapters["http://"]  # and there never was one for files
    headers = {"Accept-Encoding": "identity"}
    response = session.get(address, headers=headers, timeout=(CONNECT_SECONDS, SILENT_SECONDS), stream=True)
    response.raise_for_status()
    return response


def _reason(error: Exception) -> str:
    """What went wrong, in a few words; those of the libraries are pages of nested names."""
    import requests
    import urllib3

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason or ''}"[:100].rstrip()
    known = {
        requests.exceptions.SSLError: "the server's certificate cannot be verified",
        requests.exceptions.ProxyError: "the proxy cannot be reached or refuses",
        (requests.Timeout, urllib3.exceptions.TimeoutError): "the server does not answer in time",
        requests.ConnectionError: "the server cannot be reached (is this machine offline?)",
        requests.TooManyRedirects: "it leads from one address to the next without end",
        requests.exceptions.InvalidSchema: f"it leads to what is not encrypted or no web address ({error})"[:200],
        urllib3.exceptions.HTTPError: "the connection broke off",
    }
    return next((text for kind, text in known.items() if isinstance(error, kind)), "it is no address")
