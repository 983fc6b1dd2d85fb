# SPDX-License-Identifier: Apache-2.0
"""Evaluating one 256x512 image with HRNet-W48 at scales 0.5, 1 and 2, on the CPU.

Beside PaddleSeg's network stand two yardsticks: the same network in OpenVINO, and the time NumPy takes to multiply
matrices of as many operations as the network had when every scale computed everything (850 GFLOP).
"""

from __future__ import annotations

import theirs
import workplace
from timing import Run, measure, memory, row, times

SHAPE = (1, 3, 256, 512)
SIDE, FLOP = 4096, 850e9


def engine(name: str) -> Run:
    from hmsa.system.environment import prepare

    prepare()
    import paddle

    network = workplace.network(name)
    image = paddle.randn(SHAPE)
    return lambda: network(image)


def ours() -> Run:
    return engine("inference")


def openvino() -> Run:
    return engine("openvino")


def paddleseg() -> Run:
    import cv2  # noqa: F401 (before Paddle, as Paddle 2.6 wants it)
    import paddle

    model = theirs.network()
    model.eval()
    image = paddle.randn(SHAPE)

    def run() -> None:
        with paddle.no_grad():
            model(image)

    return run


def sgemm() -> Run:
    import numpy as np

    a, b = np.random.default_rng(0).normal(size=(2, SIDE, SIDE)).astype(np.float32)
    return lambda: a @ b


def main() -> None:
    measured = measure({"theirs": paddleseg, "ours": ours, "openvino": openvino, "sgemm": sgemm})
    what = "evaluation forward, HRNet-W48, scales 0.5 1 2, 256x512"
    row(f"{what}: time", "paddleseg 2.8.0, eager", *times(measured))
    row(f"{what}: memory", "paddleseg 2.8.0, eager", *memory(measured))
    row(f"{what}: time", "OpenVINO, f32", *times({**measured, "theirs": measured["openvino"]}))
    floor = measured["sgemm"].median / (2 * SIDE**3) * FLOP
    seconds = measured["ours"].median
    row(
        f"{what}: share of the floor",
        "850 GFLOP at numpy's sgemm rate",
        f"{floor:.2f} s",
        f"{seconds:.2f} s",
        f"{100 * floor / seconds:.0f} %",
    )


if __name__ == "__main__":
    main()
