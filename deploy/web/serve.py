# SPDX-License-Identifier: Apache-2.0
"""Serve the built page on this machine, with the headers that give WebAssembly its threads."""

import argparse
import contextlib
import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "dist"


class Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def __init__(self, *args, added, **options):
        self.added = added
        super().__init__(*args, **options)

    def end_headers(self):
        for name, value in self.added.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=4173, help="0 is any that is free (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="send none of the headers, as many static hosts do")
    args = parser.parse_args()
    if not (args.folder / "headers.json").is_file():
        parser.error(f"expected the built page in {args.folder}, found none: run make web-demo")

    added = {} if args.plain else json.loads((args.folder / "headers.json").read_text(encoding="utf-8"))
    handler = partial(Handler, directory=str(args.folder), added=added)
    with ThreadingHTTPServer(("localhost", args.port), handler) as server:
        print(f"http://localhost:{server.server_port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
