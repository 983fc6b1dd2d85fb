# SPDX-License-Identifier: Apache-2.0
"""Write a recipe for your own images and masks: it looks at the files, and trains as it is written."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from hmsa import cli
from hmsa.errors import UsageError, printable

if TYPE_CHECKING:
    from hmsa.datasets.folders import Split
    from hmsa.datasets.kinds import Class, Kind
    from hmsa.draft import Machine, Naming, Plan, Survey

IGNORE = "ignore"
"""In place of a class's name: its pixels do not count."""


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--images", required=True, metavar="FOLDER", help="folder of the images, with all folders below")
    add(
        "--masks", metavar="FOLDER", help="folder of the masks, PNGs of the images' names (default: that of the images)"
    )
    add("--output", default="my_recipe.yml", help="the recipe to write (default: %(default)s)")
    add("--force", action="store_true", help="replace --output if it is there")
    add(
        "--classes",
        metavar="NAMES",
        help="names in the order of values, a,b,c, or a file with a name a line; ignore: its pixels do not count "
        "(default: asked on a terminal)",
    )
    add("--val", type=_share, default=0.2, help="share of the images to evaluate on (default: %(default)s)")
    add("--seed", type=cli.count_or_none, default=0, help="that draws them (default: %(default)s)")
    add(
        "--group-by",
        "--group_by",
        metavar="GROUP",
        help="images that stay on one side: folder, or a regular expression for a name's part, such as '^([^_]+)_'",
    )
    pattern = "what {} are called, such as {} (default: guessed)"
    add("--image-pattern", "--image_pattern", metavar="NAME", help=pattern.format("images", "'*.jpg'"))
    add("--label-pattern", "--label_pattern", metavar="NAME", help=pattern.format("masks", "'*_mask.png'"))
    add("--weights", metavar="FILE", help="weights to start from")
    add("--device", choices=["auto", "cpu", "gpu"], default="auto", help="what will train (default: what is here)")
    return parser


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.exists() and not args.force:
        raise UsageError(f"{output}: expected a new file, found one: name another --output, or replace it by --force")
    _check_recipe_words(args)
    _check_folders(args)

    from hmsa import draft
    from hmsa.datasets.folders import Split
    from hmsa.datasets.kinds import kind_of
    from hmsa.system.files import output_file, write_atomically

    output_file(args.output)
    label_dir = args.masks or args.images
    _refuse_polygons(args)
    found = draft.survey(args.images, label_dir, (args.image_pattern, args.label_pattern), args.seed)
    if args.weights and found.in_channels == 3:
        found.statistics = None  # theirs are ImageNet's
    kind = kind_of(found.masks)
    split = Split(args.val, 0.0, args.seed, args.group_by)
    counts = draft.counts(found, split)
    _say_what_was_found(found, kind, counts, args.val)

    naming = _named(args, kind, found)
    _say_what_is_missing(found, naming, split)
    plan = draft.planned(found, counts, machine(args.device), weights=args.weights)
    text = draft.recipe(found, kind, naming, plan, split=split, weights=args.weights) + "\n"
    _try_out(text, args.weights)
    write_atomically(output, text.encode())
    _say_what_is_next(output, plan)


def _share(text: str) -> float:
    """A share, or per cent."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0
    value = value / 100 if value >= 1 else value
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"expected a share such as 0.2, or 20 for 20 per cent, found {text!r}: correct it"
        )
    return value


def _check_recipe_words(args: argparse.Namespace) -> None:
    """UsageError for values of flags that a recipe would refuse."""
    from pydantic import ValidationError

    from hmsa.components import ListDatasetSpec, SplitSpec

    section = {"type": "Dataset", "mode": "train", "image_dir": args.images, "label_dir": args.images}
    patterns = {"image_pattern": args.image_pattern or "*", "label_pattern": args.label_pattern or "*"}
    try:
        SplitSpec(val=args.val, seed=args.seed, group_by=args.group_by)
        ListDatasetSpec.model_validate({**section, **patterns})
    except ValidationError as error:
        details = error.errors()[0]
        flag = "--" + str(details["loc"][-1]).replace("_", "-")
        expected = details["msg"].replace("Value error, ", "").replace("Input should be ", "")
        raise UsageError(f"{flag}: expected {expected}, found {details['input']!r}: correct it") from error
    for flag, text in (("--images", args.images), ("--masks", args.masks or "")):
        if not text.isprintable():
            raise UsageError(f"{flag}: expected a name that a recipe can hold, found {text!r}: rename the folder")
    if args.weights and "://" not in args.weights and not Path(args.weights).exists():
        raise UsageError(f"--weights: expected a file of weights, found none at {args.weights}: correct the path")


def _check_folders(args: argparse.Namespace) -> None:
    """UsageError for what is no folder, and for one above those of images and masks."""
    from hmsa.draft import masks_below

    for flag, given in (("--images", args.images), ("--masks", args.masks)):
        if given is not None and not Path(given).is_dir():
            found = "a file: name the folder it lies in" if Path(given).exists() else "none: correct the path"
            raise UsageError(f"{flag}: {given}: expected a folder, found {found}")
    below = None if args.masks else masks_below(Path(args.images))
    if below:
        images, masks = (shlex.quote(str(folder)) for folder in below)
        raise UsageError(
            f"--images: {args.images}: expected a folder of images, found one above those of images and of masks: "
            f"give --images {images} --masks {masks}"
        )


def _refuse_polygons(args: argparse.Namespace) -> None:
    """UsageError where images have polygons in place of masks."""
    from hmsa.draft import images_below, labelme_files

    folder = Path(args.masks or args.images)
    drawn = [] if args.masks and images_below(folder) else labelme_files(folder)
    if not drawn:
        return
    beside = "" if folder == Path(args.images) else f" --images {shlex.quote(args.images)}"
    masks = f"{str(folder).rstrip('/')}_masks"
    raise UsageError(
        f"{folder}: expected masks, found {len(drawn)} files of labelme's polygons, such as {drawn[0].name}: run hmsa"
        f" convert labelme --annotations {shlex.quote(str(folder))}{beside} --output {shlex.quote(masks)}, "
        f"and then this command with --masks {shlex.quote(masks + '/masks')}"
    )


def machine(device: str) -> Machine:
    """What will train: the device that is here, or of the kind that is asked for."""
    from hmsa.draft import Machine
    from hmsa.system.environment import prepare

    prepare()
    from hmsa.system.device import on_gpu
    from hmsa.system.memory import total_memory_bytes
    from hmsa.system.signals import end_in_order

    end_in_order()
    here = "gpu" if on_gpu() else "cpu"
    known = device in ("auto", here)
    return Machine(gpu=(here if device == "auto" else device) == "gpu", memory=total_memory_bytes() if known else 0)


def _try_out(text: str, weights: Optional[str]) -> None:
    """Read the recipe, and say how far the weights fit its network."""
    from hmsa.builder import build_model
    from hmsa.config.reading import load_config
    from hmsa.weights.loading import load_pretrained

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yml"
        path.write_text(text, encoding="utf-8")
        config = load_config(path)
    if weights:
        _say(load_pretrained(build_model(config), weights))


# --- Names ---


def _named(args: argparse.Namespace, kind: Kind, found: Survey) -> Naming:
    """The classes with the names that were given, are beside the masks, or are answered."""
    from hmsa.datasets.kinds import Class
    from hmsa.draft import Naming

    names = _given_names(args)
    count = len(kind.classes)
    values = [value for of in kind.classes for value in of.values]
    if names and len(names) > count and all(isinstance(v, int) and v < len(names) for v in values):
        # Class numbers of which some do not occur.
        absent = [number for number in range(len(names)) if number not in values]
        _say(f"no mask holds {', '.join(f'{number} ({names[number]})' for number in absent)}")
        classes = [Class(name, (number,)) for number, name in enumerate(names)]
        kind.numbered = not found.masks.channels
    elif names and len(names) != count:
        raise UsageError(
            f"--classes: expected a name for each of the {count} values {_listed(kind)}, found {len(names)} "
            f"({', '.join(names)}): name them in this order ({IGNORE}: its pixels do not count)"
        )
    elif names:
        classes = [of._replace(name=name) for of, name in zip(kind.classes, names)]
    elif not kind.named and sys.stdin.isatty() and sys.stdout.isatty():
        classes = [of._replace(name=_answer(of, found)) for of in kind.classes]
    else:
        classes = kind.classes
        if not kind.named:
            _say(f"they are called {_shortened([of.name for of in classes])}: give --classes, or change the recipe")

    counted = [of for of in classes if of.name != IGNORE]
    repeated = [of.name for place, of in enumerate(counted) if of.name in [other.name for other in counted[:place]]]
    if repeated or len(counted) < 2:
        problem = f"{repeated[0]!r} twice" if repeated else f"{len(counted)}"
        raise UsageError(f"--classes: expected at least two names that differ, found {problem}: correct it")
    ignored = [*kind.ignored, *(value for of in classes if of.name == IGNORE for value in of.values)]
    return Naming(counted, ignored, numbered=kind.numbered and len(counted) == len(classes))


def _given_names(args: argparse.Namespace) -> Optional[list[str]]:
    """Of --classes, or of the file that hmsa convert writes beside the folder of masks."""
    from hmsa.datasets.lists import is_file, read_list

    beside = Path(args.masks or args.images).parent / "classes.txt"
    given = args.classes or (str(beside) if is_file(beside) else None)
    if given is None:
        return None
    if not is_file(Path(given)):
        names = [name.strip() for name in given.split(",")]
        if len(names) == 1 and (Path(given).suffix or Path(given).parent.name):
            raise UsageError(f"--classes: expected names a,b,c or a file of them, found no file {given}: correct it")
        if "" in names:
            raise UsageError(f"--classes: expected a name at every place, found none at {names.index('') + 1}: add it")
        return names
    lines = [line.strip() for _, line in read_list(Path(given), Path(given).parent)]
    _say(f"names of classes: {given}")
    return [re.sub(r"([,;\s]+\d{1,3}){3}$", "", line) for line in lines]


def _answer(of: Class, found: Survey) -> str:
    masks = found.masks.holding(*of.values)
    print(printable(f"{of.name}: in {len(masks)} masks, such as {masks[0]}"))
    try:
        return input(f"  its name ({IGNORE}: its pixels do not count) [{of.name}]: ").strip() or of.name
    except EOFError:
        return of.name


def _listed(kind: Kind) -> str:
    return _shortened([str(list(v)) if isinstance(v, tuple) else str(v) for of in kind.classes for v in of.values])


def _shortened(words: Sequence[str]) -> str:
    return ", ".join(words[:20]) + (", ..." if len(words) > 20 else "")


# --- What is said ---


def _say(text: str) -> None:
    print(printable(text))


def _say_what_was_found(found: Survey, kind: Kind, counts: Sequence[int], val: float) -> None:
    patterns = "" if found.patterns == ("*", "*") else f" ({found.patterns[0]} and {found.patterns[1]})"
    _say(f"{len(found.pairs)} images with masks{patterns}: {counts[0]} to train, {counts[1]} to evaluate on")
    if found.statistics:
        channels = f"of {found.in_channels} channel{'s' * (found.in_channels > 1)}, read as they are stored"
        grey = "grey" if found.in_channels == 3 else channels
        _say(f"the images are {grey}: mean and std are measured, of {found.statistics.images}")
    read = f"{len(found.masks.of_mask)} masks, a sample," if found.sampled else "the masks"
    _say(f"{read} hold {kind.words}")
    for remark in kind.remarks:
        _say(remark)
    wanted = 0 if found.own_parts else round(val * len(found.pairs))
    if 2 * counts[1] <= wanted:
        _say(
            f"warning: chance gave {counts[1]} of {wanted} images to evaluate on: try another --seed, or a larger --val"
        )
    if found.own_parts:
        _say(f"they are divided as their folders are: {', '.join(found.own_parts.values())}")


def _say_what_is_missing(found: Survey, naming: Naming, split: Split) -> None:
    """Classes that the images of a part do not have."""
    from hmsa import draft

    if found.sampled:
        return
    for part, what in (("train", "train"), ("val", "evaluate")):
        labels = {found.pairs[name][1] for name in draft.names_of(part, found, split)}
        missing = [of.name for of in naming.classes if labels.isdisjoint(found.masks.holding(*of.values))]
        if missing:
            _say(f"warning: no image to {what} on has {', '.join(missing)}: try another --seed, or more images")


def _say_what_is_next(output: Path, plan: Plan) -> None:
    """The commands that follow; on a CPU of several cores, training takes two processes or four."""
    from hmsa.system.device import on_gpu
    from hmsa.system.environment import cores

    hmsa = "hmsa" if shutil.which("hmsa") else "python -m hmsa"
    config = f"--config {shlex.quote(str(output))}"
    train = (
        f"--do_eval --save_interval {plan.interval} --num_workers 2 --save_dir {shlex.quote(f'output/{output.stem}')}"
    )
    processes = max(n for n in (1, 2, 4) if n == 1 or (n <= cores() and plan.batch % n == 0 and not on_gpu()))
    if processes > 1:
        train += f" --nproc_per_node {processes} --batch_size {plan.batch // processes}"
    _say(f"written to {output}. Next:")
    _say(f"  {hmsa} check-data {config}")
    _say(f"  {hmsa} train {config} {train}")
