# SPDX-License-Identifier: Apache-2.0
"""Exporting a network: traced, converted, compared with itself, described, and only then put in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import paddle
import yaml
from paddle.version import full_version as PADDLE_VERSION

from hmsa.datasets.classes import Classes
from hmsa.datasets.transforms import DIVISORS
from hmsa.deploy import quantize
from hmsa.deploy.engines import ENGINES, Session, is_installed, open_export
from hmsa.deploy.formats import FORMATS, FileSet, Work, check_installed
from hmsa.deploy.network import PLAIN, Answer, ExportedNetwork, smallest_side
from hmsa.deploy.parity import CHECKED_SHAPES, Agreement, Case, compare, make_cases
from hmsa.deploy.runtime import DEPLOY_FILE, read_deployment
from hmsa.errors import DataError, UsageError, printable
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.fold import copy_on_cpu, simplified
from hmsa.inference.paddle_inference import Program, open_predictor, program_of
from hmsa.inference.tracing import DYNAMIC_SHAPE, write_program, writes_json
from hmsa.models import MscaleOCRNet
from hmsa.system.device import on_cpu
from hmsa.system.files import LOCK_FILE, FolderLock, check_whole, disk_errors, sha256, writable_folder

HEADER = """\
# What a program needs to run the model beside this file (docs/deployment.md has one of 15 lines): `transforms` turn an
# image of `channel_order`, uint8, into the input; Normalize is (pixel / pixel_divisor - mean) / std. Where an image has
# other than three channels, the divisor depends on its numbers.
"""

_FILES = (DEPLOY_FILE, "model.json", *(name for row in FORMATS for name in row.files))


MAX_PIXELS = 1 << 28
"""Of an image that a program is fixed to."""


@dataclass(frozen=True)
class ExportOptions:
    """How a network is written, and what `deploy.yaml` says about its images and classes.

    Raises:
        UsageError: a size that cannot be, a form that this Paddle does not have, or transforms that cannot be put into
            the program.
    """

    output_op: str  # "argmax", "softmax" or "none"
    transforms: Sequence[dict[str, Any]]  # {type, **arguments} of what prepares an image
    classes: Optional[Classes] = None  # "class 0", ... in PaddleSeg's palette without them
    input_shape: tuple[Optional[int], ...] = DYNAMIC_SHAPE  # N, C, H, W; None is any size
    in_channels: int = 3  # C of the images
    program: Optional[str] = None  # "pdmodel", which every reader of Paddle's models takes, or "json", that of Paddle 3
    formats: Sequence[FileSet] = (FORMATS[0],)  # rows of the table, Paddle's own first
    with_confidence: bool = False
    with_attention: bool = False
    preprocess: bool = False  # the program takes uint8 [N, H, W, 3] and normalises it itself
    averaging: InferenceOptions = PLAIN  # scales and flips inside the program
    calibration: Optional[Path] = None  # a folder of images, for int8
    tflite_python: Optional[Path] = None  # interpreter of an environment with TensorFlow

    def __post_init__(self) -> None:
        shape = self.input_shape
        if len(shape) != 4 or shape[1] != self.in_channels or any(side is not None and side < 1 for side in shape):
            sides = " ".join("-1" if side is None else str(side) for side in shape)
            raise UsageError(
                f"the input shape should be N {self.in_channels} H W, -1 for any number or size, but it is {sides}",
                settings=["input_shape"],
            )
        if (shape[2] or 1) * (shape[3] or 1) > MAX_PIXELS:
            raise UsageError(
                f"expected images of at most {MAX_PIXELS} pixels, found {shape[3]}x{shape[2]}: export for a smaller "
                "size, and cut images into tiles",
                settings=["input_shape"],
            )
        if self.program == "json" and not writes_json():
            raise UsageError(
                f"a program of the form json needs Paddle 3, but this is {PADDLE_VERSION}; choose pdmodel",
                settings=["program"],
            )
        if self.preprocess and (self.in_channels != 3 or [step["type"] for step in self.transforms] != ["Normalize"]):
            steps = ", ".join(step["type"] for step in self.transforms) or "nothing"
            raise UsageError(
                "expected images of 3 channels and transforms that do nothing but Normalize, to put them into the "
                f"program, found {self.in_channels} channels and {steps}: leave it out, and prepare images outside",
                settings=["preprocess"],
            )
        if any(row.precision == "int8" for row in self.formats) and self.calibration is None:
            raise UsageError(
                "expected a folder of images like those to come, on which int8 is calibrated, found none: name one",
                settings=["calibration"],
            )
        if any(row.format == "tflite" for row in self.formats) and None in shape:
            raise UsageError(
                "expected one input shape for tflite, whose programs have a fixed size, found any: give N C H W",
                settings=["format", "input_shape"],
            )

    @property
    def normalize(self) -> Optional[tuple[Sequence[float], Sequence[float]]]:
        """Mean and std that an image is normalised by, if it is."""
        found = next((step for step in self.transforms if step["type"] == "Normalize"), None)
        return (found["mean"], found["std"]) if found else None

    @property
    def answer(self) -> Answer:
        """What the exported network takes and gives."""
        return Answer(
            output_op=self.output_op,
            confidence=self.with_confidence,
            attention=self.with_attention,
            normalize=self.normalize if self.preprocess else None,
            averaging=self.averaging,
        )

    @property
    def program_shape(self) -> tuple[Optional[int], ...]:
        """The input's shape in the layout that the program takes."""
        sides = dict(zip("NCHW", self.input_shape))
        return tuple(sides[axis] for axis in self.answer.input_layout)


def export(model: paddle.nn.Layer, save_dir: str | Path, options: ExportOptions) -> str:
    """Write model, parameters and `deploy.yaml`, once the written model has answered as the network does.

    Files of an earlier export in `save_dir` are replaced; other files are left alone, and so is the model. The two are
    compared on the CPU, in every format and by every engine that reads it and is installed.

    What is being done is told on stderr.

    Returns:
        A line that says where the comparison was made, a table of all formats and engines, and lines about int8 and
        about files of an earlier export, if there are any.

    Raises:
        UsageError: a package that a format needs is missing.
        DataError: see `check_target`; or the network cannot be traced, or the exported model gives other answers.
    """
    target = Path(save_dir)
    if options.with_attention and not isinstance(model, MscaleOCRNet):
        raise UsageError(
            f"expected a network with attention, found {type(model).__name__}: leave it out",
            settings=["with_attention"],
        )
    check_installed(options.formats, tflite_python=options.tflite_python)
    calibration = None
    if options.calibration is not None:
        calibration = quantize.calibration_of(options.calibration, options.in_channels)
    workplace = check_target(target)
    shapes = checked_shapes(options)
    with disk_errors(target), on_cpu(), _folder_of_its_own(workplace) as own:
        folder, scratch = own / "export", own / "scratch"
        folder.mkdir()
        scratch.mkdir()
        write = tracer(model, options)
        program = write_paddle(write, folder / "model", options)
        predictor = open_predictor(program, program.with_suffix(".pdiparams"))
        entry = describe(model, program, predictor, options)
        work = Work(
            folder=folder,
            scratch=scratch,
            program=program,
            entry=entry,
            write_json=lambda path: write(path, old_form=False),
            calibration=calibration,
            tflite_python=options.tflite_python,
        )
        write_formats(work, options.formats)

        cases = make_cases(model, options.answer, shapes, normalize=options.normalize)
        verified = verify(work, options.formats, cases, program_of(predictor))

        for described, row in zip(entry["formats"], options.formats):
            described["engines"] = {engine: str(found) for (of, engine), found in verified.items() if of is row}
        write_description(folder, entry)
        lines = _told(verified, entry["formats"], folder, shapes)
        return "\n".join([*lines, *publish(folder, target)])


@contextlib.contextmanager
def _folder_of_its_own(workplace: Path) -> Iterator[Path]:
    """A new folder, deleted in the end; before it those that killed exports left, which nobody holds."""
    for left in workplace.glob(".export-*"):
        with FolderLock(left) as lock, contextlib.suppress(OSError):
            if (left / LOCK_FILE).is_file() and lock.take():
                _tell(f"deleting {left}, which an export that was killed left")
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=workplace, prefix=".export-") as name, FolderLock(Path(name)) as lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            lock.take()
        yield Path(name)


def checked_shapes(options: ExportOptions) -> list[tuple[int, ...]]:
    """Where the export is compared with the network: a side that is fixed takes the place of those of
    `CHECKED_SHAPES`."""
    shapes = [tuple(fixed or side for fixed, side in zip(options.input_shape, known)) for known in CHECKED_SHAPES]
    return list(dict.fromkeys(shapes))


def write_formats(work: Work, rows: Sequence[FileSet]) -> None:
    """Write the files of all formats, and `deploy.yaml`."""
    for row in rows:
        _tell(f"writing {row.format} {row.precision}")
        files, told = list(row.files), {}
        if row.write is None:
            files = [work.entry["model"], work.entry["params"]]
        else:
            try:
                told = row.write(work)
            except DataError:
                check_whole(work.program)  # a converter has other words for a full disk
                raise
        work.entry["formats"].append({"format": row.format, "precision": row.precision, "files": files, **told})
        work.entry["sha256"].update({file: sha256(work.folder / file) for file in files})
    write_description(work.folder, work.entry)


def verify(
    work: Work, rows: Sequence[FileSet], cases: Sequence[Case], own: Program
) -> dict[tuple[FileSet, str], Agreement]:
    """(row, engine) -> how the engine's answers compare with the network's, of all that are installed.

    Paddle's program stays where another engine cannot open it, which a warning then says.

    Args:
        own: Paddle's program, open.

    Raises:
        DataError: they are too far from them.
    """
    found = {}
    entries = {(entry.format, entry.precision): entry for entry in read_deployment(work.folder).formats}
    for row in rows:
        entry = entries[row.format, row.precision]
        for engine in row.engines:
            # TFLite runs where it was written.
            if not ENGINES[engine].can_read(entry) or not (engine == "tflite" or is_installed(engine)):
                continue
            _tell(f"comparing {row.format} {row.precision} in {engine} with the network")
            try:
                session = _session(work, row, engine, own)
            except DataError as error:
                if row.write is not None:
                    raise
                print(printable(f"warning: {engine} cannot read {entry.files[0]}: {error}"), file=sys.stderr)
                continue
            reader = f"{engine}{f' {PADDLE_VERSION}' if engine == 'paddle' else ''} ({row.format} {row.precision})"
            found[row, engine] = compare(cases, session, reader=reader, precision=row.precision)
    return found


def _session(work: Work, row: FileSet, engine: str, own: Program) -> Session:
    if engine == "paddle":
        return Session(read_deployment(work.folder), own)
    if engine == "tflite":
        from hmsa.deploy import tflite

        deployment = read_deployment(work.folder)
        assert work.tflite_python is not None
        (entry,) = (entry for entry in deployment.formats if entry.format == "tflite")
        path = work.folder / entry.files[0]
        return Session(deployment, tflite.open_elsewhere(path, work.tflite_python, entry, deployment))
    return open_export(work.folder, engine, row.precision, format=row.format)


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _told(
    verified: dict[tuple[FileSet, str], Agreement],
    described: Sequence[dict[str, Any]],
    folder: Path,
    shapes: Sequence[Sequence[int]],
) -> list[str]:
    """Where the comparison was made, its table, and how int8 agreed on the calibration folder."""
    at = ", ".join("x".join(map(str, shape)) for shape in shapes)
    agreements = [
        f"{entry['format']} {entry['precision']}, beside fp32: {entry['agreement']}"
        for entry in described
        if "agreement" in entry
    ]
    table = _table(verified, described, folder)
    return [f"compared with the network on drawn streets of {at}:", *table, *agreements]


def _table(
    verified: dict[tuple[FileSet, str], Agreement], described: Sequence[dict[str, Any]], folder: Path
) -> list[str]:
    """The lines of a table, a row for every format and engine."""
    files = {(entry["format"], entry["precision"]): entry["files"] for entry in described}
    rows = [("format", "precision", "engine", "labels equal", "largest difference", "MB")]
    for (row, engine), found in verified.items():
        size = sum((folder / file).stat().st_size for file in files[row.format, row.precision]) / 1e6
        difference = "-" if found.largest is None else f"{found.largest:.1e} ({found.of})"
        rows.append((row.format, row.precision, engine, f"{100 * found.equal:.4f} %", difference, f"{size:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows]


def tracer(model: paddle.nn.Layer, options: ExportOptions) -> Callable[..., Path]:
    """What writes the network, simplified once: (path, old_form=...) -> the program's file; see `write_program`."""
    network = copy_on_cpu(model)
    if isinstance(network, MscaleOCRNet):
        simplified(network)
    answer = options.answer

    def write(path: Path, *, old_form: bool) -> Path:
        exported = ExportedNetwork(network, answer)
        exported.eval()
        return write_program(
            exported,
            path,
            input_shape=options.program_shape,
            old_form=old_form,
            input_name=answer.input_name,
            dtype=answer.input_dtype,
        )

    return write


def write_paddle(write: Callable[..., Path], path: Path, options: ExportOptions) -> Path:
    """Write the network in the form asked for, or in the first of both that can be written -> the program's file."""
    forms = [options.program] if options.program else ["pdmodel", *["json"] * writes_json()]
    for form in forms:
        try:
            return write(path, old_form=form == "pdmodel")
        except OSError:
            raise
        # Paddle raises whatever comes first.
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            problem = f"Paddle {PADDLE_VERSION} cannot write this network as {form} ({said[-1].strip():.200})"
            if form == forms[-1]:
                raise DataError(
                    f"expected a network that can be exported, but {problem}; try another form", settings=["program"]
                ) from error
            said = f"warning: {problem}: it is written as json, which fewer programs read"
            print(printable(said), file=sys.stderr)
    raise AssertionError("the last form returns or raises")


def describe(model: paddle.nn.Layer, program: Path, predictor: Any, options: ExportOptions) -> dict[str, Any]:
    """What `deploy.yaml` says of the program that was written and of the parameters beside it."""
    params = program.with_suffix(".pdiparams")
    answer = options.answer
    outputs = answer.outputs(model)
    classes = options.classes or Classes.numbered(getattr(model, "num_classes", 0))
    return {
        "model": program.name,
        "params": params.name,
        "transforms": [] if options.preprocess else list(options.transforms),
        "input_shape": list(options.program_shape),
        "min_size": smallest_side(model, options.averaging),
        "output_op": options.output_op,
        "output_dtype": outputs[0]["dtype"],
        "input_name": predictor.get_input_names()[0],
        "input_dtype": answer.input_dtype,
        "input_layout": answer.input_layout,
        "channel_order": "RGB" if options.in_channels == 3 else "as stored",
        "pixel_divisor": 255 if options.in_channels == 3 else dict(DIVISORS),
        "output_name": predictor.get_output_names()[0],
        "output_layout": outputs[0]["layout"],
        "outputs": outputs,
        "class_names": list(classes.names),
        "class_colors": [list(color) for color in classes.colors],
        "ignore_index": classes.ignore_index,
        "paddle_version": PADDLE_VERSION,
        "formats": [],
        "sha256": {},
    }


def write_description(folder: Path, entry: dict[str, Any]) -> None:
    text = yaml.safe_dump({"Deploy": entry}, sort_keys=False, default_flow_style=None, width=120)
    (folder / DEPLOY_FILE).write_text(HEADER + text, encoding="utf-8")


def publish(source: Path, target: Path) -> list[str]:
    """Move an export in. Without `deploy.yaml`, which goes first and comes last, a folder is not an export.

    Returns:
        Lines that name what was there of an earlier export, replaced or removed, if anything was.
    """
    target.mkdir(exist_ok=True)
    with FolderLock(target) as lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            while not lock.take():  # another export ends there just now
                time.sleep(0.1)
        return _moved(source, target)


def _moved(source: Path, target: Path) -> list[str]:
    earlier = _earlier_export(target)
    written = sorted(source.iterdir(), key=lambda path: path.name == DEPLOY_FILE)
    names = {path.name for path in written}
    told: dict[str, list[str]] = {"replaced in": [], "removed, being of the earlier export, from": []}
    replaced, removed = told.values()
    for file in earlier:
        of = datetime.fromtimestamp(file.lstat().st_mtime)
        (replaced if file.name in names else removed).append(f"{file.name} of {of:%Y-%m-%d %H:%M}")

    for path in earlier:
        path.unlink()
    for path in written:
        path.replace(target / path.name)
    return [f"{what} {target}: {', '.join(files)}" for what, files in told.items() if files]


def check_target(save_dir: str | Path) -> Path:
    """The folder in which an export into `save_dir` is prepared: itself, or the one it will be made in.

    Raises:
        DataError: nothing can be written there, or something that no earlier export wrote has the name of its files.
    """
    target = Path(save_dir)
    with disk_errors(target):
        _earlier_export(target)
    return writable_folder(target if target.exists() or target.is_symlink() else target.parent)


def _earlier_export(target: Path) -> list[Path]:
    """The files of an earlier export in a folder, `deploy.yaml` first: those that it names, and itself.

    Raises:
        DataError: another file, or a folder, has one of their names.
    """
    there = [path for path in (target / name for name in _FILES) if os.path.lexists(path)]
    ours = set()
    with contextlib.suppress(DataError):
        deployment = read_deployment(target)
        ours = {DEPLOY_FILE, deployment.model, deployment.params, *deployment.sha256}

    for path in there:
        if path.is_dir() or path.name not in ours:
            found = "a folder" if path.is_dir() else f"one that no {DEPLOY_FILE} there describes"
            raise DataError(
                f"{path}: expected a file of an earlier export or nothing, found {found}; move it away, or choose "
                "another folder",
                settings=["save_dir"],
            )
    return there
