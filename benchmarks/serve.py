# SPDX-License-Identifier: Apache-2.0
"""Load on a server of an export, over loopback: images a second, milliseconds, memory. Ends with 1 if an answer failed.

python benchmarks/serve.py output/inference_model --engine onnxruntime --clients 8 --minutes 20

The images are noise of three sizes, PNG and JPEG; one in eight requests is a tensor in JSON or in bytes, one in sixteen
is wrong, which has to be answered 4xx. Memory is that of the server's processes, twenty times from the end of the
warm-up on.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARES = ((1, 1), (0.75, 0.5), (0.6, 0.8))  # of --size that the images have


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an export that takes float32 [N, 3, H, W]")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--clients", type=int, default=8, help="that ask at a time (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.5, help="(default: %(default)s)")
    parser.add_argument("--warm_up", type=float, default=10, help="seconds that are not counted (default: %(default)s)")
    parser.add_argument("--size", nargs=2, type=int, default=(256, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--max_batch", default="8")
    parser.add_argument(
        "--growth",
        action="store_true",
        help="instead: the most memory that the server took, after an image of each size",
    )
    return parser


def requests(size: tuple[int, int]) -> list[tuple[str, dict, range]]:
    """Path, arguments, and the statuses that are right, of the requests that are made in turn."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(16):
        height, width = (round(side * share) for side, share in zip(size, SHARES[number % len(SHARES)]))
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG" if number % 2 else "PNG")
        output = ("label", "color", "overlay")[number % 3]
        made.append(("/segment", {"content": buffer.getvalue(), "params": {"output": output}}, range(200, 201)))

    tensor = rng.normal(size=(1, 3, 64, 96)).astype(np.float32)
    described = {"name": "x", "shape": list(tensor.shape), "datatype": "FP32"}
    as_json = json.dumps({"inputs": [{**described, "data": tensor.ravel().tolist()}]}).encode()
    described["parameters"] = {"binary_data_size": tensor.nbytes}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    made[5] = ("infer", {"content": as_json}, range(200, 201))
    made[11] = ("infer", {"content": head + tensor.tobytes(), "headers": headers}, range(200, 201))
    made[15] = ("/segment", {"content": b"no image"}, range(400, 500))
    return made


GROWTH = ((512, 512), (1024, 1024), (2048, 1024))
"""Width and height; the last is as large as a request may be by default."""


def grow(address: str, args: argparse.Namespace, pid: int) -> int:
    """One image after the other, each larger -> how many answers were wrong."""
    peaks, wrong = [memory(pid, "VmHWM")], 0
    for size in GROWTH:
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        wrong += httpx.post(f"{address}/segment", content=buffer.getvalue(), timeout=300).status_code != 200
        peaks.append(memory(pid, "VmHWM"))
    print(f"| engine | none | {' | '.join(f'{width}x{height}' for width, height in GROWTH)} |")
    print(f"| {args.engine} | {' | '.join(f'{peak:.0f} MB' for peak in peaks)} |")
    return wrong


def memory(pid: int, what: str = "VmRSS") -> float:
    """MB of a process and of those it started; VmHWM is the most it ever held."""
    total = 0
    for each in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
    return total / 1024


async def load(address: str, args: argparse.Namespace, pid: int) -> int:
    """Ask for as long as it is said -> how many answers were wrong."""
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        models = f"/v2/models/{args.folder.resolve().name}/infer"
        turns = [(models if path == "infer" else path, options, right) for path, options, right in requests(args.size)]
        seconds: list[float] = []
        statuses: Counter[int] = Counter()
        wrong = 0
        counted = time.monotonic() + args.warm_up
        ends = counted + 60 * args.minutes

        async def ask(first: int) -> None:
            nonlocal wrong
            number = first
            while (started := time.monotonic()) < ends:
                path, options, right = turns[number % len(turns)]
                answer = await client.post(path, **options)
                number += 1
                wrong += answer.status_code not in right
                if started >= counted:
                    statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        seconds.append(time.monotonic() - started)

        async def watch() -> list[float]:
            found = []
            await asyncio.sleep(args.warm_up)
            while time.monotonic() < ends:
                found.append(memory(pid))
                await asyncio.sleep(max(args.minutes * 60 / 20, 0.5))
            return found

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(ask(3 * number) for number in range(args.clients)))
        measured = await watching

    p50, p99 = 1000 * np.percentile(seconds, (50, 99))
    rate = len(seconds) / (ends - counted)
    print(
        "| engine | clients | minutes | images a second | p50, ms | p99, ms | MB at first | MB at last | statuses |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {args.engine} | {args.clients} | {args.minutes:g} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {measured[0]:.0f} "
        f"| {measured[-1]:.0f} | {', '.join(f'{status}: {count}' for status, count in sorted(statuses.items()))} |"
    )
    print("MB:", " ".join(f"{value:.0f}" for value in measured))
    return wrong


def main() -> None:
    args = make_parser().parse_args()
    command = [sys.executable, "-m", "hmsa", "serve", str(args.folder), "--port", "0", "--engine", args.engine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*command, "--max_batch", args.max_batch, "--max_queue", str(max(32, args.clients))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split(" on ")[1].split()[0]
            wrong = grow(address, args, server.pid) if args.growth else asyncio.run(load(address, args, server.pid))
        finally:
            server.terminate()
    if wrong or server.returncode:
        sys.exit(f"{wrong} answers had another status than expected; the server ended with {server.returncode}")


if __name__ == "__main__":
    main()
