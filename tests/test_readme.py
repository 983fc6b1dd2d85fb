# SPDX-License-Identifier: Apache-2.0
"""Every command of the README is run: as it stands, but on the toy data set, with a small network and one process."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from PIL import Image

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.toy.shapes import write_shapes

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.backbone.type=HRNet_W18_NV_Small_V1", "model.ocr_mid_channels=16", "model.ocr_key_channels=8",
    "model.attention_mid_channels=8",
]  # fmt: skip
EXTRA = {
    "train": [
        *("--iters", "1", "--num_workers", "1", "--opts", *SMALL),
        *("train_dataset.transforms.1.crop_size=[96,64]", "lr_scheduler.warmup_iters=0"),
    ],
    "val": ["--opts", *SMALL],
    "predict": ["--opts", *SMALL],
    "export": ["--opts", *SMALL, "model.scales=[0.5,1.0]"],
}
"""What makes each command small."""


def blocks(language):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands():
    """The README's calls of Python and of `hmsa`, one string each, in order."""
    lines = "\n".join(blocks("shell")).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].rstrip() for line in lines if re.search(r"\bpython\b|^hmsa\b", line)]


def arguments(command):
    """Script and arguments, without the environment and the launcher; of `hmsa`, what Python is given for it."""
    words = shlex.split(command)
    if words[0] == "hmsa":
        return ["-m", *words]
    while "=" in words[0]:
        words.pop(0)
    assert words.pop(0) == "python"
    return words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, toy_root):
    """A folder like a clone, with data, released and pretrained weights where the README puts them."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "val.py", "predict.py", "export.py", "configs", "hmsa", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()
    (folder / "data/cityscapes").symlink_to(toy_root)
    (folder / "my_pictures").symlink_to(toy_root / "leftImg8bit/test")
    config = load_config(ROOT / "configs/mscale_ocr_cityscapes_autolabel_mapillary.yml", SMALL)
    state = builder.build_model(config).state_dict()
    for path in ("saved_model/model.pdparams", "pretrain/pretrained.pdparams"):
        (folder / path).parent.mkdir()
        paddle.save(state, str(folder / path))

    (folder / "data/toy_cityscapes").symlink_to(toy_root)
    demo = folder / "output/demo/model/best_model"
    demo.mkdir(parents=True)
    paddle.save(state, str(demo / "model.pdparams"))
    (demo / "config.yml").write_text(config.dump())
    photo = next((toy_root / "leftImg8bit/test").rglob("*.png"))
    Image.open(photo).resize((97, 65)).save(folder / "photo.jpg")
    write_own_images(folder)
    return folder


def write_own_images(folder):
    """Some images and their masks, as a user of the README has them."""
    write_shapes(folder / "drawn", count=5)
    (folder / "drawn/images").rename(folder / "photos")
    (folder / "drawn/masks").rename(folder / "masks")


def test_no_paragraph_is_a_wall():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    paragraphs = [part for part in re.split(r"\n\n|\n(?=- )", text) if not part.lstrip().startswith("|")]
    assert [part[:60] for part in paragraphs if len(part.split()) > 60] == []


def test_the_readme_has_the_steps_of_the_reference():
    scripts = [
        Path(next(word for word in arguments(c) if word.endswith(".py") or word == "hmsa")).name for c in commands()
    ]
    assert scripts.count("val.py") >= 3
    for script in (
        "convert_cityscapes.py",
        "convert_cityscapes_autolabeling.py",
        "train.py",
        "export.py",
        "predict.py",
    ):
        assert script in scripts


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_command(command, workplace):
    words = arguments(command)
    name = words[2] if words[0] == "-m" else Path(words[0]).stem
    if name == "make_toy_cityscapes":
        (workplace / "data/toy_cityscapes").unlink()  # the link to the smaller one, that the commands above run on
    run = subprocess.run(
        [sys.executable, *words, *EXTRA.get(name, [])],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_the_python_programs_run(workplace):
    """As printed, on the small network of the demo's place, and the export that a command above them wrote."""
    for number, program in enumerate(blocks("python")):
        small = ", ".join(map(repr, SMALL))
        program = program.replace('["model.scales=[0.5, 1.0]"]', f'["model.scales=[0.5, 1.0]", {small}]')
        run = subprocess.run([sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True)
        assert run.returncode == 0, f"program {number}: {run.stderr}"


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("shell")), re.MULTILINE):
        assert target in targets


def test_every_file_in_the_tree_exists():
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    folder = ROOT
    for line in tree.strip().splitlines():
        head = re.split(r"\s{2,}", line.strip())
        if line.startswith(" ") and head[0].endswith("/"):
            assert (ROOT / "hmsa" / head[0]).is_dir()
        for name in re.findall(r"\b(\w+\.py)\b", head[0]):
            assert (folder / name).is_file() or (ROOT / "hmsa" / name).is_file(), name


def test_every_promise_is_held_by_a_test_that_exists():
    text = (ROOT / "docs/reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    promises = [row for row in rows if "tests/" in row]
    assert len(promises) > 20
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
