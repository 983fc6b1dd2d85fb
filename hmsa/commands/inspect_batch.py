# SPDX-License-Identifier: Apache-2.0
"""Draw what training sees: crops as its loader gives them, the same for the same seed, with their labels laid over; or,
with --transforms, one image after each of the transforms."""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hmsa import cli
from hmsa.errors import UsageError, nearest

if TYPE_CHECKING:
    from PIL import Image

    from hmsa.config.schema import Config
    from hmsa.datasets.dataset import SegmentationDataset
    from hmsa.datasets.loader import Batch

FORMATS = (".jpg", ".png")
MAX_COUNT = 400  # crops, whose sheet is about 40,000 pixels high


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    add = parser.add_argument
    add("--output", required=True, help="image to write, e.g. sheet.png")
    add("--count", type=cli.count, help="crops to show (default: 16)")
    add("--seed", type=int, help="of the run, instead of the config's")
    add("--batch_size", type=int, help="of the run, images a device and step, instead of the config's")
    add("--processes", type=cli.count, default=1, help="of the run, which share an iteration (default: %(default)s)")
    add("--epoch", type=cli.count_or_none, default=0, help="from 0, where --iteration counts from (default: 0)")
    add("--iteration", type=cli.count_or_none, default=0, help="the first to show, from 0, which the log calls 1")
    add("--transforms", action="store_true", help="show one image after each transform, with what was drawn for it")
    add("--image", help="with --transforms, which: a path, or its end (default: the first of the iteration)")
    add("--opacity", type=float, default=0.4, help="of the labels' colours (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> None:
    config = read(args)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.system.files import output_file, write_atomically

    output = output_file(args.output)
    if output.suffix.lower() not in FORMATS:
        raise UsageError(f"{output}: expected a name that ends in {' or '.join(FORMATS)}, found another: choose one")
    dataset = builder.build_dataset(config, "train")
    part = Part.of(args, config, len(dataset))
    picture, said = draw_transforms(args, config, dataset, part) if args.transforms else draw(args, dataset, part)

    content = io.BytesIO()
    picture.save(content, {".png": "PNG", ".jpg": "JPEG"}[output.suffix.lower()], quality=90)
    earlier = ", in place of an earlier file" if output.exists() else ""
    write_atomically(output, content.getvalue())
    print(f"{said}; written to {output}{earlier}")


def read(args: argparse.Namespace) -> Config:
    """The recipe, with the flags in it. UsageError for a flag that is wrong or has no effect."""
    if args.transforms and args.count is not None:
        raise UsageError("expected --count or --transforms, which shows one image, found both: leave one out")
    if not args.transforms:
        cli.refuse_idle(args, "image", without="--transforms")
    if (args.count or 0) > MAX_COUNT:
        raise UsageError(
            f"expected --count of at most {MAX_COUNT}, found {args.count}: look at fewer, or at others by --iteration"
        )
    if not 0 <= args.opacity <= 1:
        raise UsageError(f"expected --opacity from 0 to 1, found {args.opacity:g}: correct it")
    keys = ("seed", "batch_size")
    config = cli.read_recipe(args, [f"{key}={getattr(args, key)}" for key in keys if getattr(args, key) is not None])
    config.require("train_dataset")
    return config


class Part(NamedTuple):
    """Which iterations of a run are looked at."""

    first: int  # iteration of the run, from 0
    images: int  # that an iteration takes, of all processes
    epoch_length: int

    @classmethod
    def of(cls, args: argparse.Namespace, config: Config, epoch_length: int) -> Part:
        """The iteration that is asked for: of those that begin in the epoch, by its number."""
        images = config.batch_size * config.gradient_accumulation * args.processes
        return cls(-(-args.epoch * epoch_length // images) + args.iteration, images, epoch_length)

    @property
    def sample(self) -> int:
        """Number of the first sample."""
        return self.first * self.images

    def line(self, count: int) -> str:
        """What `count` samples are, for a person."""
        last = (self.sample + count - 1) // self.images
        iterations = f"iterations {self.first} to {last}" if last > self.first else f"iteration {self.first}"
        return f"{iterations}, from epoch {self.sample / self.epoch_length:.2f} on"


def samples(dataset: SegmentationDataset, part: Part, count: int) -> Iterator[Batch]:
    """The first `count` samples from an iteration on as batches of one, so that crops of several sizes are shown too.

    Each is what the loader of a training makes of it.
    """
    from hmsa.datasets.loader import batches, training_indices

    last = part.first + -(-count // part.images)
    indices = training_indices(first_iteration=part.first, iterations=last, batch_size=part.images)
    alone = ([index] for of_iteration in indices for index in of_iteration)
    yield from batches(dataset, itertools.islice(alone, count), num_workers=0)


def draw(args: argparse.Namespace, dataset: SegmentationDataset, part: Part) -> tuple[Image.Image, str]:
    """The sheet of crops, and what it shows."""
    from hmsa.report import batch

    count = args.count or 16
    crops = (batch.crop_of(sample, dataset) for sample in samples(dataset, part, count))
    said = f"{count} crop{'s' * (count > 1)}, {part.line(count)}, seed {dataset.seed}"
    return batch.sheet(f"{args.config}: {said}", crops, dataset.classes, args.opacity), said


def draw_transforms(
    args: argparse.Namespace, config: Config, dataset: SegmentationDataset, part: Part
) -> tuple[Image.Image, str]:
    """The sheet of one image after each transform, and what it shows."""
    from hmsa import builder
    from hmsa.report import batch

    index = part.sample if args.image is None else find(dataset, args.image, part.sample)
    specs = config.train_dataset.transforms if config.train_dataset else []
    sample, rng = dataset.untransformed(index)
    path = sample["image_path"]
    # The data set's own have scaling and crop in one; these draw the same.
    transforms = builder.build_transforms(specs, where=config.where("train_dataset.transforms"))
    stages = batch.stages(sample, transforms, [spec.type for spec in specs], rng)

    epoch, position = divmod(index, len(dataset))
    said = f"{path}, sample {position} of epoch {epoch}, seed {dataset.seed}"
    return batch.stages_sheet(said, stages, dataset.classes, args.opacity), said


def find(dataset: SegmentationDataset, image: str, first: int) -> int:
    """The first sample, from number `first` on, that is an image called by its path or by the end of that.

    Raises:
        UsageError: no image or several are called so, or it is not trained on.
    """
    images = [path for path, _ in (*dataset.pairs, *dataset.coarse_pairs)]
    wanted = Path(image).parts
    found = sorted({path for path in images if Path(path).parts[-len(wanted) :] == wanted})
    if len(found) != 1:
        several = f"{len(found)} of them, such as {found[0]} and {found[1]}: give more of its path" if found else ""
        near = nearest(Path(image).name, [Path(path).name for path in images])
        raise UsageError(
            f"expected --image to be one of the {len(set(images))} images to train on, found {image}, which is "
            + (several or f"none of them: {f'did you mean {near}?' if near else 'check the path'}")
        )
    # An epoch holds every fine image, and so many of the coarse ones that each comes round.
    rounds = -(-len(dataset.coarse_pairs) // max(dataset.coarse_per_epoch, 1))
    start = first // len(dataset)
    for epoch in range(start, start + 2 * rounds + 2):
        for position, (path, _) in enumerate(dataset.epoch(epoch)):
            if path == found[0] and epoch * len(dataset) + position >= first:
                return epoch * len(dataset) + position
    raise UsageError(
        f"expected --image to be trained on, found {found[0]}, which is coarse and left out, as coarse_multiple says"
    )
