# SPDX-License-Identifier: Apache-2.0
"""`hmsa`: every command by its name. A command is a module with `make_parser` and `main`, loaded when it is run."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from hmsa.errors import printable, show_anything, suggest
from hmsa.system.version import VERSION

if TYPE_CHECKING:
    from hmsa.cli import Parser

COMMANDS = {
    "init": ("hmsa.commands.init", "write a recipe for your own images and masks"),
    "check-data": ("hmsa.commands.check_data", "look through a data set for what training would trip over"),
    "inspect-batch": ("hmsa.commands.inspect_batch", "draw what training sees: augmented crops with their labels"),
    "train": ("hmsa.commands.train", "train a model"),
    "val": ("hmsa.commands.val", "evaluate weights on the validation set"),
    "predict": ("hmsa.commands.predict", "predict images"),
    "export": ("hmsa.commands.export", "export a network: Paddle Inference, ONNX, OpenVINO, TFLite"),
    "submission": ("hmsa.commands.submission", "write the archive that Cityscapes' test server takes"),
    "benchmark": ("hmsa.commands.benchmark", "measure an export: speed, memory and opening time of every engine"),
    "serve": ("hmsa.commands.serve", "serve an export over HTTP"),
    "plot": ("hmsa.commands.plot", "draw a run's curves"),
    "convert": ("hmsa.commands.convert", "make masks of what people drew: labelme, COCO, CamVid, Cityscapes"),
    "convert-weights": ("hmsa.commands.convert_weights", "bring weights to another format or other tensor names"),
    "toy": ("hmsa.commands.toy", "draw images and labels to try everything on"),
    "schema": ("hmsa.commands.schema", "print what a recipe may hold, for editors or to read"),
    "doctor": ("hmsa.commands.doctor", "check this installation"),
    "completion": ("hmsa.commands.completion", "print what makes a shell complete these commands"),
}
"""Name -> (module, what it does), in the order of the help. Names only, so that the help waits for no import."""


def main() -> None:
    """The entry point: `hmsa COMMAND ...`, also `python -m hmsa`."""
    show_anything()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"hmsa {VERSION}")
    elif name not in COMMANDS:
        print(printable(f"error: expected a command, found {name}: {suggest(name, COMMANDS)}"), file=sys.stderr)
        sys.exit(2)
    else:
        _run(name, rest)


def _run(name: str, arguments: list[str]) -> None:
    from hmsa import cli

    sys.argv = [f"hmsa {name}", *arguments]  # the first is what a parser calls the program
    command = import_module(COMMANDS[name][0])
    cli.run(command.main, command.make_parser())


def parser_of(name: str) -> Parser:
    """The parser of a command."""
    return import_module(COMMANDS[name][0]).make_parser()


def _help() -> str:
    lines = [f"  {name:16} {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hmsa COMMAND ...",
            "",
            "Hierarchical multi-scale attention for semantic segmentation, on PaddlePaddle.",
            "",
            *lines,
            "",
            "hmsa COMMAND --help says more; hmsa --version says which this is. Recipes that ship are named without a",
            "path: --config mscale_ocr_toy.",
        ]
    )
