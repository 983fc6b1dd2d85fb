# SPDX-License-Identifier: Apache-2.0
"""Starts train.py again and again without waiting for its imports: `train.main` in a fork of a process that has them.

Reads a list of arguments a line, as JSON, and a second list: the file for what the fork prints. Answers with the fork's
process id, and once it has ended with its status (negative: the signal that killed it).
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
from hmsa import cli
from hmsa.system.environment import prepare

prepare()
import visualdl  # noqa: E402, F401

import hmsa.engine.train  # noqa: E402, F401

for line in sys.stdin:
    arguments, (output,) = json.loads(line)
    child = os.fork()
    if child == 0:
        console = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(console, 1)
        os.dup2(console, 2)
        sys.stdout.reconfigure(line_buffering=True)
        sys.argv = ["train.py", *arguments]
        try:
            cli.run(train.main, train.make_parser())
        except SystemExit as ending:
            sys.stdout.flush()
            os._exit(ending.code)
        os._exit(70)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
