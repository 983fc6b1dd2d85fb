# SPDX-License-Identifier: Apache-2.0
"""A long run of train.py, watched from outside: does its memory grow, does it leave anything behind?

Writes the figures into docs/reliability.md. The toy data set is drawn small (128x64, cut to 96x64) so that iterations
are many rather than large; every fourth one is followed by a checkpoint and an evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import workplace

PAGE = workplace.ROOT / "docs/reliability.md"
BEGIN, END = "<!-- begin: printed by benchmarks/soak.py -->", "<!-- end -->"
TRANSFORMS = (
    "[{type: ResizeStepScaling, min_scale_factor: 0.5, max_scale_factor: 2.0, scale_step_size: 0},"
    " {type: RandomPaddingCrop, crop_size: [96, 64]}, {type: RandomHorizontalFlip}, {type: RandomDistort},"
    " {type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}]"
)


def observe(process: subprocess.Popen[str], temporary: Path) -> dict[str, int]:
    """What the process holds now; memory in bytes."""
    proc = Path(f"/proc/{process.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return {
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "open files": len(list((proc / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "child processes": len((proc / f"task/{process.pid}/children").read_text().split()),
        "files in the temporary folder": sum(len(files) for *_, files in os.walk(temporary)),
        "shared memory segments": len(list(Path("/dev/shm").iterdir())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=500)
    args = parser.parse_args()
    root = workplace.toy_data("soak_data", size=(64, 128), train=24, val=4)
    folder = workplace.FOLDER / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    interval = args.iterations // args.evaluations
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable, "-u", "-W", "ignore", "train.py", "--config", "configs/mscale_ocr_toy.yml",
            "--iters", str(args.iterations), "--save_interval", str(interval), "--do_eval", "--use_vdl",
            "--save_dir", str(folder), "--log_iters", "1", "--num_workers", "2", "--batch_size", "2",
            "--opts", f"train_dataset.dataset_root={root}", f"val_dataset.dataset_root={root}",
            f"train_dataset.transforms={TRANSFORMS}", "train_dataset.coarse_multiple=0", "lr_scheduler.warmup_iters=0",
        ]  # fmt: skip
        shared = len(list(Path("/dev/shm").iterdir()))
        environment = {**os.environ, "TMPDIR": temporary, "HMSA_CACHE": str(folder.parent / "soak_cache")}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=workplace.ROOT, env=environment
        )
        seen = []
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("error"):
                print(line)
            if "[EVAL]" in line:
                seen.append(observe(process, Path(temporary)))
                print(line.split(",")[0], json.dumps(seen[-1]), flush=True)
        if process.wait() != 0 or len(seen) < args.evaluations:
            sys.exit(f"train.py ended with status {process.returncode} after {len(seen)} evaluations")
        left = sum(len(files) for *_, files in os.walk(temporary))
        shared = len(list(Path("/dev/shm").iterdir())) - shared
    report(seen, left, shared, iterations=args.iterations)


def report(seen: list[dict[str, int]], left: int, shared: int, *, iterations: int) -> None:
    """Write the table: medians over the second and the last tenth of the run, as memory breathes from step to step."""
    tenth = max(1, len(seen) // 10)
    rows = ["| | second tenth | last tenth | |", "| --- | --- | --- | --- |"]
    for name in seen[0]:
        values = [one[name] for one in seen]
        early, late = (statistics.median(part) for part in (values[tenth : 2 * tenth], values[-tenth:]))
        if name == "memory":
            peaks = max(values[:tenth]), max(values)
            rows.append(f"| {name}, median | {early / 1e6:.1f} MB | {late / 1e6:.1f} MB | {late / early - 1:+.2%} |")
            rows.append(
                f"| {name}, most in the first tenth and in all | {peaks[0] / 1e6:.1f} MB | {peaks[1] / 1e6:.1f} MB | "
                f"{peaks[1] / peaks[0] - 1:+.2%} |"
            )
        else:
            rows.append(f"| {name} | {early:g} | {late:g} | {late - early:+g} |")
    rows += ["", f"Left behind after the end: {left} temporary files, {shared} shared memory segments."]
    what = f"{iterations} iterations, {len(seen)} checkpoints and evaluations, one process:"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + "\n".join([BEGIN, what, "", *rows, END]) + after, encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
