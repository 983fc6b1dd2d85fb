#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a model; under `python -m paddle.distributed.launch` on several GPUs or machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from hmsa import cli


def make_parser() -> argparse.ArgumentParser:
    parser = cli.config_parser(__doc__)
    add = parser.add_argument
    add("--iters", type=int, help="iterations to train, instead of the config's")
    add("--batch_size", type=int, help="pictures a device and step, instead of the config's")
    add("--learning_rate", type=float, help="highest learning rate, instead of the config's")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="instead of the config's")
    add("--seed", type=int, help="of weights, data order, augmentation and dropout, instead of the config's")
    add("--save_dir", default="output", help="folder for checkpoints and curves (default: %(default)s)")
    add("--save_interval", type=cli.count, default=1000, help="iterations between checkpoints (default: %(default)s)")
    add(
        "--keep_checkpoint_max",
        type=cli.count_or_none,
        default=5,
        help="checkpoints kept besides the best, 0 for all (default: %(default)s)",
    )
    add("--resume_model", help="checkpoint folder to go on from, or 'auto' for the newest in --save_dir")
    add("--num_workers", type=int, default=0, help="threads that load pictures ahead (default: 0)")
    add("--do_eval", action="store_true", help="evaluate at every checkpoint and keep the best as best_model")
    cli.add_engine_flag(parser, "eager")
    add("--log_iters", type=cli.count, default=10, help="iterations between lines of progress (default: 10)")
    add("--plan-memory", action="store_true", help="take two steps, evaluate one picture, print the peaks, and end")
    add("--use_vdl", action="store_true", help="record curves for VisualDL in --save_dir")
    return parser


def main(args: argparse.Namespace) -> None:
    from hmsa.config import load_config

    config = load_config(args.config, [*args.opts, *cli.training_options(args)])
    with_val = args.do_eval or (args.plan_memory and config.val_dataset is not None)
    config.require("train_dataset", "optimizer", "lr_scheduler", "loss", *(["val_dataset"] if with_val else []))
    if not with_val:
        cli.refuse_idle(args, "engine", without="--do_eval")

    from hmsa.environment import prepare

    prepare()
    from hmsa import builder, distributed
    from hmsa.engine import checkpoint
    from hmsa.engine.inference import InferenceOptions
    from hmsa.engine.train import TrainOptions, plan_memory, train
    from hmsa.files import writable_folder
    from hmsa.log import open_log
    from hmsa.weights import load_pretrained

    save_dir = Path(args.save_dir)
    if distributed.is_main():
        writable_folder(save_dir)
    distributed.init()
    resume_from = checkpoint.find(args.resume_model, save_dir) if args.resume_model else None
    state = checkpoint.read_state(resume_from) if resume_from else checkpoint.TrainingState()
    options = TrainOptions(
        iters=config.iters,
        batch_size=config.batch_size,
        gradient_accumulation=config.gradient_accumulation,
        precision=config.precision,
        seed=config.seed,
        nonfinite_limit=config.nonfinite_limit,
        config=config.dump(),
        save_dir=save_dir,
        **{
            name: getattr(args, name)
            for name in ("engine", "num_workers", "log_iters", "save_interval", "keep_checkpoint_max")
        },
    )
    dataset = builder.build_dataset(config, "train")
    val_dataset = builder.build_dataset(config, "val") if with_val else None
    model = builder.build_model(config)
    log = open_log(
        save_dir if args.use_vdl and not args.plan_memory else None,
        state.iteration if args.resume_model else None,
        evaluated=not state.to_evaluate,
    )
    for remark in config.remarks() if with_val else ():
        log.line(f"warning: {remark}")
    if resume_from is None:
        for part, path in ((model.backbone, config.model.backbone.pretrained), (model, config.model.pretrained)):
            if path:
                log.line(load_pretrained(part, path))
    scheduler = builder.build_lr_scheduler(config)
    parts = {
        "model": model,
        "loss": builder.build_loss(config),
        "optimizer": builder.build_optimizer(config, scheduler, model),
        "dataset": dataset,
        "val_dataset": val_dataset,
        "inference": InferenceOptions.from_test_config(**config.test_config.model_dump()),
        "options": options,
    }
    if args.plan_memory:
        print(plan_memory(**parts))
    else:
        train(**parts, scheduler=scheduler, resume_from=resume_from, log=log)


if __name__ == "__main__":
    cli.run(main, make_parser())
