# SPDX-License-Identifier: Apache-2.0
"""Runs a script of the project as one of several ranks, with what a test wants different: `driver.py PLAN SCRIPT ...`.

PLAN is JSON. Keys that are none of these are passed over:
    freeze: true has batch normalisation use its running statistics.
    record: folder for lists of the training images that each rank loads and of the images that it writes.
    faults: rank -> [moment, deed], what that rank does, and when.
    once: a file that comes with the first fault, after which there is no other.
"""

import itertools
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

PLAN, SCRIPT = json.loads(sys.argv[1]), sys.argv[2]
RANK = os.environ.get("PADDLE_TRAINER_ID", "0")


def do(deed):
    if "once" in PLAN:
        try:
            Path(PLAN["once"]).touch(exist_ok=False)
        except FileExistsError:
            return None
    if deed == "raise":
        raise RuntimeError(f"rank {RANK} has had enough")
    if deed == "exit":
        sys.exit(7)
    if deed == "vanish":
        os._exit(0)
    if deed == "sleep":
        return time.sleep(35)
    return os.kill(os.getpid(), signal.SIGKILL)


def at(owner, name, deed, *, call=1, after=False):
    """Have the given call of `owner.name`, counted from 1, do `deed` before it does what it is for, or after that."""
    original, calls = getattr(owner, name), itertools.count(1)

    def replacement(*arguments, **options):
        now = next(calls) == call
        if now and not after:
            do(deed)
        result = original(*arguments, **options)
        if now and after:
            do(deed)
        return result

    setattr(owner, name, replacement)


def arm(moment, deed):
    """Prepare the fault of this rank."""
    from hmsa.distributed import ranks
    from hmsa.engine import checkpoint, evaluate, step

    if moment == "join":
        at(ranks, "init", deed)
    elif moment == "train":
        at(step.Step, "backward", deed, call=3)
    elif moment == "evaluate":
        at(evaluate, "undo_transforms", deed)
    elif moment == "save" and RANK == "0":
        at(checkpoint, "save", deed)
    elif moment == "save":  # the last thing they do together before the main rank writes
        at(ranks, "all_gather", deed, after=True)
    else:
        raise ValueError(moment)


def freeze():
    """Have every model built from now on normalise by its running statistics, in training too."""
    import paddle

    from hmsa import builder

    build_model = builder.build_model

    def build_frozen(config):
        model = build_model(config)
        for layer in model.sublayers():
            if isinstance(layer, paddle.nn.BatchNorm2D):
                layer._use_global_stats = True
        return model

    builder.build_model = build_frozen


def record(folder):
    """Have this rank write down every training image that it loads, and every file that `predict.py` writes."""
    from hmsa.engine import predict, train

    def note(kind, lines):
        with (Path(folder) / f"{kind}_{RANK}.txt").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    batches, write = train.batches, predict.write_atomically

    def recording_batches(*arguments):
        for batch in batches(*arguments):
            note("loaded", batch["image_path"])
            yield batch

    def recording_write(path, content):
        note("written", [path])
        write(path, content)

    train.batches, predict.write_atomically = recording_batches, recording_write


def main():
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(SCRIPT).parent))
    moment, deed = PLAN.get("faults", {}).get(RANK, (None, None))
    if moment == "start":
        do(deed)

    from hmsa.system import environment

    prepare = environment.prepare
    changed = []

    def prepare_and_change():
        prepare()
        if changed:  # Whatever loads Paddle prepares again.
            return
        changed.append(True)
        if PLAN.get("freeze"):
            freeze()
        if "record" in PLAN:
            record(PLAN["record"])
        if moment:
            arm(moment, deed)

    environment.prepare = prepare_and_change  # scripts call it before they import what is changed
    runpy.run_path(SCRIPT, run_name="__main__")


main()
