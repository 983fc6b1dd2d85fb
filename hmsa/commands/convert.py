# SPDX-License-Identifier: Apache-2.0
"""Make masks that can be trained on of what people drew: labelme's and COCO's polygons, masks in colours, CamVid,
Cityscapes."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa import cli
from hmsa.errors import DataError, UsageError, printable, suggest
from hmsa.system import environment

if TYPE_CHECKING:
    from hmsa.datasets.classes import Classes
    from hmsa.datasets.drawn.masks import LeftOut, Result, Task

MASKS, NAMES, RECIPE, REPORT = "masks", "classes.txt", "classes.yml", "left_out.txt"
"""What lies in the folder of --output."""


def main(args: argparse.Namespace) -> None:
    with contextlib.suppress(UsageError):  # masks are made without Paddle, too
        environment.prepare()
    args.run(args)


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        description="Make masks of what people drew: PNGs with a class number in every pixel, 255 where a pixel counts "
        "for nothing. Beside them are written the classes (classes.txt, and classes.yml for a recipe) and what was "
        "left out (left_out.txt). Masks that are there already are compared and never replaced by others unasked, so "
        "that a run that was stopped may be started again."
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)

    add = kinds.add_parser("labelme", help="labelme's JSON files, one an image", description=labelme.__doc__)
    _add_drawn_flags(add, "folder of the JSON files, or one of them")
    add.add_argument("--images", type=Path, help="folder of the images, if not beside the JSON files")
    add.add_argument(
        "--order", nargs="+", default=[], metavar="LABEL", help="labels from below to above; else later lies above"
    )
    add.add_argument(
        "--holes", nargs="+", metavar="LABEL", help="labels that cut holes (default: hole, _hole_, __hole__)"
    )
    add.set_defaults(run=labelme)

    add = kinds.add_parser("coco", help="COCO's JSON file of all images", description=coco.__doc__)
    _add_drawn_flags(add, "the JSON file, such as instances_train.json")
    add.add_argument("--images", type=Path, required=True, help="folder that its file names start in")
    add.add_argument(
        "--order",
        choices=["area", "file"],
        default="area",
        help="what lies above: smaller areas, or what comes later in the file (default: %(default)s)",
    )
    add.add_argument(
        "--crowd",
        choices=["class", "ignore"],
        default="class",
        help="what crowds (iscrowd: 1) become: their class, or 255 (default: %(default)s)",
    )
    add.set_defaults(run=coco)

    add = kinds.add_parser("cityscapes", help="Cityscapes' label ids or polygons", description=CITYSCAPES)
    add_cityscapes_flags(add)
    add.set_defaults(run=cityscapes)

    add = kinds.add_parser("camvid", help="CamVid as it is published", description=camvid.__doc__)
    add.add_argument("--dataset_root", type=Path, required=True, help="folder that CamVid lies in, or is to")
    add.add_argument("--num_classes", type=int, choices=[11, 32], help="32 is without Void, which is ignored")
    add.add_argument("--download", action="store_true", help="download it there first, 0.2 (11 classes) or 0.6 GB (32)")
    _add_output_flags(add)
    add.set_defaults(run=camvid)

    add = kinds.add_parser(
        "voc-colours", aliases=["voc-colors"], help="masks in colours", description=voc_colours.__doc__
    )
    add.add_argument("--masks", type=Path, required=True, help="folder of the masks in colours")
    add.add_argument(
        "--classes", type=Path, metavar="FILE", help="text: a class a line with its R G B (default: Pascal VOC's)"
    )
    add.add_argument("--ignore", nargs="+", default=[], metavar="NAME", help="names in FILE whose colour becomes 255")
    add.add_argument("--nearest", action="store_true", help="colours of no class become the nearest; else 255")
    _add_output_flags(add)
    add.set_defaults(run=voc_colours)
    return parser


def _add_drawn_flags(parser: cli.Parser, what: str) -> None:
    parser.add_argument("--annotations", type=Path, required=True, help=what)
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="the classes in their order, or a text file with one a line (and its R G B); default: all that occur",
    )
    parser.add_argument("--ignore", nargs="+", default=[], metavar="LABEL", help="labels that become 255")
    parser.add_argument(
        "--unlabelled",
        choices=["background", "ignore"],
        default="background",
        help="what pixels are that nobody drew in: a class of its own, or 255 (default: %(default)s)",
    )
    _add_output_flags(parser)


def _add_output_flags(parser: cli.Parser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for the masks and what belongs to them")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that are there and differ")
    _add_worker_flag(parser)


def _add_worker_flag(parser: cli.Parser) -> None:
    parser.add_argument("--num_workers", type=cli.count, default=os.cpu_count(), help="threads (default: %(default)s)")


# --- Kinds ---


def labelme(args: argparse.Namespace) -> None:
    """Draw labelme's polygons, rectangles, circles and masks. Later shapes lie over earlier ones. A shape labelled
    "hole" is cut out of its group's, or else of the shape below it; so is one that lies wholly inside another of the
    same label and group. Points and lines fill nothing and are reported."""
    from hmsa.datasets.drawn import labelme, masks, tables

    holes = args.holes or labelme.HOLES
    table = tables.given_table(args.classes) if args.classes else None
    if not args.holes and table:
        holes = [label for label in holes if label not in table.names]
    annotated, left_out = labelme.find(args.annotations, args.images, but=[args.output])
    labels = labelme.all_labels(annotated, but=holes)
    _check_known("--ignore", args.ignore, labels)
    if table is None:
        table = tables.Table(tuple(labels))
        _say_what_looks_alike(table.names)
    numbering = tables.number(table, background=args.unlabelled == "background", ignored=args.ignore)
    _check_known("--order", args.order, numbering.numbers)
    meaning = labelme.Meaning(numbering.numbers, numbering.unlabelled, frozenset(holes), tuple(args.order))

    def task(item: Any) -> Task:
        return masks.Task(item.name, str(item.path), lambda notes: labelme.draw(item, meaning, notes))

    root = args.annotations if args.annotations.is_dir() else args.annotations.parent
    _write(args, map(task, annotated), left_out, numbering.classes)
    _print_next(args, args.images or root)


def coco(args: argparse.Namespace) -> None:
    """Draw COCO's polygons and run lengths, plain or compressed. Categories are numbered in the order of their ids,
    which may have gaps."""
    from hmsa.datasets.drawn import coco, masks, tables

    annotations = coco.read(args.annotations, args.images, but=[args.output])
    _check_known("--ignore", args.ignore, annotations.categories.values())
    table = tables.given_table(args.classes) if args.classes else annotations.table()
    for name in coco.repeated_names(annotations):
        _warn(f"several categories are named {name!r}: they become one class")
    numbering = tables.number(table, background=args.unlabelled == "background", ignored=args.ignore)
    meaning = coco.Meaning(numbering.numbers, numbering.unlabelled, args.order, args.crowd == "class")

    def task(image: Any) -> Task:
        name = coco.mask_of(image, args.images)
        return masks.Task(name, str(image.path), lambda notes: coco.draw(annotations, image, meaning, notes))

    _write(args, map(task, annotations.images), annotations.left_out, numbering.classes)
    _print_next(args, args.images)


CITYSCAPES = (
    "Write gtFine/<split>/<city>/X_gtFine_labelTrainIds.png for every X: from X_gtFine_labelIds.png, or where that is "
    "missing from X_gtFine_polygons.json. Files that are there already are kept."
)


def add_cityscapes_flags(parser: cli.Parser) -> None:
    parser.add_argument("--cityscapes_path", type=Path, required=True, help="folder that gtFine lies in")
    _add_worker_flag(parser)


def cityscapes(args: argparse.Namespace) -> None:
    from hmsa.datasets.convert import Job, convert_all, fine_jobs, train_ids, write_label

    def convert(job: Job) -> None:
        write_label(job.target, train_ids(job.source), colored=False)

    print(convert_all(fine_jobs(args.cityscapes_path), convert, num_workers=args.num_workers))


def camvid(args: argparse.Namespace) -> None:
    """Make masks of CamVid, and lists of its usual parts for training, validation and test (train.txt, val.txt,
    test.txt: 367, 101 and 233 images). Understood are the folders of the SegNet tutorial (train, trainannot, ...: 11
    classes, 480x360) and the original (701_StillsRaw_full, LabeledApproved_full: 32 classes, of which Void is ignored,
    or the same 11; 960x720). CamVid is for research; its authors ask to be cited."""
    from hmsa.config.text import one_line
    from hmsa.datasets.drawn import camvid, tables

    found = camvid.find(args.dataset_root, but=[args.output])
    if found is None and args.download:
        _download_camvid(args.dataset_root, args.num_classes or 11)
        found = camvid.find(args.dataset_root, but=[args.output])
    if found is None:
        raise DataError(
            f"{args.dataset_root} should hold CamVid as the SegNet tutorial has it (train, trainannot, ...) or the "
            "original (701_StillsRaw_full, LabeledApproved_full), but it holds neither: correct the path, or add "
            "--download"
        )
    count = args.num_classes or found.form
    classes = tables.number(camvid.table_of(found, count), background=False).classes
    _write(args, camvid.tasks(found, count), found.left_out, classes)
    for split in camvid.SPLITS:
        samples = [sample for sample in found.samples if sample.split == split]
        pairs = [(sample.image, args.output / MASKS / camvid.mask_name(sample)) for sample in samples]
        _write_list(args.output / f"{split}.txt", [pair for pair in pairs if pair[1].is_file()], args.output)
    print("\nnext: a recipe with these classes and")
    print(_printable_lines(_sections(one_line(args.output.as_posix()), size=480 if found.form == 11 else 960)))


def _sections(root: str, size: int) -> str:
    """The data sets of a recipe that reads the lists below `root`; trained is on squares of images `size` wide."""
    normalize = "{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
    crop = size * 3 // 4
    augment = [
        "{type: ResizeStepScaling, min_scale_factor: 0.5, max_scale_factor: 2.0, scale_step_size: 0}",
        f"{{type: RandomPaddingCrop, crop_size: [{crop}, {crop}]}}",
        "{type: RandomHorizontalFlip}",
    ]
    lines = []
    for mode, transforms in (("train", [*augment, normalize]), ("val", [normalize])):
        lines += [f"{mode}_dataset:", "  _inherited_: false", "  type: Dataset", f"  mode: {mode}"]
        lines += [f"  dataset_root: {root}", f"  {mode}_path: {mode}.txt", "  transforms:"]
        lines += [f"    - {transform}" for transform in transforms]
    return "\n".join(lines)


def voc_colours(args: argparse.Namespace) -> None:
    """Turn masks in colours into masks of class numbers. Without --classes the colours are Pascal VOC's; its cream
    border and white become 255. Other colours, as smoothed edges have them, become 255 too and are reported, or the
    nearest of the classes' with --nearest."""
    from hmsa.datasets.drawn import tables, voc

    table = tables.read_table(args.classes) if args.classes else voc.VOC
    if table.colors is None:
        raise DataError(f"{args.classes} should give every class its colour, R G B, but it gives none: add them")
    paths = voc.find(args.masks, but=[args.output])
    _check_known("--ignore", args.ignore, table.names)
    numbering = tables.number(table, background=False, ignored=args.ignore)
    code = voc.coding(numbering.classes.colors, ignored=[*voc.BORDERS, *tables.ignored_colors(table, args.ignore)])
    tasks = voc.tasks(paths, args.masks, code, nearest=args.nearest)
    _write(args, tasks, [], numbering.classes)
    _print_next(args, "<folder of the images>")


# --- What they share ---


def _write(args: argparse.Namespace, tasks: Iterable[Task], left_out: Sequence[LeftOut], classes: Classes) -> None:
    """Write the masks and all that goes with them, and say so. DataError if none came of it, or some differ."""
    from hmsa.datasets.drawn import masks, tables
    from hmsa.system.files import writable_folder, write_atomically

    writable_folder(args.output)
    texts = {NAMES: tables.names_text(classes), RECIPE: tables.recipe_text(classes)}
    is_new = not any((args.output / MASKS).rglob("*.png"))
    for name, text in texts.items():
        _write_text(args.output / name, text, overwrite=args.overwrite or is_new)

    result = masks.write_masks(
        tasks, args.output / MASKS, classes, num_workers=args.num_workers, overwrite=args.overwrite
    )
    all_left_out = sorted([*left_out, *result.left_out])
    lines = [f"{item.kind}\t{printable(str(item))}" for item in all_left_out]
    write_atomically(args.output / REPORT, "".join(f"{line}\n" for line in lines).encode())

    if all_left_out:
        print("\n".join(map(_printable, masks.report(all_left_out).splitlines())))
        print(f"all {len(all_left_out)} lines: {_printable(str(args.output / REPORT))}\n")
    print(_printable(f"{result.written} written, {result.before} there before, in {args.output / MASKS}"))
    _check(result, args)
    print(f"\n{_printable_lines(texts[RECIPE])}")


def _print_next(args: argparse.Namespace, images: Path | str) -> None:
    folders = [part if part.startswith("<") else shlex.quote(part) for part in (str(images), str(args.output / MASKS))]
    print(_printable("next: hmsa init --images {} --masks {} --output my_recipe.yml".format(*folders)))


def _printable(line: str) -> str:
    """With the blanks it starts with."""
    return " " * (len(line) - len(line.lstrip(" "))) + printable(line.lstrip(" "))


def _printable_lines(text: str) -> str:
    return "\n".join(map(_printable, text.splitlines())) + "\n"


def _check(result: Result, args: argparse.Namespace) -> None:
    if result.different:
        more = len(result.different) - 5
        raise DataError(
            f"{args.output / MASKS} should hold these masks or none, but {len(result.different)} are there and "
            f"different: {', '.join(map(str, result.different[:5]))}{f' and {more} more' if more > 0 else ''}; name "
            "another --output, or add --overwrite"
        )
    if not result.written + result.before:
        raise DataError(f"expected at least one mask, found that all was left out: {args.output / REPORT} says why")


def _write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Unless it holds something else already."""
    from hmsa.system.files import write_atomically

    content = text.encode()
    if path.exists() and not overwrite and path.read_bytes() != content:
        raise DataError(
            f"{path} should hold these classes or not be there, but it holds others, of masks made before: name "
            "another --output, or add --overwrite"
        )
    write_atomically(path, content)


def _write_list(path: Path, pairs: Sequence[tuple[Path, Path]], root: Path) -> None:
    """Image and mask on each line, relative to `root`; no list of nothing."""
    from hmsa.system.files import write_atomically

    if not pairs:
        print(_printable(f"{path}: not written, as there is no image of this part"))
        return

    def relative(file: Path) -> str:
        try:
            return Path(os.path.relpath(file, root)).as_posix()
        except ValueError:  # on another drive
            return str(file.resolve())

    write_atomically(path, "".join(f"{relative(image)}\t{relative(mask)}\n" for image, mask in pairs).encode())
    print(_printable(f"{path}: {len(pairs)} pairs"))


def _check_known(flag: str, labels: Sequence[str], known: Collection[str]) -> None:
    for label in labels:
        if label not in known:
            raise UsageError(f"{flag}: expected labels that occur, found {label!r}: {suggest(label, known)}")


def _say_what_looks_alike(names: Sequence[str]) -> None:
    for first, second in zip(names, names[1:]):  # in alphabetical order
        if first.casefold() == second.casefold():
            _warn(f"labels {first!r} and {second!r} become two classes: rename one if they mean the same")


def _warn(text: str) -> None:
    print(printable(f"warning: {text}"), file=sys.stderr)


def _download_camvid(folder: Path, form: int) -> None:
    """Download a form of CamVid into a folder."""
    from hmsa.datasets.drawn import archives, camvid
    from hmsa.weights.downloads import downloaded

    for address in camvid.ARCHIVES[form]:
        name = Path(address).stem
        # The original's labels lie in their archive without a folder.
        target = folder / name if name == "LabeledApproved_full" else folder
        try:
            archive = downloaded(address, archives.check)
        except DataError as error:
            raise DataError(f"{error}: unpack it in {target}, and leave out --download") from error
        archives.unpack(archive, target, below="CamVid" if form == 11 else "")
