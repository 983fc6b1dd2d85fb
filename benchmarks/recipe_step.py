# SPDX-License-Identifier: Apache-2.0
"""The most memory the recipe's own training step needs: HRNet-W48, crop 2048x1024, batch 1, recomputation, float32."""

from __future__ import annotations

from timing import Run, measure, row
from training_step import step


def ours() -> Run:
    run = step(True, 1024, 2048)

    def two_steps() -> None:
        run()
        run()  # The second has the optimizer's state too.

    return two_steps


def main() -> None:
    found = measure({"ours": ours}, runs=1, warm_up=0)["ours"]
    row(
        "training step of the recipe, HRNet-W48, 2048x1024, `recompute: true`: memory",
        "-",
        "-",
        f"{found.peak_gb:.2f} GB, {found.median / 2:.0f} s",
        "-",
    )


if __name__ == "__main__":
    main()
