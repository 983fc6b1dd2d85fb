# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' own evaluation, as its test server runs it (cityscapesscripts), beside ours."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from hmsa.datasets.cityscapes import CLASSES, LABEL_ENDING
from hmsa.datasets.images import read_label, strange_values
from hmsa.errors import DataError, UsageError
from hmsa.report.result import Evaluation, percent

_IDS, _INSTANCES = "_gtFine_labelIds.png", "_gtFine_instanceIds.png"
_SCORED = frozenset(range(34))  # label ids that a prediction may hold


def official_labels(labels: Sequence[str]) -> list[Path]:
    """The images of label ids beside those of train ids.

    Raises:
        UsageError: they are not Cityscapes'.
        DataError: some are missing.
    """
    if not all(path.endswith(LABEL_ENDING) for path in labels):
        raise UsageError(
            f"expected labels of Cityscapes, *{LABEL_ENDING}, for its own evaluation, found others: leave it out, or "
            "set val_dataset to CityscapesAutolabeling"
        )
    paths = [Path(path.removesuffix(LABEL_ENDING) + _IDS) for path in labels]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"expected images of label ids beside those of train ids, found none for {len(missing)} of {len(paths)}: "
            f"add them, the first is {missing[0]}"
        )
    return paths


def official(predictions: Sequence[Path], labels: Sequence[Path]) -> dict[str, Any]:
    """What cityscapesscripts says of predictions: its result file.

    IoU by instance is NaN unless every label has an image of instances beside it. It weighs instances by the average
    sizes of those in Cityscapes, whatever the data set is.

    Args:
        predictions, labels: images of label ids.

    Raises:
        DataError: it cannot evaluate them.
    """
    for path in predictions:
        strange = strange_values(read_label(path), _SCORED)
        if strange:
            raise DataError(f"{path} should hold label ids, 0 to 33, but it holds {strange}: convert it")

    said = io.StringIO()
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as theirs

        # Its settings are one object for all of its callers.
        settings: Any = copy.copy(theirs.args)
        settings.quiet, settings.JSONOutput, settings.evalPixelAccuracy = True, False, False
        settings.evalInstLevelScore = all(_instances(path).is_file() for path in labels)
        with contextlib.redirect_stdout(said):
            found = theirs.evaluateImgLists(
                [str(path) for path in predictions], [str(path) for path in labels], settings
            )
    except (Exception, SystemExit) as error:  # it ends the program where something is wrong
        reason = said.getvalue().strip() or f"{type(error).__name__}: {error}"
        raise DataError(
            f"expected label images that cityscapesscripts can evaluate, but it says: {reason}; correct them"
        ) from error
    if not settings.evalInstLevelScore:
        for scores in ("classInstScores", "categoryInstScores"):
            found[scores] = dict.fromkeys(found[scores], float("nan"))
        found["averageScoreInstClasses"] = found["averageScoreInstCategories"] = float("nan")
    return found


def _instances(label: Path) -> Path:
    return label.with_name(label.name.removesuffix(_IDS) + _INSTANCES)


def differences(ours: Evaluation, theirs: dict[str, Any]) -> list[str]:
    """Classes and categories of which the two say different IoUs, to the last bit."""
    iou = zip(ours.class_names, ours.scores["iou"].tolist(), (theirs["classScores"][name] for name in CLASSES.names))
    of_categories = ((f"category {k}", value, theirs["categoryScores"][k]) for k, value in ours.category_iou.items())
    return [
        f"{name} {one!r} and {other!r}"
        for name, one, other in (*iou, *of_categories)
        if one != other and not (np.isnan(one) and np.isnan(other))
    ]


def table(theirs: dict[str, Any]) -> str:
    """What cityscapesscripts says, for a person, in percent."""
    rows = Table("cityscapesscripts", *(Column(title, justify="right") for title in ("IoU", "iIoU")))
    for what, names in (("class", CLASSES.names), ("category", tuple(dict.fromkeys(CLASSES.categories)))):
        scores, instances = theirs[f"{what}Scores"], theirs[f"{what}InstScores"]
        for name in names:
            rows.add_row(name, percent(scores[name]), percent(instances[name]))
        plural = {"class": "Classes", "category": "Categories"}[what]
        average, of_instances = (theirs[f"averageScore{kind}{plural}"] for kind in ("", "Inst"))
        rows.add_row(f"average of {plural.lower()}", percent(average), percent(of_instances), end_section=True)
    text = io.StringIO()
    Console(file=text, width=100, markup=False, emoji=False).print(rows)
    return text.getvalue().rstrip()
