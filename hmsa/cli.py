# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: flags, and how an error ends. Nothing below this module knows the name of a flag."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NoReturn, Optional

from hmsa.distributed import ranks
from hmsa.errors import HmsaError, Interrupted, Terminated, UsageError, nearest, printable, show_anything
from hmsa.inference import backends

if TYPE_CHECKING:
    from hmsa.config.schema import Config, InferenceSpec

SETTINGS = {
    "backend": "--engine",
    "calibration": "--calibration",
    "custom_color": "--custom_color",
    "format": "--format",
    "input_shape": "--input_shape",
    "precision": "--precision",
    "preprocess": "--preprocess",
    "program": "--program",
    "resume": "--resume_model auto",
    "save_dir": "--save_dir",
    "tflite_python": "--tflite_python",
    "web": "--web",
    "with_attention": "--with_attention",
}
"""What an error names in its `settings`, and the flag by which it is set."""


def run(main: Callable[[argparse.Namespace], None], parser: Parser) -> NoReturn:
    """Parse, call `main`, and leave: 0 done, 1 bad data, 2 bad command line or config, 128 + number of a signal."""
    status = 0
    show_anything()
    ranks.join()
    try:
        main(parser.parse_args())
    except Interrupted as interruption:
        print(parser.explained(interruption), file=sys.stderr)
        status = interruption.status
    except HmsaError as error:
        print(f"error: {parser.explained(error)}", file=sys.stderr, flush=True)
        ranks.fail(parser.explained(error), certain=True)
        sys.exit(error.status)
    except SystemExit as end:  # of argparse: a wrong flag, on this machine perhaps alone
        if end.code:
            ranks.fail(f"ended with status {end.code}; its own log says why", certain=True)
        raise
    except KeyboardInterrupt as interruption:
        _leave_interrupted(interruption)
    except ModuleNotFoundError as error:
        ranks.fail(f"{type(error).__name__}: {error}", certain=True)
        if (error.name or "hmsa").partition(".")[0] == "hmsa":
            raise
        said = f"error: expected the package {error.name}, found none: hmsa doctor says what to install"
        print(said, file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # while Paddle's library was loaded
            _leave_interrupted(error.__cause__)
        ranks.fail(f"{type(error).__name__}: {error}", certain=False)
        raise
    ranks.done()
    sys.exit(status)


def _leave_interrupted(interruption: KeyboardInterrupt) -> NoReturn:
    number = interruption.number if isinstance(interruption, Terminated) else signal.SIGINT
    said = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    print(said, file=sys.stderr)
    ranks.fail(said, certain=True)
    sys.exit(128 + number)


class _Help(argparse.HelpFormatter):
    """Says every default, where the text does not."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        none = any(action.default is value for value in (None, True, False, argparse.SUPPRESS)) or action.default == []
        if none or not action.option_strings or "default" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser whose texts are not empty, whose help says defaults, and which knows what a wrong flag is near to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})
        self.register("type", None, _text)  # of flags that name no type
        self._words: Sequence[str] = ()  # that it was given

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the base class, but that what is not known is an error here, where the flags are known."""
        self._words = sys.argv[1:] if args is None else list(args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            written_out = len(unknown) > 1 and all(map(os.path.exists, unknown))  # as a shell does with *.jpg
            hint = "; put a pattern in quotes, or give a folder" if written_out else ""
            self.error(f"unrecognized arguments: {' '.join(unknown[:20])}{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        flags = {flag.lstrip("-"): flag for flag in self._option_string_actions}
        given = (word.partition("=")[0] for word in self._words if word.startswith("--"))
        wrong = [word for word in given if not any(flag.startswith(word) for flag in flags.values())]
        for word in dict.fromkeys(wrong):
            near = nearest(word.lstrip("-").replace("-", "_"), flags)
            if near or word not in message:
                message += f"; {word}: " + (f"did you mean {flags[near]}?" if near else "no such flag")
        super().error(printable(message))

    def explained(self, error: HmsaError) -> str:
        """What an error says, and which flags of this command line it is about."""
        flags = [SETTINGS[name] for name in error.settings if SETTINGS[name].split()[0] in self._option_string_actions]
        return f"{error} (flag{'s' * (len(flags) > 1)}: {', '.join(flags)})" if flags else str(error)


def _text(text: str) -> str:
    if not text:  # of a shell's variable that is not set; as a path it would be the folder one is in
        raise argparse.ArgumentTypeError("expected a value, found an empty text: give one, or leave the flag out")
    return text


# --- Commands in processes of their own. ---


def command(name: str, *arguments: str) -> list[str]:
    """The words that run a command of this package in this Python; see `environment_of_commands`."""
    return [sys.executable, "-u", "-m", "hmsa", name, *arguments]


def program(name: str) -> str:
    """What a person types to run a command next, who ran this one as a script or as `hmsa`."""
    return f"hmsa {name}" if sys.argv[0].startswith("hmsa ") else f"python {name}.py"


def launched(processes: int, log_dir: str | Path, words: Sequence[str]) -> list[str]:
    """The words that run a command in several processes by Paddle's launcher, one on each GPU if there are any."""
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    # Else it prints thirty lines of its own settings first; PADDLE_LOG_LEVEL=INFO brings them back.
    return [*launcher, "--log_level", "WARNING", "--log_dir", str(log_dir), *command(*words)]


def environment_of_commands() -> dict[str, str]:
    """The variables with which Python finds this package, also where its sources are run."""
    root = Path(__file__).resolve().parents[1]
    if root == Path(sysconfig.get_path("purelib")).resolve():
        return dict(os.environ)
    paths = (str(root), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def add_processes_flag(parser: argparse.ArgumentParser) -> None:
    """How many processes are to do the work, for `start_processes`."""
    parser.add_argument(
        "--nproc_per_node",
        type=count,
        default=1,
        metavar="N",
        help="processes to start on this machine, one on each GPU, by Paddle's launcher (default: %(default)s). On "
        "several machines, run on each: python -m paddle.distributed.launch --nnodes ... $(which hmsa) "
        "and the command",
    )


def start_processes(args: argparse.Namespace, name: str, folder: str | Path) -> None:
    """Become Paddle's launcher of --nproc_per_node processes, unless one is enough or this is one of them.

    Their logs go to `folder`/log; what the first of them prints, the launcher prints too.
    """
    from hmsa.system.environment import paddle_version

    processes = args.nproc_per_node
    if processes == 1:
        return
    here = os.environ.get("PADDLE_LOCAL_SIZE")
    if here is None:
        paddle_version()  # there is one
        words = launched(processes, Path(folder, "log"), [name, *sys.argv[1:]])
        os.execve(words[0], words, {"PYTHONWARNINGS": "ignore:No ccache found", **environment_of_commands()})
    elif here != str(processes):
        raise UsageError(
            f"expected the launcher alone to say how many processes run, found {here} of them and --nproc_per_node "
            f"{processes}: leave the flag out"
        )


# --- Flags that several commands have. ---


def refuse_idle(args: argparse.Namespace, *flags: str, without: str) -> None:
    """UsageError if any of these flags was given on the command line, as they do nothing without something else."""
    unset = (None, False, "auto", "fp32")  # the last two as --engine and --precision are where nobody gives them
    idle = [f"--{flag}" for flag in flags if getattr(args, flag) not in unset]
    if idle:
        them = "it" if len(idle) == 1 else "them"
        raise UsageError(
            f"expected {' and '.join(idle)} together with {without}, found {them} alone, without effect: add "
            f"{without}, or leave {them} out"
        )


def config_parser(description: Optional[str]) -> Parser:
    """A parser with the flags every script takes: --config and --opts."""
    parser = Parser(description=description)
    recipe = "recipe: a file, or the name of one that ships, e.g. mscale_ocr_toy"
    parser.add_argument("--config", required=True, help=recipe)
    parser.add_argument(
        "--opts",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="set anything in the YAML, e.g. --opts train_dataset.coarse_multiple=0 optimizer.weight_decay=0.001",
    )
    return parser


def read_recipe(args: argparse.Namespace, options: Iterable[str] = ()) -> Config:
    """The recipe of a command line, changed by its --opts and by `options`, which other flags stand for."""
    from hmsa.config.reading import load_config

    options = list(options)
    try:
        return load_config(args.config, [*args.opts, *options], opts_name="--opts")
    except UsageError as error:
        text = str(error)
        for key in (option.partition("=")[0] for option in options):
            flag = key.rpartition(".")[2]  # has the name of the key that it stands for
            text = text.replace(f"--opts: expected {key}", f"--{flag}: expected {key}")
        raise UsageError(*text.splitlines(), settings=error.settings) from error


def add_engine_flag(parser: argparse.ArgumentParser, default: Optional[str] = "auto") -> None:
    """What runs the network in evaluation and prediction: a backend, or what is best on the device."""
    parser.add_argument(
        "--engine",
        choices=["auto", *backends.BACKENDS],
        default=default,
        help="what runs the network in evaluation: auto is eager on a GPU, Paddle Inference on a CPU (default: "
        f"{default or 'eager'})",
    )


def add_inference_flags(parser: argparse.ArgumentParser, augment_flag: str) -> None:
    """Flags for the backend, and for flips, scales and tiles as PaddleSeg spells them (sizes are width height)."""
    add_engine_flag(parser)
    parser.add_argument(
        "--precision", choices=backends.precisions(), default="fp32", help="bf16 where the engine has it"
    )
    parser.add_argument(augment_flag, action="store_true", help="average over --scales and the flips")
    parser.add_argument(
        "--scales", nargs="+", action="extend", type=float, help=f"outer scales, averaged (with {augment_flag})"
    )
    parser.add_argument("--flip_horizontal", action="store_true", help="also run mirrored left to right")
    parser.add_argument("--flip_vertical", action="store_true", help="also run mirrored top to bottom")
    parser.add_argument("--is_slide", action="store_true", help="run in overlapping tiles of --crop_size")
    parser.add_argument("--crop_size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="size of a tile")
    parser.add_argument("--stride", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="step from tile to tile")


def count(text: str, least: int = 1) -> int:
    """A whole number of at least so many, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}: correct it")
    return value


count_or_none = partial(count, least=0)


def threads(text: str) -> int:
    """A number of threads to compute with, for argparse: more than there are cores are only slower, or too many."""
    from hmsa.system.environment import cores

    value = count(text)
    if value > cores():
        raise argparse.ArgumentTypeError(f"expected at most {cores()}, one a core, found {value}: give fewer")
    return value


def check_inference_flags(args: argparse.Namespace, augment_flag: str, spec: InferenceSpec) -> None:
    """UsageError for flags of `add_inference_flags` that the recipe they were set in, `spec`, makes no use of."""
    if not spec.aug_eval:
        refuse_idle(args, "scales", "flip_horizontal", "flip_vertical", without=augment_flag)
    elif spec.scales == [1.0] and not spec.flip_horizontal and not spec.flip_vertical:
        refuse_idle(args, augment_flag[2:], "scales", without="a flip or --scales other than 1")
    if not spec.is_slide:
        refuse_idle(args, "crop_size", "stride", without="--is_slide")


def inference_options(args: argparse.Namespace, augment: bool) -> list[str]:
    """The flags of `add_inference_flags` as `--opts` entries for `test_config`; flags not given set nothing."""
    flags = ("flip_horizontal", "flip_vertical", "is_slide", "scales", "crop_size", "stride")
    values = {"aug_eval": augment, **{name: getattr(args, name) for name in flags}}
    return [f"test_config.{name}={value}" for name, value in values.items() if value]
