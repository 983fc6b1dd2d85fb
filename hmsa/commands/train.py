# SPDX-License-Identifier: Apache-2.0
"""Train a model, on several GPUs with --nproc_per_node, on several machines under Paddle's launcher."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from hmsa import cli
from hmsa.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from hmsa.config.schema import Config
    from hmsa.datasets.dataset import SegmentationDataset
    from hmsa.datasets.histogram import Histogram
    from hmsa.engine.checkpoint import TrainingState
    from hmsa.engine.log import SilentLog
    from hmsa.engine.train import Trainer
    from hmsa.models import MscaleOCRNet
    from hmsa.system.files import FolderLock


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    add = parser.add_argument
    add("--iters", type=int, help="iterations to train, instead of the config's")
    add("--batch_size", type=int, help="images a device and step, instead of the config's")
    add("--learning_rate", type=float, help="highest learning rate, instead of the config's")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="instead of the config's")
    add("--seed", type=int, help="of weights, data order, augmentation and dropout, instead of the config's")
    add("--deterministic", action="store_true", help="on a GPU, prefer the same bits every time to speed")
    add("--save_dir", default="output", help="folder of this run: checkpoints and curves (default: %(default)s)")
    add("--save_interval", type=cli.count, default=1000, help="iterations between checkpoints (default: %(default)s)")
    add(
        "--keep_checkpoint_max",
        type=cli.count_or_none,
        default=5,
        help="checkpoints kept besides the best, 0 for all (default: %(default)s)",
    )
    add("--resume_model", help="checkpoint folder to go on from, or 'auto' for the newest in --save_dir, if any")
    add("--num_workers", type=cli.count_or_none, default=0, help="threads that load images ahead (default: 0)")
    add("--do_eval", action="store_true", help="evaluate at every checkpoint and keep the best as best_model")
    report = "with --do_eval: evaluate the best checkpoint once more in the end, and write the page of val.py --report"
    add("--report", action="store_true", help=f"{report} to --save_dir/report")
    cli.add_engine_flag(parser, default=None)
    add("--log_iters", type=cli.count, default=10, help="iterations between lines of progress (default: 10)")
    plan = "take two steps, evaluate one image, print the peaks, and end"
    add("--plan-memory", "--plan_memory", action="store_true", help=plan)
    add(
        "--use_vdl", action="store_true", help="curves for VisualDL in --save_dir, as loggers: [visualdl] in the recipe"
    )
    cli.add_processes_flag(parser)
    return parser


def choose_checkpoint(args: argparse.Namespace, lock: FolderLock, loggers: Sequence[str]) -> Optional[Path]:
    """The checkpoint to go on from, None for a new run; then `lock` of --save_dir is taken.

    A run that would replace what another left is refused, and one beside another.
    """
    from hmsa.engine import checkpoint
    from hmsa.engine.loggers import check_loggers
    from hmsa.system.files import LOCK_FILE, writable_folder

    save_dir, auto = Path(args.save_dir), args.resume_model == "auto"
    given = Path(args.resume_model) if args.resume_model and not auto else None
    newest = checkpoint.newest(save_dir)
    if args.plan_memory:
        return newest if auto else given
    check_loggers(loggers, "--use_vdl" if args.use_vdl else "")
    if (save_dir / LOCK_FILE).exists():
        _take(lock, save_dir)

    expected = ""
    if given is not None:
        checkpoint.read_state(given)
        if not checkpoint.is_in(given, save_dir):
            expected = f"no other run where that of {given} goes on"
        elif newest and checkpoint.order_of(given) != checkpoint.order_of(newest):
            expected = f"{given.name} to be the checkpoint written last where it goes on"
    elif not auto:
        expected = "no earlier run where a new one starts"
    there = checkpoint.contents(save_dir)
    if expected and there:
        go_on = f"--resume_model auto to go on from {newest.name}, or " if newest else ""
        raise UsageError(
            f"{save_dir}: expected {expected}, found {there}, which this run would replace: give {go_on}another "
            "--save_dir"
        )

    writable_folder(save_dir)
    _take(lock, save_dir)
    checkpoint.tidy(save_dir)
    if not auto:
        return given
    newest = checkpoint.newest(save_dir)
    unreadable = ", ".join(map(str, checkpoint.unreadable(save_dir)))
    if unreadable and newest is None:
        raise UsageError(
            f"{save_dir}: expected a checkpoint to go on from, found none that can be read: {unreadable}; move that "
            "away to start anew, or give another --save_dir"
        )
    if unreadable:
        print(printable(f"warning: passed over, as they cannot be read: {unreadable}"), file=sys.stderr)
    return newest


def _take(lock: FolderLock, save_dir: Path) -> None:
    """UsageError if another run, of whatever machine, writes to the folder."""
    try:
        alone = lock.take()
    except OSError as error:
        print(printable(f"warning: {save_dir}: a second run would not be noticed ({error})"), file=sys.stderr)
        return
    if not alone:
        raise UsageError(
            f"{save_dir}: expected no other run that writes here, found one that is going on: stop it, or give another "
            "--save_dir"
        )


def evaluates(args: argparse.Namespace, config: Config) -> bool:
    """Whether this run needs `val_dataset`."""
    return args.do_eval or (args.plan_memory and config.val_dataset is not None)


def loggers_of(args: argparse.Namespace, config: Config) -> list[str]:
    """What shows this run, by the recipe and the flag."""
    return list(dict.fromkeys([*config.loggers, *["visualdl"] * args.use_vdl]))


def training_options(args: argparse.Namespace) -> list[str]:
    """Flags that stand for something in the YAML, as `--opts` entries; flags not given set nothing."""
    keys = {name: name for name in ("iters", "batch_size", "precision", "seed")}
    keys["learning_rate"] = "lr_scheduler.learning_rate"
    options = [f"{key}={getattr(args, flag)}" for flag, key in keys.items() if getattr(args, flag) is not None]
    return [*options, "deterministic=true"] if args.deterministic else options


def load(args: argparse.Namespace) -> Config:
    """The recipe, with the flags in it. UsageError for a section that is missing, or a flag without effect."""
    config = cli.read_recipe(args, training_options(args))
    with_val = evaluates(args, config)
    config.require("train_dataset", "optimizer", "lr_scheduler", "loss", *(["val_dataset"] if with_val else []))
    if not with_val:
        cli.refuse_idle(args, "engine", "report", without="--do_eval")
    if config.early_stopping and not (with_val or args.plan_memory):
        raise UsageError(
            f"{config.where('early_stopping')}: expected --do_eval, as it looks at evaluations, found a run without: "
            "add it, or set early_stopping to null"
        )
    args.engine = args.engine or "eager"
    return config


def build_trainer(
    args: argparse.Namespace, config: Config, resume_from: Optional[Path], state: TrainingState
) -> Trainer:
    """The run, at its beginning or for a checkpoint whose state is `state`; its log says how it differs from that."""
    from hmsa import builder
    from hmsa.distributed import ranks
    from hmsa.engine import checkpoint
    from hmsa.engine.log import open_log
    from hmsa.engine.train import Trainer
    from hmsa.inference.averaging import InferenceOptions

    # Data and network first: if they are refused, the curves of an earlier run have not been touched.
    save_dir, with_val = Path(args.save_dir), evaluates(args, config)
    dataset = builder.build_dataset(config, "train")
    val_dataset = builder.build_dataset(config, "val") if with_val else None
    datasets = {"train": dataset, **({"val": val_dataset} if val_dataset else {})}
    new = not (resume_from or args.plan_memory)
    remarks, counted = ranks.decided_by_main(lambda: look_at_labels(datasets)) if new else ([], None)
    model = builder.build_model(config)

    log = open_log(
        None if args.plan_memory else save_dir,
        state.iteration if resume_from and checkpoint.is_in(resume_from, save_dir) else None,
        evaluated=not state.to_evaluate,
        iterations=config.iters,
        loggers=loggers_of(args, config),
    )
    for line in checkpoint.notes(resume_from, config.model_dump()) if resume_from else ():
        log.line(line)
    if args.resume_model and not resume_from:
        log.line(f"no checkpoint in {save_dir}: a new run starts")
    for remark in [*remarks, *(config.remarks() if with_val else ())]:
        log.line(f"warning: {remark}")

    if not resume_from:
        start_from_pretrained(model, config, log)
    weights = builder.class_weights(config, dataset, state.class_weights, counted)
    if weights.values:
        log.line(weights.line(dataset.classes.names))
    scheduler = builder.build_lr_scheduler(config)
    flags = ("engine", "num_workers", "log_iters", "save_interval", "keep_checkpoint_max")
    return Trainer(
        model=model,
        loss=builder.build_loss(config, weights.values),
        optimizer=builder.build_optimizer(config, scheduler, model),
        scheduler=scheduler,
        dataset=dataset,
        val_dataset=val_dataset,
        inference=InferenceOptions.from_test_config(config.test_config),
        early_stopping=builder.build_early_stopping(config),
        options=builder.train_options(
            config, save_dir=save_dir, class_weights=weights.values, **{name: getattr(args, name) for name in flags}
        ),
        log=log,
    )


def look_at_labels(datasets: Mapping[str, SegmentationDataset]) -> tuple[list[str], Optional[Histogram]]:
    """What to warn of before a run begins, and how often classes occur, where that is known of a quick look."""
    from hmsa.datasets.findings import quick_surveys, warnings_before_training
    from hmsa.datasets.histogram import counted_before

    surveys = quick_surveys(datasets)
    return warnings_before_training(datasets, surveys), counted_before(surveys["train"], datasets["train"])


def start_from_pretrained(model: MscaleOCRNet, config: Config, log: SilentLog) -> None:
    """Load what `pretrained` of the network and of its backbone name, if anything, and log what that was."""
    from hmsa.weights.loading import load_pretrained

    for key, part in (("model.backbone.pretrained", model.backbone), ("model.pretrained", model)):
        path = attrgetter(key)(config)
        if path:
            try:
                log.line(load_pretrained(part, path))
            except DataError as error:
                raise DataError(f"{config.where(key)}: {error} (null trains without it)") from error


def main(args: argparse.Namespace) -> None:
    start = time.monotonic()
    config = load(args)
    cli.start_processes(args, "train", args.save_dir)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa.distributed import ranks
    from hmsa.system.files import FolderLock

    ranks.init()
    with FolderLock(Path(args.save_dir)) as lock:
        loggers = loggers_of(args, config)
        train(args, config, ranks.decided_by_main(lambda: choose_checkpoint(args, lock, loggers)), start)


def train(args: argparse.Namespace, config: Config, resume_from: Optional[Path], start: float) -> None:
    """Train from a checkpoint or from the beginning, and say how it went; `start` is when the command began."""
    from tqdm import tqdm

    from hmsa import builder
    from hmsa.engine import checkpoint
    from hmsa.engine.log import open_log
    from hmsa.report.run import beginning, best_folder, ending

    state = checkpoint.read_state(resume_from) if resume_from else checkpoint.TrainingState()
    early_stopping = builder.build_early_stopping(config)
    to_evaluate = state.to_evaluate and args.do_eval
    if not (args.plan_memory or state.iteration < config.iters or to_evaluate):
        open_log().line(
            f"already finished: {resume_from} is at iteration {state.iteration} of {config.iters}; a larger --iters "
            "goes on"
        )
        return
    ended = early_stopping.reason(state.watched) if early_stopping else ""
    if ended and not (args.plan_memory or to_evaluate):
        open_log().line(f"already finished: in {resume_from}, {ended}; a larger patience goes on")
        return

    trainer = build_trainer(args, config, resume_from, state)
    if args.plan_memory:
        print(trainer.plan_memory())
        return
    if resume_from:
        trainer.resume(resume_from)
    for line in beginning(trainer):
        trainer.log.line(line)
    with contextlib.closing(trainer.log):
        trainer.train()
    config_and_weights = "--config {folder}/config.yml --model_path {folder}"
    next_steps = [
        f"{cli.program('val')} {config_and_weights}",
        f"{cli.program('predict')} {config_and_weights} --image_path FOLDER_OR_IMAGE",
    ]
    for line in ending(trainer, tqdm.format_interval(time.monotonic() - start), next_steps):
        trainer.log.line(line)
    if args.report:
        folder = best_folder(trainer)
        del trainer  # whose memory the evaluation may need
        report_of(folder, args)


def report_of(folder: Path, args: argparse.Namespace) -> None:
    """Evaluate a checkpoint on all ranks, as val.py does, and write the page beside it."""
    from hmsa.commands import val
    from hmsa.system.memory import release_unused

    release_unused()
    page = Path(args.save_dir, "report")
    words = ["--config", f"{folder}/config.yml", "--model_path", f"{folder}", "--report", f"{page}"]
    words += ["--output", f"{page}/evaluation.json", "--engine", args.engine, "--num_workers", f"{args.num_workers}"]
    val.main(val.make_parser().parse_args(words))
