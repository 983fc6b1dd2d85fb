# SPDX-License-Identifier: Apache-2.0
"""Text files that name images, a line each, with or without labels: as people write them, on any system."""

from __future__ import annotations

import codecs
import contextlib
import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

from hmsa.datasets.dataset import Pair, SegmentationDataset
from hmsa.datasets.images import IMAGE_FORMATS, IMAGE_SUFFIXES, read_bytes
from hmsa.errors import DataError, UsageError, shown

MAX_PROBLEMS = 20
"""Bad lines that are told at once."""

_BLANKS = " \t\v\f\r"
_UTF_16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def listed(names: Sequence[str], limit: int = MAX_PROBLEMS) -> str:
    """The first names for a message, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


class ListDataset(SegmentationDataset):
    """Images and labels in lists, a pair a line, their paths relative to `dataset_root` or absolute.

    `mode` chooses the list, and whether the samples are shuffled and their labels transformed along ("train") or
    neither; "test" needs no labels. Any blanks stand between the two paths, or exactly `separator`. Paths with blanks
    are understood where just one way to divide the line gives two files. Empty lines and those that start with # are
    passed over, as is what follows blanks and #. A list named .csv, or with the separator ",", may have quotes, and a
    first line of titles; columns behind the second are passed over.

    Args:
        common: what every data set takes, see `SegmentationDataset`.

    Raises:
        DataError: naming every line that is no pair, and every file that is missing (at most 20), unless there is a
            `bad_sample_limit` for these.
    """

    def __init__(
        self,
        *,
        mode: Literal["train", "val", "test"],
        dataset_root: str,
        train_path: Optional[str],
        val_path: Optional[str],
        test_path: Optional[str],
        separator: Optional[str],
        **common: Any,
    ) -> None:
        given = {"train": train_path, "val": val_path, "test": test_path}[mode]
        if given is None:
            raise UsageError(
                f"expected {mode}_path to name a list, as mode is {mode}, found nothing: add it, or image_dir and "
                "label_dir"
            )
        root = Path(dataset_root)
        if not root.is_dir():
            raise DataError(f"{root} should be the folder of the data set, but is none: correct dataset_root")
        # Relative to where the command runs, as PaddleSeg has it, or else to the data set.
        path = Path(given) if is_file(Path(given)) or not is_file(root / given) else root / given
        pairs = listed_pairs(path, root, separator=separator, labelled=mode != "test")
        if common.get("bad_sample_limit") is None:
            _check_files(path, pairs)
        super().__init__(pairs=pairs, training=mode == "train", **common)


def listed_pairs(path: Path, root: Path, *, separator: Optional[str], labelled: bool) -> list[Pair]:
    """The pairs of a list, see `ListDataset`; a label may be missing unless the list is `labelled`."""
    pairs, problems = [], []
    lines = [(number, line.strip(_BLANKS)) for number, line in read_list(path, root)]
    is_csv = separator == "," or (separator is None and path.suffix.lower() == ".csv")
    if is_csv:
        separator = _comma([text for _, text in lines])
        lines = lines[1:] if lines and _is_title(lines[0][1], root, separator) else lines
    for number, text in lines:
        try:
            pairs.append(_pair(text, root, separator, labelled, is_csv))
        except ValueError as error:
            problems.append(f"{path}, line {number}: expected {error}, in {shown(text)}")
    if problems:
        more = len(problems) - MAX_PROBLEMS
        rest = [f"{path}: expected a list of pairs, found {more} more lines like these"] if more > 0 else []
        raise DataError(*problems[:MAX_PROBLEMS], *rest)
    if not pairs:
        raise DataError(f"{path} should name an image{' and its label' * labelled} on each line, but names none")
    return pairs


def _comma(lines: Sequence[str]) -> str:
    """What divides the columns of a CSV: a semicolon where programs write that for a comma, as in some languages."""
    return ";" if lines and not any("," in line for line in lines) and ";" in lines[0] else ","


def _is_title(line: str, root: Path, separator: str) -> bool:
    """Whether a CSV's first line holds titles: neither files nor what would be called like an image."""
    fields = []
    with contextlib.suppress(ValueError):  # as `_pair` says
        fields = _columns(line, separator)
    return len(fields) > 1 and not any(
        is_file(with_slashes(root, field)) or field.lower().endswith(IMAGE_SUFFIXES) for field in fields
    )


def _columns(text: str, separator: str) -> list[str]:
    try:
        fields = next(csv.reader([text], delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"columns divided by {separator!r}, found that {error}") from error
    return [field.strip(_BLANKS) for field in fields]


def _check_files(path: Path, pairs: Sequence[Pair]) -> None:
    """DataError if a file of the list is missing, which would otherwise end a training in the middle of an epoch."""
    missing = [name for pair in pairs for name in pair if name is not None and not is_file(Path(name))]
    if missing:
        raise DataError(
            f"{path} should name files that are there, but {len(missing)} are not: "
            f"{listed(missing)}; correct the list or "
            "dataset_root"
        )


def _pair(text: str, root: Path, separator: Optional[str], labelled: bool, is_csv: bool) -> Pair:
    """ValueError says what was expected, and what was found."""
    try:
        if is_csv and separator:
            image, label = [*_columns(text, separator), ""][:2]
            label = label or None
        else:
            image, label = _divided(_without_comment(text, root, separator, labelled), root, separator, labelled)
        paths = [with_slashes(root, part) for part in (image, label) if part is not None]
        if not _is_utf8(text) and not all(map(is_file, paths)):
            raise ValueError("files of these names, found none")
    except ValueError as error:
        if _is_utf8(text):
            raise
        raise ValueError("UTF-8, found other bytes that name no file (save the list as UTF-8)") from error
    if label is None and labelled:
        by = "blanks (or set separator)" if separator is None else repr(separator)
        raise ValueError(f"an image and its label, divided by {by}, found one name")
    return str(paths[0]), str(paths[1]) if label is not None else None


def _without_comment(text: str, root: Path, separator: Optional[str], labelled: bool) -> str:
    """A line before a blank and #, unless it names files that have them in their names."""
    before = [text[: comment.start()] for comment in re.finditer(f"[{_BLANKS}]+#", text)]
    for candidate in (text, *reversed(before)) if before else ():
        with contextlib.suppress(ValueError):
            parts = [part for part in _divided(candidate, root, separator, labelled) if part is not None]
            if len(parts) > labelled and all(is_file(with_slashes(root, part)) for part in parts):
                return candidate
    return before[0] if before else text


def _divided(text: str, root: Path, separator: Optional[str], labelled: bool) -> tuple[str, Optional[str]]:
    """The image and the label of a line."""
    if separator is not None:
        parts = text.split(separator)
        if len(parts) > 2:
            raise ValueError(f"an image and its label, divided by {separator!r}, found {len(parts)} parts")
        parts = [part.strip(_BLANKS) for part in parts] if separator.strip() else parts
        return parts[0], (parts[1] if len(parts) == 2 else None)

    ways = list(_ways_to_divide(text))
    if not ways or (not labelled and is_file(with_slashes(root, text))):
        return text, None
    if len(ways) == 1:
        return ways[0]
    fitting = [way for way in ways if all(is_file(with_slashes(root, part)) for part in way)]
    if len(fitting) != 1:
        how = "several ways" if fitting else "no way"
        raise ValueError(
            f"an image and its label, found {len(ways) + 1} words and {how} to divide them into two files (set "
            "separator, or rename the files)"
        )
    return fitting[0]


def _ways_to_divide(text: str) -> Iterator[tuple[str, str]]:
    """A text before and after each of its blanks."""
    for blank in re.finditer(f"[{_BLANKS}]+", text):
        yield text[: blank.start()], text[blank.end() :]


def listed_images(path: Path) -> list[Path]:
    """The images of a list, a line each, relative to its folder; what follows, such as a label, is passed over.

    Where several beginnings of a line name a file, the longest does; where none does, it is the part up to a blank.
    """
    folder = path.parent
    images = []
    for number, line in read_list(path, folder):
        text = line.strip(_BLANKS)
        beginnings = [line, text, *(before for before, _ in reversed([*_ways_to_divide(text)]))]
        candidates = [with_slashes(folder, beginning) for beginning in beginnings]
        image = next(filter(is_file, candidates), candidates[-1])
        if not _is_utf8(str(image)) and not is_file(image):
            raise DataError(
                f"{path}, line {number}: expected the path of an image in UTF-8, found other bytes: save the list "
                f"as UTF-8, or give an image ({', '.join(IMAGE_FORMATS)})"
            )
        images.append(image)
    return images


def read_list(path: Path, root: Path) -> list[tuple[int, str]]:
    """The lines of a text file in UTF-8, with or without a byte order mark; ends of lines may be Windows'.

    A line has its number, from 1, and the blanks around it, which may belong to a name. Empty lines and comments are
    passed over; a line that starts with # is none if it names a file below `root`. Bytes that are no UTF-8 become what
    Python makes of them in file names.
    """
    data = read_bytes(path)
    if data.startswith(_UTF_16_OR_32):
        raise DataError(f"{path} should be a list in UTF-8, but it is in UTF-16 or UTF-32: save it as UTF-8")
    lines = []
    for number, whole in enumerate(data.decode("utf-8-sig", "surrogateescape").split("\n"), 1):
        whole = whole.removesuffix("\r")
        text = whole.strip(_BLANKS)
        first = re.split(f"[{_BLANKS}]", text, maxsplit=1)[0]
        is_comment = text.startswith("#") and not (is_file(root / text) or is_file(root / first))
        if text and not is_comment:
            lines.append((number, whole))
    return lines


def is_file(path: Path) -> bool:
    """Whether there is a file; False also for what no file can be called or may not be looked at."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib's raises for these)


def with_slashes(root: Path, name: str) -> Path:
    """A path relative to `root`, Windows' backslashes turned unless there is a file that has them in its name."""
    return root / name if "\\" not in name or is_file(root / name) else root / name.replace("\\", "/")


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)
