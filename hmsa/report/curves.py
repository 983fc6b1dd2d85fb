# SPDX-License-Identifier: Apache-2.0
"""A sheet of curves of one training, or of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from hmsa.report.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people who cannot tell some colours apart tell apart too; without yellow, which is pale."""

STYLES = ("-", "--", ":", "-.")

MOST_ROWS = 40
"""Classes whose IoU is shown: of more, those with the lowest."""

MOST_NUMBERS = 24
"""Classes up to which a confusion matrix has numbers in it."""

_NAME = 28
"""Most characters of a name."""


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        name: in legends.
        records: see `hmsa.report.records`, in order.
    """

    name: str
    records: Sequence[Record]

    def of(self, kind: str) -> list[Record]:
        """Its records of one kind."""
        return [record for record in self.records if record["kind"] == kind]

    def curve(self, kind: str, *names: str) -> tuple[np.ndarray, np.ndarray]:
        """Iterations and values of a number, which `names` lead to, where it is known."""
        points = {record["iteration"]: _value(record, names) for record in self.of(kind)}
        known = {iteration: value for iteration, value in points.items() if value is not None}
        return np.array(sorted(known)), np.array([known[iteration] for iteration in sorted(known)], float)

    @cached_property
    def last(self) -> Record:
        """Its last evaluation; empty if there is none."""
        return (self.of("eval") or [{}])[-1]


def draw(runs: Sequence[Run]) -> Figure:
    """The sheet. Of one run: loss and its terms, rate, mean IoU with the best marked, loss of evaluations, what share
    each scale decides, IoU of the classes, confusion. Of several: what can be compared.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    alone = len(runs) == 1
    scores = [run.last for run in runs if run.last.get("iou")]
    rows = min(max((len(record["iou"]) for record in scores), default=0), MOST_ROWS)
    below = max(3.4, 1.3 + 0.24 * rows) if rows else 0.0  # inches
    with plt.rc_context(_LOOK):
        figure = plt.figure(figsize=(15, 7.6 + below), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[7.6, below]) if rows else [figure]
        above, *rest = parts
        panels = list(above.subplots(2, 3, gridspec_kw={"wspace": 0.06, "hspace": 0.03}).flat)

        _loss(panels[0], runs)
        _curves(panels[2], runs, "learning rate", "train", "learning_rate")
        _mean_iou(panels[3], runs)
        _curves(panels[4], runs, "loss of evaluations", "eval", "loss")
        if alone:
            _terms(panels[1], runs[0])
            _shares(panels[5], runs[0])
        else:
            _curves(panels[1], runs, "norm of the gradient", "train", "gradient_norm")
            _curves(panels[5], runs, "seconds an iteration", "train", "step_seconds")
            handles, names = panels[0].get_legend_handles_labels()
            above.legend(handles, names, loc="outside upper center", ncols=min(len(runs), 4))
        end = max((record["iteration"] for run in runs for record in run.records), default=1)
        for axes in panels:
            axes.set_xlim(0, 1.03 * end)

        confusion = runs[0].last.get("confusion_matrix") if alone else None
        if rows and confusion:
            left, right = rest[0].subplots(1, 2, gridspec_kw={"wspace": 0.04})
            _class_iou(left, runs)
            _confusion(right, list(scores[0]["iou"]), np.array(confusion, float))
        elif rows:
            _class_iou(rest[0].subplots(), runs)
        if alone:
            above.suptitle(runs[0].name, fontsize=14)
    return figure


_LOOK: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


# --- Panels. ---


def _loss(axes: Axes, runs: Sequence[Run]) -> None:
    for run, (color, style) in zip(runs, _looks()):
        _plot(axes, *run.curve("train", "loss"), color, style, label=_short(run.name))
    _titled(axes, "training loss")


def _terms(axes: Axes, run: Run) -> None:
    names = list(dict.fromkeys(name for record in run.of("train") for name in record.get("losses", ())))
    losses = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    outputs = list(dict.fromkeys(name.rpartition("/")[2] for name in names))
    for name in names:
        loss, _, output = name.rpartition("/")
        steps, values = run.curve("train", "losses", name)
        values = _smoothed(values) if len(steps) >= 50 else values
        style, color = (STYLES[losses.index(loss) % len(STYLES)], COLORS[outputs.index(output) % len(COLORS)])
        axes.plot(steps, values, style, color=color, linewidth=1.3)
    _titled(axes, "terms of the loss")
    for output, color in zip(outputs, cycle(COLORS)):
        axes.plot([], [], color=color, label=_short(output))
    for loss, style in zip(losses, cycle(STYLES)):
        axes.plot([], [], style, color="#555555", label=_short(loss))
    if names:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.42 * (high - low))  # room for the legend
        axes.legend(loc="upper center", ncols=2, fontsize=8.5)


def _mean_iou(axes: Axes, runs: Sequence[Run]) -> None:
    for run, (color, style) in zip(runs, _looks()):
        steps, values = run.curve("eval", "mean_iou")
        label = _short(run.name) if len(runs) > 1 else "mIoU"
        axes.plot(steps, values, style, color=color, marker="o", markersize=4, label=label)
        if len(runs) == 1:
            steps_of_edges, edges = run.curve("eval", "mean_boundary_iou")
            if len(edges):
                axes.plot(steps_of_edges, edges, "--", color=COLORS[1], label="boundary mIoU")
        if len(steps):
            best = int(np.argmax(values))
            axes.plot(steps[best], values[best], "*", color=color, markersize=15, markeredgecolor="white", zorder=3)
            if len(runs) == 1:
                axes.plot([], [], "*", color=color, markersize=11, label=f"best: {values[best]:.4f} at {steps[best]}")
    _titled(axes, "mean IoU of evaluations (star: the best)")
    if any(run.last for run in runs):
        axes.set_ylim(0, (1.3 if len(runs) == 1 else 1) * max(axes.get_ylim()[1], 1e-3))
        if len(runs) == 1:
            axes.legend(loc="upper left", ncols=2, fontsize=9)


def _shares(axes: Axes, run: Run) -> None:
    """What share of the answer each scale decides, the classes counting alike."""
    scales = list(dict.fromkeys(scale for record in run.of("eval") for scale in record.get("attention") or ()))
    for scale, (color, style) in zip(scales, _looks()):
        points = []
        for record in run.of("eval"):
            shares = [share for share in (record.get("attention") or {}).get(scale, {}).values() if share is not None]
            points += [(record["iteration"], np.mean(shares))] if shares else []
        axes.plot(*zip(*points), style, color=color, marker="o", markersize=4, label=f"scale {scale}")
    _titled(axes, "share of the answer, by scale", "no attention recorded")
    if scales:
        axes.set_ylim(0, 1.22)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.legend(loc="upper center", ncols=len(scales), fontsize=9)


def _curves(axes: Axes, runs: Sequence[Run], title: str, kind: str, name: str) -> None:
    for run, (color, style) in zip(runs, _looks()):
        marker = "o" if kind == "eval" else ""
        exact = name == "learning_rate"
        _plot(axes, *run.curve(kind, name), color, style, exact=exact, marker=marker, markersize=4)
    _titled(axes, title)


def _class_iou(axes: Axes, runs: Sequence[Run]) -> None:
    """IoU of every class in the last evaluations, the highest first; of one run from its first evaluation on."""
    names = list(dict.fromkeys(name for run in runs for name in run.last.get("iou", ())))
    shown = next(run.last["iou"] for run in runs if run.last.get("iou"))
    names.sort(key=lambda name: -(shown.get(name) or 0))
    rest = f", the {MOST_ROWS} lowest of {len(names)}" if len(names) > MOST_ROWS else ""
    names = names[-MOST_ROWS:]
    rows = np.arange(len(names))

    if len(runs) == 1:
        first = (runs[0].of("eval") or [{}])[0].get("iou", {})
        begin, end = ([(of.get(name) or 0) for name in names] for of in (first, shown))
        axes.hlines(rows, begin, end, color="#b8cfe0", linewidth=3)
        axes.plot(begin, rows, "o", color="#9a9a9a", markersize=5, label="first evaluation")
        axes.plot(end, rows, "o", color=COLORS[0], markersize=7, label="last evaluation")
        for row, name, value in zip(rows, names, end):
            text = "-" if shown.get(name) is None else f"{100 * value:.1f} %"
            axes.text(1.02, row, text, va="center", fontsize=9, transform=axes.get_yaxis_transform())
        axes.legend(loc="lower center", bbox_to_anchor=(0.72, 1), ncols=2, fontsize=9)
    else:
        for number, (run, (color, _)) in enumerate(zip(runs, _looks())):
            values = [np.nan if value is None else value for value in map(run.last.get("iou", {}).get, names)]
            place = rows + 0.5 * (number / (len(runs) - 1) - 0.5)
            axes.plot(values, place, "osD^vP"[number % 6], color=color, markersize=6)
    axes.set_yticks(rows, [_short(name) for name in names])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.4, -0.6), xlabel="IoU")
    axes.set_title("IoU of the classes" + rest)


def _confusion(axes: Axes, names: Sequence[str], counts: np.ndarray) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(visible=False)
    ticks = range(len(names))
    if len(names) <= MOST_ROWS:
        axes.set_xticks(ticks, [_short(name) for name in names], rotation=90, fontsize=9)
        axes.set_yticks(ticks, [_short(name) for name in names], fontsize=9)
    if len(names) <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(shares >= 0.005)):
            share = shares[row, column]
            color = "white" if share > 0.55 else "#222222"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=color)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("confusion: percent of each true class")


# --- What they share. ---


def _looks() -> Any:
    """Colours and styles of lines, for ever; no two of the first 28 are alike."""
    return cycle([(color, style) for style in STYLES for color in COLORS])


def _plot(
    axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, style: str, *, exact: bool = False, **options: Any
) -> None:
    """A curve; one of many points is smoothed, its points pale behind it, unless it is `exact`."""
    if len(steps) >= 50 and not exact:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        values = _smoothed(values)
    axes.plot(steps, values, style, color=color, **options)


def _titled(axes: Axes, title: str, nothing: str = "nothing recorded") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    if not any(len(line.get_xdata()) for line in axes.get_lines()):  # pyright: ignore
        axes.text(0.5, 0.5, nothing, ha="center", va="center", color="#777777", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[], xlabel="")


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over the neighbours, a 50th of the curve to either side, fewer at its ends."""
    reach = max(len(values) // 50, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."


def _value(record: Mapping[str, Any], names: Sequence[str]) -> Optional[float]:
    found: Any = record
    for name in names:
        found = (found or {}).get(name)
    return found
