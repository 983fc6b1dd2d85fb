# SPDX-License-Identifier: Apache-2.0
"""Serve an export over HTTP: images to PNGs at /segment, tensors by the Open Inference Protocol at /v2, a page at /."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from hmsa import cli
from hmsa.deploy.engines import ENGINES
from hmsa.deploy.formats import precision_names
from hmsa.errors import UsageError
from hmsa.inference.backends import need
from hmsa.serve.configs import KINDS

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="that export.py wrote; its name is the model's")
    parser.add_argument(
        "--engine",
        choices=list(ENGINES),
        help="what runs the network (default: the fastest that is installed and reads the export)",
    )
    computed = [precision for engine in ENGINES.values() for precision in engine.lower]
    parser.add_argument(
        "--precision",
        choices=list(dict.fromkeys([*precision_names(), *computed])),
        default="fp32",
        help=f"of the exported files; {' or '.join(computed)} is computed with those of fp32, by "
        f"{' or '.join(name for name, engine in ENGINES.items() if engine.lower)}",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all of this machine's")
    parser.add_argument(
        "--allowed_hosts",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="by which clients may ask for the server, besides localhost (default: none where it listens on this "
        "machine's own address, else any)",
    )
    parser.add_argument(
        "--port", type=partial(cli.count, least=0), default=8000, help="0 for any that is free (default: %(default)s)"
    )
    parser.add_argument("--max_batch", type=cli.count, default=8, help="images of one size that are run together")
    parser.add_argument(
        "--max_wait_ms", type=_number, default=5, help="how long an image waits for others of its size, milliseconds"
    )
    parser.add_argument(
        "--max_queue", type=cli.count, default=32, help="requests at a time, in each process; more are answered 503"
    )
    parser.add_argument("--max_pixels", type=cli.count, default=1 << 21, help="of a request; more are answered 413")
    parser.add_argument("--max_mb", type=_positive, default=64, help="of a request's body; more are answered 413")
    parser.add_argument(
        "--timeout", type=_positive, default=60, help="seconds for a body to come (408), and for the answer (504)"
    )
    parser.add_argument(
        "--threads",
        type=cli.threads,
        help="that the engine of a process computes with (default: its share of the cores)",
    )
    parser.add_argument("--workers", type=cli.count, default=1, help="processes, each with the model in its memory")
    parser.add_argument(
        "--web",
        type=Path,
        metavar="DIR",
        help="a built page to show at / (default: deploy/web/dist, if it was built and the export has ONNX)",
    )
    parser.add_argument(
        "--write_config",
        nargs=2,
        metavar=("SERVER", "DIR"),
        help=f"instead of serving, write the folder of models of another server ({' or '.join(KINDS)})",
    )
    return parser


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, found {text!r}: correct it")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}: correct it")
    return value


def main(args: argparse.Namespace) -> None:
    need("serving", _PACKAGES, "serve")
    if args.write_config:
        _refuse_idle(args)
    if args.port > 65535:
        raise UsageError(f"expected --port up to 65535, found {args.port}: correct it")

    from hmsa.system.environment import prepare

    prepare()
    from hmsa.system.signals import end_in_order, terminations_wait

    with terminations_wait():
        from hmsa.serve import server
        from hmsa.serve.app import Limits

        end_in_order()

    names = ("max_batch", "max_wait_ms", "max_queue", "max_pixels", "max_mb", "timeout")
    limits = Limits(**{name: getattr(args, name) for name in names})
    service = server.Service(
        folder=args.folder,
        engine=args.engine,
        precision=args.precision,
        threads=args.threads,
        workers=args.workers,
        web=args.web,
        allowed_hosts=tuple(args.allowed_hosts),
        limits=limits,
    )
    if args.write_config:
        _write_config(service, *args.write_config)
        return
    server.serve(service, args.host, args.port, partial(print, flush=True))
    print("done", file=sys.stderr)


def _refuse_idle(args: argparse.Namespace) -> None:
    """UsageError if a flag was given that says how to serve, where nothing is served."""
    flags = ("engine", "threads", "web", "workers", "port", "host", "allowed_hosts", "max_pixels", "max_mb")
    default = make_parser().parse_args([str(args.folder)])
    idle = [f"--{flag}" for flag in flags if getattr(args, flag) != getattr(default, flag)]
    if idle:
        raise UsageError(
            f"expected --write_config without {' and '.join(idle)}, found both, without effect: leave out one or the "
            "other"
        )


def _write_config(service, kind: str, target: str) -> None:
    from hmsa.serve.configs import write_config

    done = write_config(
        kind,
        service.folder,
        Path(target),
        name=service.name,
        precision=service.precision,
        limits=service.limits,
    )
    print(*(f"{what} {path}" for path, what in done.items()), sep="\n")
