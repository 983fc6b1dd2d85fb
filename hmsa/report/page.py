# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one page of HTML that needs nothing else: for a screen of any size, and for print."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hmsa.datasets.bands import displayed, read_bands
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.errors import printable
from hmsa.inference.averaging import InferenceOptions, best_classes, class_scores, confidences, undo_transforms
from hmsa.inference.insight import look_into
from hmsa.inference.network import FusedNetwork
from hmsa.report import panels
from hmsa.report.notes import SIZES, Notes
from hmsa.report.result import Evaluation
from hmsa.report.suspects import MISSING, Region
from hmsa.system.device import as_tensor
from hmsa.system.files import write_atomically
from hmsa.visualize import color_palette, heat

FILE = "index.html"

PAIRS = 10
"""Pairs of classes that are shown with crops."""

MAX_CLASSES = 30
"""Rows of the confusion matrix and classes with crops at most: those that are mistaken most often."""

TILES_COMPARED = 4
"""Images that are run whole too, where an evaluation runs in tiles."""

REGIONS = 12
"""Labels that may be wrong, at most."""


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        result: what the evaluation's JSON holds.
        settings: what made the scores, a name and a value each; the first two stand below the title.
        recipe: all of it, as text.
        images: how many of the best and of the worst images are shown, and up to half as many more of the hardest.
        earlier: another evaluation's JSON to compare with, and its name.
    """

    network: FusedNetwork
    dataset: SegmentationDataset
    options: InferenceOptions
    evaluation: Evaluation
    notes: Notes
    result: Mapping[str, Any]
    title: str
    settings: Sequence[tuple[str, str]]
    recipe: str
    images: int = 8
    earlier: Optional[tuple[str, Mapping[str, Any]]] = None

    def write(self, folder: Path) -> tuple[Path, Optional[Path]]:
        """Make the page, which takes the time of a few images -> its file, and an earlier page's, which is kept."""
        start = time.perf_counter()
        content = {
            "page": self,
            "classes": self._classes(),
            "overall": self._overall(),
            "matrix": self._matrix(),
            "pairs": self._pairs(),
            "shown": self._shown(),
            "mistaken": self._mistaken(),
            "regions": list(self._regions()),
            "tiles": list(self._tiles()),
            "heat_stops": [_hex(color) for color in heat(np.linspace(0, 1, 9)[None])[0]],
            "shares": self.notes.shares(),
            "sizes": SIZES,
            "size_rows": self._size_rows(),
            "scales": [f"{scale:g}" for scale in self.notes.scales],
            "missing": "" if self.notes.suspects.there else MISSING,
            "wrong": _hex(panels.WRONG),
        }
        content["seconds"] = time.perf_counter() - start
        text = _environment().get_template("report.html").render(content)
        file = folder / FILE
        return file, write_atomically(file, text.encode("utf-8", "replace"), keep_earlier=True)

    # --- Numbers ---

    @property
    def names(self) -> Sequence[str]:
        return [printable(name) for name in self.dataset.classes.names]

    @property
    def colors(self) -> list[int]:
        """256 colours, those of the classes first."""
        return color_palette((), self.dataset.classes.colors)

    @property
    def hex_colors(self) -> list[str]:
        return [_hex(color) for color in self.dataset.classes.colors]

    @property
    def reliability(self) -> list[list[float]]:
        """Of each bin that has pixels: mean confidence, accuracy, share of the pixels."""
        bins = np.asarray(self.evaluation.scores["reliability"])
        total = bins[:, 2].sum() or 1
        return [[*row[:2], row[2] / total] for row in bins.tolist() if row[2]]

    @property
    def differing(self) -> list[tuple[str, Any, Any]]:
        """Settings in which the evaluation that is compared with differs: key, here, there."""
        if self.earlier is None:
            return []
        here, there = (dict(_flat(result.get("config") or {})) for result in (self.result, self.earlier[1]))
        keys = sorted({*here, *there})
        return [(key, here.get(key, "-"), there.get(key, "-")) for key in keys if here.get(key) != there.get(key)]

    def _earlier(self, score: str, name: Optional[str] = None) -> Optional[float]:
        """A score of the evaluation that is compared with, or a class's."""
        found = self.earlier[1].get(score) if self.earlier else None
        found = found.get(name) if name is not None and isinstance(found, Mapping) else found
        return float(found) if isinstance(found, (int, float)) else None

    def _overall(self) -> list[dict[str, Any]]:
        """The scores of the whole: title, value, what it was."""
        return [
            {"name": name, "title": title, "value": value, "earlier": self._earlier(name)}
            for name, title, value in self.evaluation.overall()
        ]

    def _classes(self) -> list[dict[str, Any]]:
        """A row a class, the best first; those without a pixel last."""
        scores = self.evaluation.scores
        columns = ("iou", "boundary_iou", "precision", "recall")
        pixels = np.asarray(scores["confusion_matrix"]).sum(axis=1)
        rows = [
            {
                "number": number,
                "name": name,
                "color": self.hex_colors[number],
                "pixels": int(pixels[number]),
                "earlier": self._earlier("iou", self.dataset.classes.names[number]),
                **{column: _number(scores[column][number]) for column in columns},
            }
            for number, name in enumerate(self.names)
        ]
        return sorted(rows, key=lambda row: -1 if row["iou"] is None else row["iou"], reverse=True)

    def _matrix(self) -> dict[str, Any]:
        """The confusion matrix, of many classes those that are mistaken most often, as shares of rows and columns."""
        counts = np.asarray(self.evaluation.scores["confusion_matrix"], np.float64)
        true, taken = counts.sum(axis=1), counts.sum(axis=0)
        off = true + taken - 2 * np.diag(counts)
        present = np.flatnonzero(true + taken)
        kept = np.sort(present[np.argsort(-off[present], kind="stable")][:MAX_CLASSES])
        by_truth = counts / np.maximum(true[:, None], 1)
        by_prediction = counts / np.maximum(taken, 1)
        return {
            "kept": kept.tolist(),
            "left_out": len(present) - len(kept),
            "by_truth": by_truth[np.ix_(kept, kept)].tolist(),
            "by_prediction": by_prediction[np.ix_(kept, kept)].tolist(),
        }

    def _size_rows(self) -> list[dict[str, Any]]:
        """Of each size of objects: how many there are, their pixels, how many of these are right."""
        notes = self.notes
        rows = []
        for place, (name, least) in enumerate(SIZES):
            below = SIZES[place + 1][1] if place + 1 < len(SIZES) else None
            bounds = f"{least:,} px and more" if below is None else f"less than {below:,} px"
            objects, pixels, right = (int(of[:, place].sum()) for of in (notes.objects, notes.pixels, notes.right))
            accuracy = right / pixels if pixels else None
            bounds = f"{least:,} to {below - 1:,} px" if least and below else bounds
            rows.append({"name": name, "bounds": bounds, "objects": objects, "pixels": pixels, "accuracy": accuracy})
        return rows

    # --- Mistakes ---

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An image, uint8 [H, W, 3], its label and its prediction, uint8 [H, W]."""
        image_path, label_path = self.dataset.pairs[index]
        bands, _ = read_bands(image_path, self.dataset.in_channels, self.dataset.max_image_pixels)
        assert label_path is not None
        label = self.dataset.read_label(label_path).astype(np.uint8, copy=False)
        prediction = cv2.imread(str(self.notes.prediction_file(index)), cv2.IMREAD_UNCHANGED)
        return displayed(bands), label, prediction

    def _crops(self, true: int, predicted: int, most: int) -> list[dict[str, Any]]:
        """Where pixels of one class were most often taken for another."""
        crops = []
        for pixels, index in self.notes.best_of_pair[true, predicted][:most].tolist():
            if not pixels:
                continue
            image, label, prediction = self._read(index)
            where = (label == true) & (prediction == predicted)
            side = panels.crop_side(*label.shape)
            crops.append({"image": self.name(index), "source": self._crop(image, label, prediction, where, side)})
        return crops

    def _crop(self, image: np.ndarray, label: np.ndarray, prediction: np.ndarray, where: np.ndarray, side: int) -> str:
        ignored = self.dataset.classes.ignore_index
        options = {"side": side, "ignore_index": ignored, "outlined": where}
        return panels.crop(image, label, prediction, panels.busiest(where, side), self.colors, **options)

    def name(self, index: int) -> str:
        return printable(Path(self.dataset.pairs[index][0]).name)

    def _pairs(self) -> list[dict[str, Any]]:
        """The pairs of classes that most pixels are mistaken in."""
        counts = np.array(self.evaluation.scores["confusion_matrix"])
        true = counts.sum(axis=1)
        np.fill_diagonal(counts, 0)
        wrong = max(int(counts.sum()), 1)
        pairs = []
        for place in np.argsort(-counts, axis=None, kind="stable")[:PAIRS]:
            a, b = np.unravel_index(place, counts.shape)
            if counts[a, b]:
                pair = {"true": int(a), "predicted": int(b), "of_wrong": counts[a, b] / wrong}
                pairs.append({**pair, "of_true": counts[a, b] / true[a], "crops": self._crops(int(a), int(b), 3)})
        return pairs

    def _mistaken(self) -> list[dict[str, Any]]:
        """Of each class what it is taken for most often, and what is taken for it, with a crop of the first."""
        counts = np.array(self.evaluation.scores["confusion_matrix"])
        true = counts.sum(axis=1)
        np.fill_diagonal(counts, 0)
        rows = []
        for a in np.argsort(-counts.sum(axis=1) / np.maximum(true, 1), kind="stable")[:MAX_CLASSES]:
            others = [int(b) for b in np.argsort(-counts[a], kind="stable")[:3] if counts[a, b]]
            if others:
                rows.append(
                    {
                        "number": int(a),
                        "missed": counts[a].sum() / true[a],
                        "taken_for": [(b, counts[a, b] / true[a]) for b in others],
                        "crops": self._crops(int(a), others[0], 1),
                    }
                )
        return rows

    def _regions(self) -> Iterator[dict[str, Any]]:
        """Labels that may be wrong."""
        for region in self.notes.suspects.regions(REGIONS):
            image, label, prediction = self._read(region.index)
            where = np.zeros(label.shape, bool)
            where[_place(region, label.shape)] = True
            where &= (label == region.labelled) & (prediction == region.suggested)
            side = min(max(panels.crop_side(*label.shape), int(1.5 * _longest(region, label.shape))), *label.shape)
            if where.any():
                yield {
                    "image": self.name(region.index),
                    "labelled": region.labelled,
                    "suggested": region.suggested,
                    "confidence": region.confidence,
                    "pixels": int(region.share * label.size),
                    "source": self._crop(image, label, prediction, where, side),
                }

    # --- Images ---

    def _shown(self) -> list[dict[str, Any]]:
        """The worst, the best and the hardest images, each once, with everything that there is to see."""
        notes, seen = self.notes, self.notes.seen
        by_iou = seen[np.argsort(notes.iou[seen], kind="stable")]
        count = min(self.images, -(-len(seen) // 2))
        worst = by_iou[:count]
        best = by_iou[::-1][: min(count, len(seen) - count)]
        hardest = seen[np.argsort(-notes.loss[seen], kind="stable")][: self.images]
        rank = {int(index): place + 1 for place, index in enumerate(hardest)}

        others = [index for index in hardest if index not in {*worst.tolist(), *best.tolist()}][: -(-self.images // 2)]
        groups = {"worst": worst, "best": best, "hardest": others}
        return [
            {"group": group, "hard": rank.get(int(index)), **self._everything(int(index))}
            for group, indices in groups.items()
            for index in indices
        ]

    def _everything(self, index: int) -> dict[str, Any]:
        """An image's names, scores and panels."""
        image, label, prediction = self._read(index)
        sample, ignored = self.dataset[index], self.dataset.classes.ignore_index
        found = look_into(
            self.network,
            as_tensor(sample["img"][np.newaxis]),
            self.options,
            trans_info=sample["trans_info"],
            size=label.shape,
            alone=True,
        )
        wrong = (label != prediction) & (label != ignored)
        layers = [
            ("input", "photo", panels.photo(image)),
            ("truth", "classes", panels.colored(label, self.colors, ignored)),
            ("prediction", "classes", panels.colored(prediction, self.colors)),
            ("errors", "errors", panels.errors(image, wrong)),
            ("confidence", "heat", panels.heat_map(confidences(found.scores, self.options))),
        ]
        # By kind, as the rows of the page have them.
        layers += [
            (f"scale {scale:g} alone", "classes", panels.colored(answer, self.colors))
            for scale, answer in found.scales.items()
        ]
        for word, maps in (("attention", found.attention), ("decided", found.decided)):
            layers += [(f"scale {scale:g} {word}", "heat", panels.heat_map(values)) for scale, values in maps.items()]
        there = np.unique(np.concatenate([np.unique(label), np.unique(prediction)]))
        return {
            "name": self.name(index),
            "path": printable(str(self.dataset.pairs[index][0])),
            "size": (label.shape[1], label.shape[0]),
            "iou": self.notes.iou[index],
            "accuracy": self.notes.accuracy[index],
            "loss": self.notes.loss[index],
            "layers": layers,
            "classes": [int(number) for number in there if number < len(self.names) and number != ignored],
        }

    def _tiles(self) -> Iterator[dict[str, Any]]:
        """Of images that ran in tiles, what differs where they run whole."""
        if self.options.tile is None:
            return
        whole = replace(self.options, tile=None, stride=None)
        order = self.notes.seen[np.argsort(self.notes.iou[self.notes.seen], kind="stable")]
        for index in map(int, order[:TILES_COMPARED]):
            image, label, prediction = self._read(index)
            sample, ignored = self.dataset[index], self.dataset.classes.ignore_index
            scores = class_scores(self.network, as_tensor(sample["img"][np.newaxis]), whole)
            other = best_classes(undo_transforms(scores, sample["trans_info"], label.shape))
            valid, differs = label != ignored, other != prediction
            yield {
                "name": self.name(index),
                "differs": differs.mean(),
                "tiles_right": (prediction == label)[valid].mean(),
                "whole_right": (other == label)[valid].mean(),
                "layers": [
                    ("in tiles", panels.colored(prediction, self.colors)),
                    ("whole", panels.colored(other, self.colors)),
                    ("what differs", panels.errors(image, differs)),
                ],
            }


def _place(region: Region, shape: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns of a region in an image of this shape."""
    top, left, bottom, right = np.array(region.box) * [*shape, *shape]
    return slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right)))


def _longest(region: Region, shape: Sequence[int]) -> int:
    return max(place.stop - place.start for place in _place(region, shape))


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of a recipe with dots, and their values; lists are values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _number(value: float) -> Optional[float]:
    return None if np.isnan(value) else float(value)


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*map(int, color))


def _environment() -> Environment:
    """The templates of this folder, and how they write numbers."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=1: "\u2013" if value is None else f"{100 * value:.{digits}f}"
    environment.filters["signed"] = lambda value, digits=1: f"{100 * value:+.{digits}f}".replace("-", "\u2212")
    environment.filters["counted"] = lambda value: f"{value:,}"
    return environment
