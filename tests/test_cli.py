# SPDX-License-Identifier: Apache-2.0
"""Flags of every script: given twice, given without effect, and the example in their help."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hmsa import cli, commands
from hmsa.commands import COMMANDS, train
from hmsa.commands.export import chosen_output
from hmsa.config.reading import load_config
from hmsa.errors import Interrupted, UsageError

ROOT = Path(__file__).parents[1]
SCRIPTS = [*(ROOT / f"{name}.py" for name in ("train", "val", "predict", "export")), *sorted(ROOT.glob("tools/*.py"))]
TOY = ROOT / "configs/mscale_ocr_toy.yml"


def parser_of(script: Path) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser()


PARSERS = {script.stem: parser_of(script) for script in SCRIPTS}
PARSERS.update({name: commands.parser_of(name) for name, (place, _) in COMMANDS.items() if find_spec(place)})
FLAGS = [
    (name, action.option_strings[0])
    for name, parser in PARSERS.items()
    for action in parser._actions
    if action.option_strings and action.nargs != 0
]


def test_a_pattern_that_the_shell_has_written_out_is_told_of(tmp_path, capsys) -> None:
    images = [str(tmp_path / name) for name in "abc"]
    for image in images:
        Path(image).touch()
    with pytest.raises(SystemExit):
        PARSERS["predict"].parse_args(["--config", "c", "--model_path", "m", "--image_path", *images])
    assert f"{images[2]}; put a pattern in quotes, or give a folder" in capsys.readouterr().err


def test_an_interruption_while_paddle_is_loaded_is_one(capsys, monkeypatch) -> None:
    def main(_: argparse.Namespace) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("sys.argv", ["hmsa"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main, cli.Parser())
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_the_launcher_keeps_its_settings_to_itself(tmp_path) -> None:
    words = cli.launched(2, tmp_path, ["train", "--config", "c"])
    assert words[words.index("--log_level") + 1] == "WARNING" and words[-3:] == ["train", "--config", "c"]


def words(action: argparse.Action, value: int) -> list[str]:
    """A flag, or what has no flag, with one of two values."""
    word = list(map(str, action.choices))[value] if action.choices else str(value + 1)
    if not action.option_strings:
        return [word]
    return [action.option_strings[0], *[word] * (action.nargs if isinstance(action.nargs, int) else 1)]


def both(name: str, flag: str, *values: int) -> Any:
    """What comes of a flag given with these values, one after the other, beside all that is required."""
    actions = PARSERS[name]._actions
    line = [
        word for action in actions if action.required and flag not in action.option_strings for word in words(action, 0)
    ]
    (mine,) = (action for action in actions if flag in action.option_strings)
    args = PARSERS[name].parse_args([*line, *(word for value in values for word in words(mine, value))])
    return getattr(args, mine.dest), mine.nargs


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr("hmsa.system.environment.cores", lambda: 2)


@pytest.mark.parametrize(("name", "flag"), FLAGS)
@pytest.mark.usefixtures("two_cores")
def test_a_list_given_twice_loses_nothing_and_of_other_flags_the_last_counts(name: str, flag: str) -> None:
    once, nargs = both(name, flag, 0)
    if nargs in ("+", "*"):
        assert both(name, flag, 0, 1)[0] == [*once, *both(name, flag, 1)[0]]
        return
    assert both(name, flag, 0, 0)[0] == once
    assert both(name, flag, 0, 1)[0] == both(name, flag, 1)[0]


TEXTS = [
    (name, flag)
    for name, flag in FLAGS
    for action in PARSERS[name]._actions
    if flag in action.option_strings and action.type is None and not action.nargs and not action.choices
]


@pytest.mark.parametrize(("name", "flag"), TEXTS)
def test_an_empty_text_is_no_value(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    required = [a for a in PARSERS[name]._actions if a.required and a.option_strings and flag not in a.option_strings]
    with pytest.raises(SystemExit) as end:
        PARSERS[name].parse_args([*(word for action in required for word in words(action, 0)), flag, ""])
    assert end.value.code == 2
    assert "expected a value, found an empty text: give one, or leave the flag out" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "flag"), [flag for flag in FLAGS if flag[1] == "--num_workers"])
def test_fewer_than_no_threads(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        both(name, flag, -4)
    assert end.value.code == 2
    assert re.search("--num_workers: expected a whole number of at least [01], found '-3'", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["benchmark", "serve"])
@pytest.mark.usefixtures("two_cores")
def test_more_threads_than_cores(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert both(name, "--threads", 1)[0] == 2
    with pytest.raises(SystemExit) as end:
        both(name, "--threads", 2)
    assert end.value.code == 2
    assert "--threads: expected at most 2, one a core, found 3: give fewer" in capsys.readouterr().err


def test_all_of_several_options_count() -> None:
    line = ["--config", str(TOY), "--opts", "iters=60", "seed=3", "--opts", "batch_size=2"]
    args = PARSERS["train"].parse_args(line)
    config = load_config(args.config, args.opts)
    assert (config.iters, config.seed, config.batch_size) == (60, 3, 2)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.stem)
def test_the_example_of_the_help_works_with_every_recipe(recipe: Path) -> None:
    examples = {
        re.search(r"e\.g\. --opts (\S+=\S+ \S+=\S+)", " ".join(PARSERS[name].format_help().split()))[1]
        for name in ("train", "val", "predict", "export")
    }
    for example in examples:
        load_config(recipe, example.split())


# --- Flags without effect. ---


def checked(script: str, *line: str) -> None:
    """Read a command line and its recipe as the script does."""
    weights = ["--model_path", "w", *(["--image_path", "p"] if script == "predict" else [])]
    args = PARSERS[script].parse_args(["--config", str(TOY), *weights, *line])
    augment = {"val": "aug_eval", "predict": "aug_pred"}[script]
    config = load_config(args.config, [*args.opts, *cli.inference_options(args, getattr(args, augment))])
    cli.check_inference_flags(args, f"--{augment}", config.test_config)


@pytest.mark.parametrize("script", ["val", "predict"])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--scales 0.5 1", "expected --scales together with --aug_X, found it alone, without effect"),
        ("--scales 1", "expected --scales together with --aug_X"),
        ("--flip_horizontal --flip_vertical", "expected --flip_horizontal and --flip_vertical together with --aug_X"),
        ("--aug_X", "expected --aug_X together with a flip or --scales other than 1"),
        ("--aug_X --scales 1.0", "expected --aug_X and --scales together with a flip"),
        ("--crop_size 64 64", "expected --crop_size together with --is_slide"),
        ("--stride 64 64", "expected --stride together with --is_slide"),
        ("--aug_X --flip_vertical --stride 32 32", "expected --stride together with --is_slide"),
        ("--is_slide --crop_size 64 64 --scales 2", "expected --scales together with --aug_X"),
    ],
)
def test_flags_without_effect_are_refused(script: str, line: str, sentence: str) -> None:
    augment = {"val": "aug_eval", "predict": "aug_pred"}[script]
    with pytest.raises(UsageError, match=re.escape(sentence.replace("aug_X", augment))):
        checked(script, *line.replace("aug_X", augment).split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--aug_eval --flip_horizontal",
        "--aug_eval --scales 0.5 1",
        "--is_slide --crop_size 64 64 --stride 32 32",
        "--scales 0.5 --opts test_config.aug_eval=true",
        "--flip_vertical --opts test_config.aug_eval=true",
        "--aug_eval --opts test_config.flip_vertical=true",
        "--stride 32 32 --opts test_config.is_slide=true test_config.crop_size=[64,64]",
        "--opts test_config.scales=[0.5] test_config.crop_size=[64,64]",  # in a recipe, for those who switch it on
    ],
)
def test_flags_with_effect_are_not(line: str) -> None:
    checked("val", *line.split())


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("val.py --model_path w --crop_size 64 64", "expected --crop_size together with --is_slide"),
        ("predict.py --model_path w --image_path p --scales 2", "expected --scales together with --aug_pred"),
        ("train.py --engine eager", "expected --engine together with --do_eval"),
        (
            "export.py --model_path w --without_argmax --output_op softmax",
            "found --without_argmax, which is --output_op",
        ),
        (
            "train.py --iters 5 --opts iters=7",
            "expected iters once, by an option or by a flag of its own, found both 7",
        ),
        ("train.py --opts seed=-3", "error: --opts: expected seed to be"),
    ],
)
def test_they_are_refused_before_paddle_is_loaded(command: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "paddle.py").write_text("raise SystemExit('paddle was imported')")
    script, *line = command.split()
    run = subprocess.run(
        [sys.executable, str(ROOT / script), "--config", str(TOY), *line],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert sentence in run.stderr


def test_what_a_deprecated_flag_of_the_export_stands_for() -> None:
    def chosen(*line: str) -> str:
        return chosen_output(PARSERS["export"].parse_args(["--config", "c", "--model_path", "w", *line]))

    assert [chosen(), chosen("--output_op", "softmax"), chosen("--without_argmax")] == ["argmax", "softmax", "none"]
    assert [chosen("--with_softmax"), chosen("--with_softmax", "--without_argmax")] == ["softmax", "softmax"]
    assert chosen("--without_argmax", "--output_op", "none") == "none"
    with pytest.raises(
        UsageError, match=r"--with_softmax, which is --output_op softmax, and --output_op argmax: leave"
    ):
        chosen("--with_softmax", "--output_op", "argmax")


def test_all_checkpoints_may_be_kept() -> None:
    given = PARSERS["train"].parse_args(["--config", "c", "--keep_checkpoint_max", "0"])
    assert given.keep_checkpoint_max == 0
    with pytest.raises(SystemExit):
        PARSERS["train"].parse_args(["--config", "c", "--keep_checkpoint_max", "-1"])


# --- The only place that knows the names of flags. ---

PACKAGE = ROOT / "hmsa"
NAMED_ELSEWHERE = {
    "config/reference.py": "a command on the page that it writes",
    "datasets/cityscapes.py": "commands of tools, whole, to be copied",
    "datasets/kinds.py": "a command, whole, to be copied",
    "draft.py": "in the text of a recipe",
    "distributed/ranks.py": "a flag of Paddle's launcher, in a comment",
}


def test_no_module_below_the_command_lines_names_a_flag() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    naming = {name for name, text in files.items() if re.search(r"(?<![\w-])--[a-z]", text)}
    below = {name for name in naming if not name.startswith("commands/")}
    assert below == {"cli.py", *NAMED_ELSEWHERE}


def test_every_setting_that_an_error_names_has_a_flag_of_some_script() -> None:
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    named = {name for text in texts for found in re.findall(r"settings=\[(.*?)\]", text) for name in eval(f"[{found}]")}
    assert named == set(cli.SETTINGS)
    flags = {flag for parser in PARSERS.values() for action in parser._actions for flag in action.option_strings}
    assert {value.split()[0] for value in cli.SETTINGS.values()} <= flags


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("val", "bf16 needs openvino (flags: --engine, --precision)"),
        ("train", "bf16 needs openvino (flags: --engine, --precision)"),
        ("export", "bf16 needs openvino (flag: --precision)"),
    ],
)
def test_an_error_ends_in_the_flags_that_the_script_has(script: str, said: str) -> None:
    error = UsageError("bf16 needs openvino", settings=["backend", "precision"])
    assert PARSERS[script].explained(error) == said
    assert PARSERS[script].explained(UsageError("wrong")) == "wrong"


def test_how_to_go_on_after_a_signal() -> None:
    assert PARSERS["train"].explained(Interrupted("resume", 15)) == "resume (flag: --resume_model auto)"


def test_a_value_that_cannot_be_is_told_of_the_flag_that_gave_it():
    args = PARSERS["train"].parse_args(["--config", str(TOY), "--iters", "0", "--opts", "seed=-1"])
    with pytest.raises(UsageError) as caught:
        cli.read_recipe(args, train.training_options(args))
    assert sorted(line.partition(" to be ")[0] for line in str(caught.value).splitlines()) == [
        "--iters: expected iters",
        "--opts: expected seed",
    ]
