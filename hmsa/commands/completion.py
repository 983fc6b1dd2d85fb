# SPDX-License-Identifier: Apache-2.0
"""Print what makes a shell complete these commands and their flags. bash: `eval "$(hmsa completion bash)"` in
~/.bashrc; zsh: `hmsa completion zsh > _hmsa` in a folder of $fpath; tcsh: `hmsa completion tcsh > file`, sourced."""

from __future__ import annotations

import argparse
from typing import Any

from hmsa import cli

FOLDERS = ("save_dir", "log_dir", "dataset_root", "cityscapes_path", "images", "predictions", "save_predictions")
FILES = ("config", "model_path", "image_path", "output", "input", "annotations", "masks", "weights", "resume_model")
"""Flags, without their dashes, that take a folder or a file."""


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="whose")
    return parser


def main(args: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(all_commands(), args.shell))


def all_commands() -> cli.Parser:
    """One parser with every command in it."""
    from hmsa.commands import COMMANDS, parser_of

    whole = cli.Parser(prog="hmsa")
    whole.add_argument("--version", action="store_true", help="say which this is")
    places = whole.add_subparsers(metavar="COMMAND")
    for name, (_, does) in COMMANDS.items():
        parser = parser_of(name)
        _say_what_paths_are(parser)
        places.add_parser(name, help=does, parents=[parser], add_help=False)
    return whole


def _say_what_paths_are(parser: argparse.ArgumentParser) -> None:
    import shtab

    for action in parser._actions:
        known: Any = action
        if isinstance(action, argparse._SubParsersAction):
            for kind in action.choices.values():
                _say_what_paths_are(kind)
        elif not action.choices and action.dest in FOLDERS:
            known.complete = shtab.DIRECTORY
        elif not action.choices and action.dest in FILES:
            known.complete = shtab.FILE
