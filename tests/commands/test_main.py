# SPDX-License-Identifier: Apache-2.0
"""`hmsa`: its table, its help, what a wrong word is near to, and the installed package from any folder."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hmsa import cli, commands
from hmsa.errors import UsageError
from hmsa.system.version import VERSION

ROOT = Path(__file__).parents[2]
HEAVY = ("paddle", "pydantic", "numpy", "cv2", "matplotlib", "yaml", "PIL", "shtab", "tqdm", "rich", "requests")


def run(*arguments: str, python: tuple[str, ...] = (), folder: Path = ROOT, paths: Path = ROOT):
    command = [sys.executable, *python, "-m", "hmsa", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(paths)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_its_module(name: str) -> None:
    place, does = commands.COMMANDS[name]
    assert place == f"hmsa.commands.{name.replace('-', '_')}"
    assert find_spec(place), f"{name}: there is no {place}"
    assert len(does) < 70 and not does.endswith(".")


def test_every_module_of_the_room_is_a_command() -> None:
    modules = {f"hmsa.commands.{path.stem}" for path in (ROOT / "hmsa/commands").glob("[!_]*.py")}
    assert modules <= {place for place, _ in commands.COMMANDS.values()}


@pytest.mark.parametrize("flags", [(), ("--help",), ("-h",)])
def test_the_help_lists_all_and_loads_nothing(flags: tuple[str, ...]) -> None:
    result = run(*flags, python=("-X", "importtime"))
    assert result.returncode == 0
    assert [name for name in commands.COMMANDS if f"\n  {name} " not in result.stdout] == []
    lines = [line.split("|") for line in result.stderr.splitlines() if line.startswith("import time:")]
    loaded = {name.strip().partition(".")[0] for *_, name in lines[1:]}
    assert loaded.isdisjoint(HEAVY)
    ours = sum(int(line[1]) for line in lines[1:] if line[1].strip().isdigit() and line[2].startswith(" hmsa"))
    assert ours < 300_000  # microseconds of all that `hmsa` imports itself


def test_the_version() -> None:
    assert run("--version").stdout == f"hmsa {VERSION}\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trian", "error: expected a command, found trian: did you mean train?\n"),
        ("checkdata", "error: expected a command, found checkdata: did you mean check-data?\n"),
        ("zzz\x1b", "error: expected a command, found zzz\\x1b: choose from init, check-data, "),
    ],
)
def test_a_wrong_command(word: str, said: str) -> None:
    result = run(word)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(said)


AVAILABLE = [name for name, (place, _) in commands.COMMANDS.items() if find_spec(place)]


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("flag", ["--help", "--no_such_flag"])
def test_help_and_wrong_flags_do_not_wait_for_heavy_packages(name: str, flag: str, tmp_path: Path) -> None:
    for package in HEAVY:
        (tmp_path / f"{package}.py").write_text(f"raise SystemExit('{package} was imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    command = [sys.executable, "-m", "hmsa", name, flag]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == (0 if flag == "--help" else 2), result.stderr
    assert f"usage: hmsa {name} " in result.stdout + result.stderr
    assert "was imported" not in result.stdout + result.stderr


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_help_says_every_default(name: str) -> None:
    parser = commands.parser_of(name)
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.default not in (None, False, []) and action.default is not argparse.SUPPRESS and action.help:
            assert "default" in formatter._expand_help(action), action.option_strings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--config c --lerning_rate 0.1", "--lerning_rate: did you mean --learning_rate?"),
        ("--config c --learning-rat=0.1", "--learning-rat: did you mean --learning_rate?"),
        ("--confg c", "arguments are required: --config; --confg: did you mean --config?"),
        ("--config c --planmemory", "--planmemory: did you mean --plan"),
        ("--zzzzz c", "arguments are required: --config; --zzzzz: no such flag"),
    ],
)
def test_a_wrong_flag(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        commands.parser_of("train").parse_args(line.split())
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_wrong_flag_of_a_part_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.Parser(prog="hmsa convert")
    parser.add_subparsers(required=True).add_parser("coco").add_argument("--annotations")
    with pytest.raises(SystemExit):
        parser.parse_args(["coco", "--anotations", "x"])
    said = capsys.readouterr().err
    assert "usage: hmsa convert coco" in said and "did you mean --annotations?" in said


def test_flags_may_be_shortened() -> None:
    assert commands.parser_of("train").parse_args(["--conf", "c", "--learn", "0.1"]).learning_rate == 0.1


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(commands, "COMMANDS", {name: commands.COMMANDS[name] for name in AVAILABLE})
    monkeypatch.setattr(sys, "argv", ["hmsa", "completion", shell])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert not end.value.code
    script = capsys.readouterr().out
    assert "convert-weights" in script and "learning_rate" in script
    if shell == "bash" and shutil.which("bash"):
        ask = "COMP_WORDS=(hmsa train --lear); COMP_CWORD=2; _shtab_hmsa; echo ${COMPREPLY[@]}"
        answer = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
        assert answer.stdout.split() == ["--learning_rate"]


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise ModuleNotFoundError('No module named yaml', name='yaml')")
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    result = run("train", "--config", "mscale_ocr_toy", folder=tmp_path, paths=Path(paths))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: expected the package yaml, found none: hmsa doctor says what to install\n"


# --- Several processes. ---


def test_processes_are_started_by_the_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    became = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
    monkeypatch.setattr(sys, "argv", ["hmsa train", "--config", "c", "--nproc_per_node", "2"])
    args = commands.parser_of("train").parse_args()
    cli.start_processes(args, "train", tmp_path)
    ((program, words, environment),) = became
    assert program == words[0] == sys.executable
    assert words[1:5] == ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    assert words[5:9] == ["--log_level", "WARNING", "--log_dir", str(tmp_path / "log")]
    assert words[9:] == [sys.executable, "-u", "-m", "hmsa", "train", *sys.argv[1:]]
    assert str(ROOT) in environment["PYTHONPATH"].split(os.pathsep)

    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    cli.start_processes(args, "train", tmp_path)
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "4")
    with pytest.raises(UsageError, match="found 4 of them and --nproc_per_node 2: leave the flag out"):
        cli.start_processes(args, "train", tmp_path)
    cli.start_processes(commands.parser_of("train").parse_args(["--config", "c"]), "train", tmp_path)
    assert len(became) == 1


@pytest.mark.slow
def test_two_processes_train(tiny_recipe: Path, tmp_path: Path) -> None:
    flags = ("--iters", "1", "--save_dir", str(tmp_path / "run"), "--nproc_per_node", "2")
    result = run("train", "--config", str(tiny_recipe), *flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/iter_1/model.pdparams").is_file()
    assert (tmp_path / "run/log/workerlog.1").is_file()


# --- The package as it is installed. ---


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as setuptools puts it together, away from the sources."""
    sources, library = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("library")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("hmsa", "configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(library)]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    shutil.rmtree(sources)
    return library


def test_recipes_and_their_schema_are_in_the_package(installed: Path) -> None:
    ships = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.*") if path.suffix != ".md"}
    recipes = installed / "hmsa/recipes"
    assert {path.relative_to(recipes) for path in recipes.rglob("*.*")} == ships
    assert 'hmsa = "hmsa.commands:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mscale_ocr_toy", "configs/mscale_ocr_toy.yml"])
def test_a_recipe_that_ships_is_found_from_any_folder(installed: Path, tmp_path: Path, name: str) -> None:
    result = run("train", "--config", name, "--opts", "seed=-1", folder=tmp_path, paths=installed)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --opts: expected seed to be ")


@pytest.mark.slow
def test_the_toy_world_is_drawn_and_trained_on_from_any_folder(installed: Path, tmp_path: Path) -> None:
    counts = ("--train", "2", "--coarse", "2", "--val", "1", "--test", "0")
    drawn = run("toy", *counts, folder=tmp_path, paths=installed)
    assert drawn.stdout == (
        "data/toy_cityscapes: 2 train, 2 coarse, 1 val and 0 test images. Next: hmsa train --config mscale_ocr_toy "
        "--do_eval\n"
    )
    options = ("lr_scheduler.warmup_iters=0", "train_dataset.transforms.1.crop_size=[96,64]")
    flags = ("--iters", "2", "--batch_size", "1", "--save_dir", "out", "--opts", *options)
    trained = run("train", "--config", "mscale_ocr_toy", *flags, folder=tmp_path, paths=installed)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out/iter_2/model.pdparams").is_file()
