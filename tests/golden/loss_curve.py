# SPDX-License-Identifier: Apache-2.0
"""Records the losses of the first iterations of the tests' recipe in `loss_curves.json`, for each precision that this
device trains in: `python tests/golden/loss_curve.py`. A CPU has fp32 alone.
"""

import json
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent
CURVES = GOLDEN / "loss_curves.json"
ITERATIONS = 20
OPTIONS = [f"iters={ITERATIONS}", "lr_scheduler.learning_rate=0.001"]
"""At the recipe's own rate, rounding grows to a tenth of the loss within these iterations."""

sys.path.insert(0, str(GOLDEN.parent))
sys.path.insert(0, str(GOLDEN.parent.parent))


def losses(recipe, precision, save_dir):
    """The total loss of every iteration; data, dropout and weights are those of the recipe's seed."""
    from hmsa import builder
    from hmsa.config.reading import load_config
    from hmsa.engine.log import SilentLog
    from hmsa.engine.train import Trainer

    log, curve = SilentLog(), []
    log.record = lambda record: curve.append(record["loss"])
    config = load_config(recipe, [*OPTIONS, f"precision={precision}"])
    model = builder.build_model(config)
    scheduler = builder.build_lr_scheduler(config)
    Trainer(
        model=model,
        loss=builder.build_loss(config),
        optimizer=builder.build_optimizer(config, scheduler, model),
        scheduler=scheduler,
        dataset=builder.build_dataset(config, "train"),
        options=builder.train_options(config, save_dir=Path(save_dir), log_iters=1),
        log=log,
    ).train()
    return curve


def main():
    import tempfile

    from conftest import draw_toy, write_tiny_recipe

    from hmsa.errors import UsageError
    from hmsa.system.device import check_precision

    curves = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_tiny_recipe(draw_toy(Path(folder)))
        for precision in ("fp32", "bf16", "fp16"):
            try:
                check_precision(precision)
            except UsageError as error:
                print(f"{precision} is left as it is: {error}")
                continue
            curves[precision] = [round(loss, 6) for loss in losses(recipe, precision, Path(folder) / precision)]
    CURVES.write_text(json.dumps(curves, indent=2) + "\n")


if __name__ == "__main__":
    main()
