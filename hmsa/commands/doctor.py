# SPDX-License-Identifier: Apache-2.0
"""Check this installation: versions, devices, and whether everything works.

Every check runs in a process of its own, with a time limit. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Callable

from hmsa import cli
from hmsa.errors import UsageError, suggest
from hmsa.inference.backends import BACKENDS, CONVERTERS
from hmsa.system.version import PADDLE

REQUIRED = (
    "paddleseg numpy opencv-python pillow pydantic pyyaml packaging visualdl rich tqdm matplotlib requests filelock "
    "cityscapesscripts shtab"
)
EXTRAS = {
    **{
        backend.extra: (*backend.packages, *chain.from_iterable(CONVERTERS[form] for form in backend.forms))
        for backend in BACKENDS.values()
        if backend.extra
    },
    "serve": ("fastapi", "uvicorn", "python-multipart", "prometheus-client"),
}
FREE_BYTES = 2 * 10**9
"""For a checkpoint and the best one of the full recipe, or for its inference programs."""

OK, FAILED, SKIPPED = range(3)
"""Exit statuses of a check's process."""


class SkippedError(Exception):
    """Why a check does not apply here."""


# --- The checks: each returns what it found, or raises. Heavy packages are imported inside. ---


def packages() -> str:
    """Versions of everything that is needed or can be used."""
    missing = missing_packages()
    if missing:
        raise RuntimeError(f"missing: {', '.join(missing)}")
    found = {name: _version(name) for name in REQUIRED.split()}
    lines = [", ".join(f"{name} {number}" for name, number in found.items())]
    for extra, names in EXTRAS.items():
        parts = [f"{name} {_version(name)}" if _version(name) else f"{name} missing" for name in names]
        lines.append(f"extra [{extra}]: {', '.join(parts)}")
    return "\n".join(lines)


def missing_packages() -> list[str]:
    """What is needed besides Paddle, and is not installed."""
    return [name for name in REQUIRED.split() if _version(name) is None]


def has_paddle() -> bool:
    """Whether any Paddle is installed, which is not imported."""
    return any(map(_version, ("paddlepaddle", "paddlepaddle-gpu"))) or find_spec("paddle") is not None


def _version(package: str) -> str | None:
    names = ["opencv-python", "opencv-python-headless", "opencv-contrib-python"] if "opencv" in package else [package]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return None


def paddle() -> str:
    """Whether Paddle is there and tested."""
    if not has_paddle():
        raise RuntimeError("none is installed")
    if "packaging" in missing_packages():
        raise SkippedError("needs packaging, which is missing")
    from hmsa.system.environment import TESTED_PADDLES, is_tested, paddle_version

    found = paddle_version()
    tested = f"tested are {', '.join(TESTED_PADDLES)}"
    if found is None or not is_tested(found):
        raise RuntimeError(f"{found or 'an unknown version'}; {tested}")
    return f"{found}; {tested}"


def devices() -> str:
    """What Paddle computes on."""
    _prepare()
    import paddle.version

    from hmsa.system.environment import processor, threads
    from hmsa.system.memory import total_memory_bytes

    cpu, _ = processor()
    core = paddle.base.core
    onednn = getattr(core, "is_compiled_with_onednn", core.is_compiled_with_mkldnn)()
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    lines = [
        f"{cpu}, {os.cpu_count()} cores, {threads()} threads a process; oneDNN {'there' if onednn else 'missing'}",
        f"{gpus} GPUs, CUDA {paddle.version.cuda()}, cuDNN {paddle.version.cudnn()}" if gpus else "no GPU",
        f"computing on {paddle.device.get_device()}, with {total_memory_bytes() / 2**30:.1f} GiB",
    ]
    if paddle.device.is_compiled_with_cuda() and not gpus:
        raise RuntimeError("this Paddle is made for GPUs, but sees none")
    return "\n".join(lines)


def images() -> str:
    """PNG and JPEG with Paddle loaded."""
    _prepare()
    import cv2
    import numpy as np
    import paddle  # noqa: F401 (what it does to zlib is the point)
    from PIL import Image

    from hmsa.datasets.images import read_image, read_label

    pattern = np.random.default_rng(0).integers(0, 19, (70, 90), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("png", "jpg"):
            cv2.imwrite(f"{folder}/image.{ending}", cv2.merge([pattern] * 3))
            difference = np.abs(read_image(f"{folder}/image.{ending}")[..., 0].astype(int) - pattern).max()
            if difference > {"png": 0, "jpg": 40}[ending]:
                raise RuntimeError(f"a {ending} comes back different by {difference} levels")
        Image.fromarray(pattern).save(f"{folder}/label.png")
        if not np.array_equal(read_label(f"{folder}/label.png"), pattern):
            raise RuntimeError("a label comes back different")
    return "PNG and JPEG come back as they were written"


def training() -> str:
    """One step of a small network."""
    config, model = _small_network()
    import numpy as np
    import paddle

    from hmsa import builder

    optimizer = builder.build_optimizer(config, builder.build_lr_scheduler(config), model)
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(size=(2, 3, 64, 96)).astype(np.float32))
    labels = paddle.to_tensor(rng.integers(0, 19, (2, 64, 96)))
    model.train()
    before = [parameter.numpy() for parameter in model.parameters()]
    loss, _ = builder.build_loss(config)(model(images), labels)
    loss.backward()
    optimizer.step()
    after = [parameter.numpy() for parameter in model.parameters()]
    changed = sum(not np.array_equal(*pair) for pair in zip(before, after))
    if not all(np.isfinite(array).all() for array in [loss.numpy(), *after]) or changed < len(after) / 2:
        raise RuntimeError(f"the loss is {float(loss):g}, and {changed} of {len(after)} tensors have changed")
    return f"one step on {paddle.device.get_device()}, loss {float(loss):.3f}"


def export() -> str:
    """An exported network in Paddle Inference."""
    _, model = _small_network()
    from hmsa.deploy.export import ExportOptions, export

    with tempfile.TemporaryDirectory() as folder:
        return export(model, Path(folder) / "model", ExportOptions(output_op="softmax", transforms=[]))


def backend(name: str) -> str:
    """An image through a backend, and through the network itself."""
    config, model = _small_network()
    import numpy as np
    import paddle

    from hmsa.errors import UsageError
    from hmsa.inference.backends import choose
    from hmsa.inference.network import open_network

    try:
        choose(name)
    except UsageError as error:
        raise SkippedError(str(error)) from error
    image = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 97, 161)).astype(np.float32))
    model.eval()
    with paddle.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = model(image)["joint"].numpy()
        os.environ["HMSA_CACHE"] = folder
        options = {"scales": config.model.scales, "align_corners": config.model.align_corners, "backend": name}
        found = open_network(lambda: model, identity="doctor", **options)(image).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference < 1e-3:
        raise RuntimeError(f"differs from the network by {difference:.2g} of the largest logit")
    return f"differs from the network by {difference:.2g} of the largest logit"


def processes() -> str:
    """Two processes that add up a number."""
    _prepare()
    import paddle

    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if gpus == 1:
        raise SkippedError("one GPU")
    with tempfile.TemporaryDirectory() as folder:
        status, said = outcome(cli.launched(2, folder, [*HERE, "rank"]), 45)
        logs = [
            path.read_text(encoding="utf-8", errors="replace").strip()
            for path in sorted(Path(folder).glob("workerlog.*"))
        ]
    if status != OK or not any("the sum is 3" in log for log in logs):
        raise RuntimeError("; ".join(log.splitlines()[-1] for log in [*logs, said] if log))
    return f"two processes understand each other ({'nccl' if gpus else 'gloo'})"


def rank() -> str:
    """One of the processes of `processes`."""
    _prepare()
    import numpy as np

    from hmsa.distributed import ranks

    ranks.init()
    total = ranks.all_reduce_sum(np.array([ranks.rank() + 1]))
    ranks.done()
    return f"the sum is {total[0]}"


def cache() -> str:
    """The folder for inference programs."""
    _prepare()
    from hmsa.system.files import cache_folder, writable_folder

    return f"{writable_folder(cache_folder())} can be written to"


def disk() -> str:
    """Room where checkpoints, temporary files and inference programs go."""
    from hmsa.system.files import cache_folder

    kept = next(folder for folder in (cache_folder(), *cache_folder().parents) if folder.is_dir())
    free = {folder: shutil.disk_usage(folder).free for folder in (Path.cwd(), Path(tempfile.gettempdir()), kept)}
    found = ", ".join(f"{room / 1e9:.1f} GB free in {folder}" for folder, room in free.items())
    if min(free.values()) < FREE_BYTES:
        raise RuntimeError(found)
    return found


def _prepare() -> None:
    from hmsa.system.environment import prepare

    prepare()


def _small_network() -> tuple:
    """(config, model) of the toy recipe with a very small head and weights that give different classes."""
    _prepare()
    import numpy as np

    from hmsa import builder
    from hmsa.config.reading import load_config

    sizes = ["model.ocr_mid_channels=16", "model.ocr_key_channels=8", "model.attention_mid_channels=8"]
    config = load_config("mscale_ocr_toy", [*sizes, "model.scales=[0.5, 1.0]", "lr_scheduler.warmup_iters=0"])
    model = builder.build_model(config)
    rng = np.random.default_rng(0)
    for tensor in model.state_dict().values():
        if tensor.ndim == 4:
            scale = (8 if tensor.shape[0] == config.model.num_classes else 1) / np.sqrt(np.prod(tensor.shape[1:]))
            tensor.set_value(rng.normal(scale=scale, size=tensor.shape).astype(np.float32))
    return config, model


# --- Running them. ---


@dataclass(frozen=True)
class Check:
    """What is run, what to do if it fails, and after how many seconds it counts as failed."""

    run: Callable[[], str]
    advice: str
    seconds: int = 60


PADDLE_PAGE = "https://www.paddlepaddle.org.cn/en/install/quick"
REINSTALL = (
    f'install a tested Paddle: on a CPU pip install "{PADDLE}"; for GPUs the paddlepaddle-gpu that fits '
    f"your CUDA version, as {PADDLE_PAGE} says"
)
CHECKS = {
    "packages": Check(packages, "pip install . in the folder of this project, which installs all of them"),
    "paddle": Check(paddle, REINSTALL),
    "devices": Check(devices, f"install the Paddle that fits your CUDA version, or the one for CPUs: {PADDLE_PAGE}"),
    "images": Check(images, "reinstall opencv-python and pillow, and see that nothing loads Paddle before OpenCV"),
    "training": Check(training, REINSTALL),
    "export": Check(export, f"{REINSTALL}; until then, evaluate with --engine eager"),
    **{
        name: Check(partial(backend, name), f"pip install .[{row.extra or 'cpu'}], or use another --engine")
        for name, row in BACKENDS.items()
        if row.forms
    },
    "processes": Check(processes, "train in one process; see that a firewall lets this machine talk to itself", 75),
    "cache": Check(cache, "set HMSA_CACHE to a folder that can be written to"),
    "disk": Check(disk, f"make room: {FREE_BYTES / 1e9:g} GB are wanted in each; TMPDIR and HMSA_CACHE choose others"),
}


HERE = ("doctor", "--here")
"""What, followed by a check's name, runs it in a process of its own."""


def outcome(command: list[str], seconds: float) -> tuple[int, str]:
    """Run a check's command -> its status and what it said; whatever ends it, and however slow it is."""
    process = subprocess.Popen(
        command,
        env=cli.environment_of_commands(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # A launcher ends its processes when it is asked to, and leaves them behind when it is killed.
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.communicate(timeout=patience)
        return FAILED, f"no end after {seconds:g} s"
    if process.returncode < 0:
        return FAILED, f"ended by {signal.Signals(-process.returncode).name}"
    if process.returncode not in (OK, FAILED, SKIPPED):
        return FAILED, f"ended with the status {process.returncode}"
    if process.returncode == OK:
        return OK, said.rpartition(MARK)[2].strip()
    return process.returncode, (errors.strip().splitlines() or ["ended without a word"])[-1]


MARK = "\0"
"""Before what a check says, so that it is told from what libraries print."""


def check_here(run: Callable[[], str]) -> int:
    """Run a check in this process and print what `outcome` reads."""
    try:
        print(f"{MARK}{run()}")
    except SkippedError as reason:
        print(reason, file=sys.stderr)
        return SKIPPED
    except Exception as error:
        reason = " ".join(str(error).split("Error Message Summary:")[-1].split())[:400]
        name = "" if isinstance(error, RuntimeError) and reason else f"{type(error).__name__}: "
        print(f"{name}{reason}", file=sys.stderr)
        return FAILED
    return OK


def run_checks(names: Sequence[str] = ()) -> int:
    """Run the checks of these names, all if there are none; the number that failed, at most 1."""
    print(f"Python {platform.python_version()} in {sys.prefix}, {platform.platform()}")
    lacking = [*missing_packages(), *([] if has_paddle() else ["Paddle"])]
    first = ("packages", "paddle") if lacking else ()  # which say what to do
    failed = 0
    for name in dict.fromkeys((*first, *(names or CHECKS))):
        check = CHECKS[name]
        if lacking and name not in first:
            others = f" and {len(lacking) - 1} more that are missing" if len(lacking) > 1 else ", which is missing"
            status, said = SKIPPED, f"needs {lacking[0]}{others}"
        else:
            status, said = outcome(cli.command(*HERE, name), check.seconds)
        line, *others = said.splitlines() or [""]
        print(f"{('ok', 'FAILED', 'skipped')[status]:8} {name:12} {line}")
        for line in [*others, *([f"to do: {check.advice}"] if status == FAILED else [])]:
            print(f"{'':21} {line}")
        sys.stdout.flush()
        failed += status == FAILED
    print("everything works" if not failed else f"{failed} checks failed")
    return min(failed, 1)


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"only some of: {', '.join(CHECKS)}")
    parser.add_argument("--here", choices=[*CHECKS, "rank"], help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> None:
    for name in args.checks:
        if name not in CHECKS:
            raise UsageError(f"expected the name of a check, found {name}: {suggest(name, CHECKS)}")
    if args.here:
        sys.exit(check_here(rank if args.here == "rank" else CHECKS[args.here].run))
    sys.exit(run_checks(args.checks))
