#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""One export, every route: how many labels of ten images are those of predict.py.

    python benchmarks/routes.py --config configs/mscale_ocr_toy.yml --model_path output/demo/model/best_model

Exports in all formats that can be written here, runs what of deploy/ and docs/ can run here, and prints a table; what
is not installed is a row that says so. `--page docs/deployment.md` puts the table there, under the name of --name.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
Labels = dict[str, np.ndarray]
"""Name of an image, without its ending -> the classes of its pixels, uint8 [H, W]."""


class Missing(Exception):
    """What a route needs and is not there."""


# --- Images. ---


def write_images(folder: Path, sources: Path) -> list[Path]:
    """Ten images as people have them, made of photographs or drawn streets: odd sizes, grey, upright, tiny, ..."""
    paths = sorted(path for path in sources.rglob("*") if path.suffix in (".png", ".jpg"))[:4]
    if not paths:
        raise SystemExit(f"error: {sources}: expected images, found none: name a folder of them by --images")
    a, b, c, d = ([np.array(Image.open(path).convert("RGB")) for path in paths] * 4)[:4]
    folder.mkdir(parents=True)

    made = {
        "even.png": Image.fromarray(a),
        "odd.png": Image.fromarray(cv2.resize(b, (161, 97))),
        "grey.png": Image.fromarray(c).convert("L"),
        "portrait.png": Image.fromarray(cv2.resize(d, (150, 260))),
        "tiny.png": Image.fromarray(cv2.resize(a, (20, 20))),
        "wide.png": Image.fromarray(cv2.resize(b, (403, 66))),
        "palette.png": Image.fromarray(c).quantize(64),
        "transparent.png": Image.fromarray(np.dstack([d, d[..., 0]])),
        "square.png": Image.fromarray(cv2.resize(a, (129, 129))),
        "photo.jpg": Image.fromarray(b),
    }
    for name, image in made.items():
        image.save(folder / name)
    return sorted(folder.iterdir())


def read_labels(folder: Path) -> Labels:
    return {path.stem: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


# --- Routes: (export, images, folder for results) -> labels. ---


def _run(*words: object, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def program_of_the_page(export: Path, images: list[Path], output: Path) -> Labels:
    """The program of 15 lines in docs/deployment.md."""
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    program = output / "program.py"
    program.write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    for image in images:
        _run(sys.executable, program, export, image, output / f"{image.stem}.png")
    return read_labels(output)


def paddleseg(export: Path, images: list[Path], output: Path) -> Labels:
    """The calls of PaddleSeg's deploy/python/infer.py, in its order, with its transforms."""
    import paddle
    import paddleseg.transforms as T
    import yaml
    from paddleseg.cvlibs import manager

    deploy = yaml.safe_load((export / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    transforms = T.Compose([manager.TRANSFORMS[step.pop("type")](**step) for step in deploy["transforms"]])
    config = paddle.inference.Config(*(str(export / deploy[key]) for key in ("model", "params")))
    config.disable_glog_info()
    config.enable_memory_optim()
    config.switch_ir_optim(True)
    config.disable_gpu()
    config.enable_mkldnn()
    predictor = paddle.inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    result = predictor.get_output_handle(predictor.get_output_names()[0])

    labels = {}
    for image in images:
        data = np.array([transforms({"img": str(image)})["img"]])
        source.reshape(data.shape)
        source.copy_from_cpu(data)
        predictor.run()
        labels[image.stem] = result.copy_to_cpu()[0].astype(np.uint8)
    return labels


def stand_alone(engine: str, package: str) -> Callable[[Path, list[Path], Path], Labels]:
    """deploy/python/infer.py with an engine."""

    def route(export: Path, images: list[Path], output: Path) -> Labels:
        _need(package)
        script = ROOT / "deploy/python/infer.py"
        _run(sys.executable, "-I", script, export, *images, "--engine", engine, "--save", "id", "--output", output)
        return read_labels(output / "id")

    return route


def cpp(program: Path, engine: str) -> Callable[[Path, list[Path], Path], Labels]:
    """deploy/cpp, as `make cpp` builds it, with an engine if that is built in."""

    def route(export: Path, images: list[Path], output: Path) -> Labels:
        if not program.is_file():
            raise Missing("build/cpp/hmsa_infer: make system-packages cpp")
        try:
            _run(program, export, *images, "--output", output, "--engine", engine)
        except SystemExit as error:
            if "built without" not in str(error):
                raise
            raise Missing(f"`make cpp CMAKE_OPTIONS=-D{engine.upper()}_DIR=...`") from None
        return read_labels(output / "pseudo_color_prediction")

    return route


def browser(web: Path) -> Callable[[Path, list[Path], Path], Labels]:
    """deploy/web, as `make web-demo` or its test builds it, in headless Chromium."""

    def route(export: Path, images: list[Path], output: Path) -> Labels:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if not (chromium and shutil.which("node") and (web / "node_modules").is_dir() and (web / "dist").is_dir()):
            raise Missing("node, Chromium and a built deploy/web: make system-packages web-demo")
        site, labels = output / "site", output / "labels"
        shutil.copytree(web / "dist", site, ignore=shutil.ignore_patterns("model"))
        (site / "model").mkdir()
        labels.mkdir()
        for name in ("deploy.yaml", "model.onnx"):
            shutil.copyfile(export / name, site / "model" / name)
        _run("node", "test/browser.mjs", "labels", sys.executable, chromium, site, labels, *images, cwd=web)
        return {path.stem: np.array(Image.open(path)) for path in labels.iterdir()}

    return route


def server(export: Path, images: list[Path], output: Path) -> Labels:
    """`hmsa serve`, asked over HTTP."""
    _need("fastapi", "uvicorn")
    with _serving(export, output / "log.txt") as address:
        labels = {}
        for image in images:
            request = urllib.request.Request(f"{address}/segment?output=label", image.read_bytes(), method="POST")
            request.add_header("Content-Type", "application/octet-stream")
            with urllib.request.urlopen(request, timeout=120) as answer:
                (output / f"{image.stem}.png").write_bytes(answer.read())
            labels[image.stem] = np.array(Image.open(output / f"{image.stem}.png"))
        return labels


@contextlib.contextmanager
def _serving(export: Path, log: Path) -> Iterator[str]:
    words = [sys.executable, "-u", "-m", "hmsa", "serve", str(export), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            found = re.search(r"http://[\d.:]+", line)
            if found:
                yield found[0]
                return
        raise SystemExit(f"error: the server did not start\n{said}{log.read_text()}")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _need(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise Missing(f"the package {package}")


def routes(args: argparse.Namespace) -> dict[str, Callable[[Path, list[Path], Path], Labels]]:
    return {
        "Paddle Inference, the program of 15 lines": program_of_the_page,
        "Paddle Inference, PaddleSeg's calls": paddleseg,
        "`deploy/python`, Paddle Inference": stand_alone("paddle", "paddle"),
        "`deploy/python`, ONNX Runtime": stand_alone("onnxruntime", "onnxruntime"),
        "`deploy/python`, OpenVINO": stand_alone("openvino", "openvino"),
        "`deploy/cpp`, OpenVINO": cpp(args.cpp.resolve(), "openvino"),
        "`deploy/cpp`, ONNX Runtime": cpp(args.cpp.resolve(), "onnxruntime"),
        "`deploy/cpp`, Paddle Inference": cpp(args.cpp.resolve(), "paddle"),
        "`deploy/web`, onnxruntime-web in Chromium": browser(args.web.resolve()),
        "`hmsa serve`": server,
    }


def tflite(args: argparse.Namespace, folder: Path, images: list[Path]) -> tuple[int, int, int]:
    """TFLite at one size: an export of its own, and the images at that size -> images, pixels, other labels."""
    _need("ai_edge_litert")
    width, height = args.tflite_size
    resized = folder / "resized"
    resized.mkdir()
    for path in images:
        Image.open(path).convert("RGB").resize((width, height)).save(resized / f"{path.stem}.png")
    export = folder / "fixed"
    size = ("--input_shape", 1, 3, height, width)
    _run(sys.executable, ROOT / "export.py", *_weights(args), "--format", "tflite", *size, "--save_dir", export)
    expected = predicted(args, resized, folder / "expected")
    found = stand_alone("tflite", "ai_edge_litert")(export, sorted(resized.iterdir()), folder / "found")
    return _compared(found, expected)


# --- The table. ---


def _weights(args: argparse.Namespace) -> list[str]:
    return ["--config", str(args.config.resolve()), "--model_path", str(args.model_path.resolve())]


def predicted(args: argparse.Namespace, images: Path, output: Path) -> Labels:
    """What predict.py says of images."""
    _run(sys.executable, ROOT / "predict.py", *_weights(args), "--image_path", images, "--save_dir", output)
    return read_labels(output / "pseudo_color_prediction")


def _compared(found: Labels, expected: Labels) -> tuple[int, int, int]:
    """Images, pixels, and pixels with another label."""
    assert found.keys() == expected.keys(), f"{sorted(found)} instead of {sorted(expected)}"
    other = pixels = 0
    for name, label in expected.items():
        assert found[name].shape == label.shape, name
        other, pixels = other + int((found[name] != label).sum()), pixels + label.size
    return len(expected), pixels, other


def measure(args: argparse.Namespace, folder: Path) -> list[str]:
    """The lines of the table; what each route wrote stays below `folder`."""
    images = write_images(folder / "images", args.images)
    expected = predicted(args, folder / "images", folder / "predict")
    formats = ["onnx"] * bool(find_spec("paddle2onnx")) + ["openvino"] * bool(find_spec("openvino"))
    export = folder / "export"
    words = ["--format", ",".join(["paddle", *formats]), "--save_dir", export]
    print(_run(sys.executable, ROOT / "export.py", *_weights(args), *words))

    rows = ["| route | images | labels equal to predict.py's |", "| --- | ---: | --- |"]
    for number, (name, route) in enumerate(routes(args).items()):
        output = folder / f"route{number}"
        output.mkdir()
        try:
            rows.append(_row(name, _compared(route(export, images, output), expected)))
        except Missing as missing:
            rows.append(f"| {name} | | not run: needs {missing} |")
        print(rows[-1], flush=True)
    try:
        rows.append(_row(f"TFLite, at {args.tflite_size[0]}x{args.tflite_size[1]}", tflite(args, folder, images)))
    except Missing:
        rows.append("| TFLite, at one size | | not run here: `make test-tflite` |")
    return rows


def _row(name: str, counts: tuple[int, int, int]) -> str:
    images, pixels, other = counts
    return f"| {name} | {images} | {100 * (1 - other / pixels):.3f} % ({other} of {pixels} pixels differ) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe")
    parser.add_argument("--model_path", type=Path, required=True, help="weights")
    parser.add_argument(
        "--images", type=Path, default=ROOT / "data/toy_cityscapes/leftImg8bit", help="what the ten are made of"
    )
    parser.add_argument("--cpp", type=Path, default=ROOT / "build/cpp/hmsa_infer", help="deploy/cpp, built")
    parser.add_argument("--web", type=Path, default=ROOT / "deploy/web", help="deploy/web, with its `dist`")
    parser.add_argument("--output", type=Path, help="keep all that is written in this folder")
    parser.add_argument("--tflite_size", nargs=2, type=int, default=(256, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--page", type=Path, help="a document that the table is put into")
    parser.add_argument("--name", default="demo", help="of the table there (default: demo)")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(args, args.output or Path(temporary))
    print("\n".join(rows))
    if args.page:
        begin, end = f"<!-- begin: routes of {args.name} -->", "<!-- end -->"
        before, _, rest = args.page.read_text(encoding="utf-8").partition(begin)
        _, _, after = rest.partition(end)
        args.page.write_text(before + "\n".join([begin, *rows, end]) + after, encoding="utf-8")
    differing = [row for row in rows if "%" in row and float(row.split("|")[3].split("%")[0]) < 99.99]
    if differing:
        sys.exit("error: expected at least 99.99 % of labels equal, found less: " + "; ".join(differing))


if __name__ == "__main__":
    main()
