# SPDX-License-Identifier: Apache-2.0
"""Measure an export on this machine: speed, memory and opening time of every engine and precision.

Each is run in a process of its own, one after the other. The table that is printed can be pasted anywhere.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from hmsa import cli
from hmsa.deploy.engines import ENGINES
from hmsa.errors import HmsaError, UsageError, printable

if TYPE_CHECKING:
    from hmsa.deploy.benchmark import Case, Result

MARK = "\0"
"""Before what a measuring process says, so that it is told from what libraries print."""


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder that export.py wrote")
    parser.add_argument(
        "--sizes",
        nargs="+",
        action="extend",
        metavar="WIDTHxHEIGHT",
        help="of the images (default: 512x256 1024x512, or the one that the export has)",
    )
    parser.add_argument("--batch", type=cli.count, default=1, help="images at once (default: 1)")
    parser.add_argument("--repeat", type=cli.count, default=50, help="runs to measure, at most (default: 50)")
    parser.add_argument(
        "--seconds",
        type=cli.count,
        default=20,
        help="after which no further run is begun, three in any case (default: 20)",
    )
    parser.add_argument("--threads", type=cli.threads, help="to compute with (default: one a core)")
    parser.add_argument(
        "--engines", nargs="+", action="extend", choices=list(ENGINES), help="only these (default: all that read it)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="JSON file for the figures and the machine they are of; an earlier one is kept"
    )
    parser.add_argument("--here", help=argparse.SUPPRESS)
    return parser


def size(text: str) -> tuple[int, int]:
    """Width and height. UsageError if it is none."""
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise UsageError(f"--sizes: expected width and height such as 512x256, found {text!r}: correct it")
    return int(numbers[0]), int(numbers[1])


def main(args: argparse.Namespace) -> None:
    given = [size(text) for text in args.sizes or ()]
    from hmsa.system.environment import cores, prepare

    prepare()
    from hmsa.deploy import benchmark
    from hmsa.deploy.runtime import read_deployment
    from hmsa.system.files import output_file, write_atomically
    from hmsa.system.signals import end_in_order

    end_in_order()
    threads = args.threads or cores()
    if args.here:
        limits = {"repeat": args.repeat, "seconds": args.seconds, "threads": threads}
        measured = benchmark.measure(args.folder, benchmark.Case(**json.loads(args.here)), **limits)
        print(MARK + json.dumps(asdict(measured)))
        return

    output = output_file(args.output) if args.output else None
    H, W = map(read_deployment(args.folder).side, "HW")
    sizes = given or ([(W, H)] if H and W else [(512, 256), (1024, 512)])
    found = benchmark.machine(threads)
    if benchmark.is_busy():
        print("warning: other programs are at work on this machine: expect slower figures than it has", file=sys.stderr)

    results = []
    cases = benchmark.cases(args.folder, sizes, args.batch, args.engines or tuple(ENGINES))
    if not cases:
        named = ", ".join(args.engines)
        raise UsageError(f"{args.folder}: expected a format that {named} reads, found none: choose other --engines")
    for number, case in enumerate(cases, 1):
        print(printable(f"{number}/{len(cases)}: {case}"), file=sys.stderr, flush=True)
        results.append(_in_its_own_process(args, case, threads))
    print(benchmark.table(results, found))
    if output:
        data = {"machine": found, "results": [result.to_json() for result in results]}
        kept = write_atomically(output, json.dumps(data, indent=1).encode(), keep_earlier=True)
        also = f"; the earlier one is kept as {kept}" if kept else ""
        print(printable(f"written to {output}{also}"), file=sys.stderr)
    if not any(result.measured for result in results):
        raise HmsaError("nothing could be run: the reasons stand below the table")


def _in_its_own_process(args: argparse.Namespace, case: Case, threads: int) -> Result:
    from hmsa.deploy.benchmark import Measured, Result

    limits = ("--repeat", args.repeat, "--seconds", args.seconds, "--threads", threads)
    words = cli.command("benchmark", args.folder, "--here", json.dumps(asdict(case)), *map(str, limits))
    done = subprocess.run(words, env=cli.environment_of_commands(), capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        measured = json.loads(done.stdout.rpartition(MARK)[2])
        return Result(case, Measured(**{**measured, "runs": tuple(measured["runs"])}))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return Result(case, reason=f"ended by {name}" + ("; memory may be short" if name == "SIGKILL" else ""))
    said = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
    return Result(case, reason=printable(said.removeprefix("error: ")))
