# SPDX-License-Identifier: Apache-2.0
"""The most memory a process needs that evaluates 1024x2048 images with HRNet-W48, at three and at five scales."""

from __future__ import annotations

import workplace
from timing import Run, measure, row


def three() -> Run:
    return evaluation(workplace.RECIPE)


def five() -> Run:
    return evaluation(workplace.FIVE_SCALES)


def evaluation(recipe: workplace.Path) -> Run:
    from hmsa.system.environment import prepare

    prepare()
    import paddle

    network = workplace.network("inference", recipe)
    image = paddle.randn([1, 3, 1024, 2048])
    return lambda: network(image)


def main() -> None:
    measured = measure({"three": three, "five": five}, runs=1, warm_up=0)
    for name, scales in (("three", "0.5 1 2"), ("five", "0.5 1 1.5 2 2.5")):
        found = measured[name]
        row(
            f"evaluating one 1024x2048 image, HRNet-W48, scales {scales}: memory, first image",
            "-",
            "-",
            f"{found.peak_gb:.2f} GB, {found.median:.0f} s",
            "-",
        )


if __name__ == "__main__":
    main()
