# SPDX-License-Identifier: Apache-2.0
"""Reads damaged weight files: `python tests/weights/fuzz_weights.py --count 2000` prints what became of them.

Every file is read in another process, which may take twice the file's size and 64 MiB of memory, and 20 seconds.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
MAX_SECONDS = 20
ARRAYS = "arrays"


def write_originals(folder: Path) -> list[Path]:
    """Whole files of every format, as Paddle, PyTorch and safetensors write them."""
    import paddle
    from safetensors.numpy import save_file

    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 8, 3), paddle.nn.BatchNorm2D(8), paddle.nn.Linear(64, 64))
    optimizer = paddle.optimizer.Momentum(
        paddle.optimizer.lr.PolynomialDecay(0.1, 10), parameters=network[0].parameters()
    )
    network[0](paddle.ones([1, 3, 4, 4])).sum().backward()
    optimizer.step()
    for protocol in (2, 3, 4):
        paddle.save(network.state_dict(), str(folder / f"paddle{protocol}.pdparams"), protocol=protocol)
        tensors = {"model": network.state_dict(), "mask": paddle.zeros([2, 2]).astype("bfloat16")}
        paddle.save(tensors, str(folder / f"nested{protocol}.pdparams"), protocol=protocol)
        paddle.save(optimizer.state_dict(), str(folder / f"optimizer{protocol}.pdopt"), protocol=protocol)
    save_file({name: value.numpy() for name, value in network.state_dict().items()}, folder / "paddle.safetensors")
    for name in ("torch_zip.pth", "torch_legacy.pth"):
        shutil.copy(GOLDEN / name, folder)
    with zipfile.ZipFile(folder / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "paddle4.pdparams", "hrnet/model.pdparams")
    for name, mode in (("packed.tar.gz", "w:gz"), ("packed.tar", "w")):
        with tarfile.open(folder / name, mode) as archive:
            archive.add(folder / "paddle4.pdparams", "hrnet/model.pdparams")
    return sorted(folder.iterdir())


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to four things gone wrong."""
    for _ in range(rng.integers(1, 5)):
        size = len(data)
        if size < 2:
            return data
        at, other = (int(i) for i in rng.integers(size, size=2))
        length = int(rng.integers(1, 1 + min(64, size)))
        kind = rng.integers(8)
        if kind == 0:  # a bit flips
            data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        elif kind == 1:  # the end is missing
            data = data[:at]
        elif kind == 2:  # a part overwrites another
            data = data[:at] + data[other : other + length] + data[at + length :]
        elif kind == 3:  # a length or an index is another
            width, code = [(1, "B"), (2, "H"), (4, "I"), (8, "Q")][rng.integers(4)]
            value = int(rng.choice(np.array([0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**40, 2**63 - 1], np.uint64)))
            data = data[:at] + struct.pack(f"<{code}", value % (1 << 8 * width)) + data[at + width :]
        elif kind == 4:  # an instruction comes in
            data = (
                data[:at]
                + rng.choice(list(b"()]}NRbco.\x81\x85\x86\x87\x88\x8c\x8e\x93\x94\x95QtuUXhjqre0123")).tobytes()[:1]
                + data[at:]
            )
        elif kind == 5:  # a part comes twice
            data = data[: at + length] + data[at:]
        elif kind == 6:  # a part is zero
            data = data[:at] + bytes(min(length, size - at)) + data[at + length :]
        else:  # a part is missing
            data = data[:at] + data[at + length :]
    return data


def write_mutants(folder: Path, originals: list[Path], *, count: int, seed: int) -> None:
    for index in range(count):
        original = originals[index % len(originals)]
        mutant = mutate(original.read_bytes(), np.random.default_rng([seed, index]))
        (folder / f"{index:05}_{original.name}").write_bytes(mutant)


def read_all(folder: Path) -> dict[str, str]:
    """Read every file of a folder: its name -> ARRAYS, the sentence that says why not, or how the reader died."""
    left = sorted(path.name for path in folder.iterdir())
    outcomes = {}
    while left:
        command = [sys.executable, __file__, "--read", str(folder), "--first", left[0]]
        reader = subprocess.run(command, capture_output=True, text=True)
        outcomes.update(line.split("\t", 1) for line in reader.stdout.splitlines())
        left = [name for name in left if name not in outcomes]
        if left:
            outcomes[left.pop(0)] = f"the reader ended with status {reader.returncode}: {reader.stderr[-300:]}"
    return outcomes


def wrong(outcomes: dict[str, str], folder: Path) -> dict[str, str]:
    """The outcomes that are neither arrays nor a sentence that names the file."""
    return {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome != ARRAYS
        and not (outcome.startswith(f"{folder / name}: expected ") and outcome.isprintable() and len(outcome) < 800)
    }


def read_here(folder: Path, first: str) -> None:
    """Read the files from `first` on in this process, each within its limits, and print what became of them."""
    from hmsa.errors import DataError
    from hmsa.weights.files import read_pickle, read_weights

    for path in sorted(folder.iterdir()):
        if path.name < first:
            continue
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2 * path.stat().st_size + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        signal.alarm(MAX_SECONDS)
        try:
            (read_pickle if path.suffix == ".pdopt" else read_weights)(path)
            outcome = ARRAYS
        except DataError as error:
            outcome = str(error)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(path.name, outcome, sep="\t", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.read:
        read_here(args.read, args.first)
        sys.exit()
    with tempfile.TemporaryDirectory() as name:
        whole, mutants = Path(name, "whole"), Path(name, "mutants")
        whole.mkdir()
        mutants.mkdir()
        write_mutants(mutants, write_originals(whole), count=args.count, seed=args.seed)
        outcomes = read_all(mutants)
        faults = wrong(outcomes, mutants)
        for name, outcome in faults.items():
            print(f"{name}: {outcome}")
        reasons = Counter(
            ARRAYS if o == ARRAYS else o.split(": expected ")[1].split("but ")[-1] for o in outcomes.values()
        )
        for reason, number in reasons.most_common(25):
            print(f"{number:5} {reason}")
        print(f"{len(outcomes)} files, {len(faults)} that ended in neither arrays nor a sentence")
