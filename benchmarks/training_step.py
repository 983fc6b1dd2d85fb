# SPDX-License-Identifier: Apache-2.0
"""One training step of the recipe, HRNet-W48, batch 1, 256x512: forward, eight losses, backward, SGD with momentum."""

from __future__ import annotations

import theirs
import workplace
from timing import Run, measure, memory, row, times


def step(recompute: bool, height: int, width: int) -> Run:
    from hmsa.system.environment import prepare

    prepare()
    import numpy as np

    from hmsa import builder, load_config
    from hmsa.engine.step import Step

    config = load_config(workplace.RECIPE, [f"model.recompute={str(recompute).lower()}", workplace.WITHOUT_PRETRAINED])
    model = builder.build_model(config)
    model.train()
    training = Step(
        model=model,
        loss=builder.build_loss(config),
        optimizer=builder.build_optimizer(config, builder.build_lr_scheduler(config), model),
        accumulation=1,
        precision="fp32",
        recompute=recompute,
    )
    rng = np.random.default_rng(0)
    batch = {
        "img": rng.normal(size=(1, 3, height, width)).astype(np.float32),
        "label": rng.integers(0, 19, (1, height, width)),
        "image_path": ["random"],
    }

    def one() -> float:
        loss = training.backward(iter([batch]), [0]).terms["loss"]
        training.update()
        return float(loss)

    return one


def ours() -> Run:
    return step(False, 256, 512)


def ours_recompute() -> Run:
    return step(True, 256, 512)


def paddleseg() -> Run:
    import cv2  # noqa: F401 (before Paddle, as Paddle 2.6 wants it)
    import paddle

    paddle.seed(0)
    model = theirs.network()
    model.train()
    optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters(), weight_decay=1e-4)
    image = paddle.randn([1, 3, 256, 512])
    labels = paddle.randint(0, 19, [1, 256, 512])

    def run() -> float:
        loss = theirs.total_loss(model(image), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    return run


def main() -> None:
    measured = measure({"theirs": paddleseg, "ours": ours, "recompute": ours_recompute})
    what = "training step, HRNet-W48, 256x512, batch 1"
    row(f"{what}: time", "paddleseg 2.8.0", *times(measured))
    row(f"{what}: memory", "paddleseg 2.8.0", *memory(measured))
    again = {"theirs": measured["theirs"], "ours": measured["recompute"]}
    row(f"{what}, `recompute: true`: time", "paddleseg 2.8.0", *times(again))
    row(f"{what}, `recompute: true`: memory", "paddleseg 2.8.0", *memory(again))


if __name__ == "__main__":
    main()
