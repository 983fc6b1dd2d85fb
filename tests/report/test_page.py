# SPDX-License-Identifier: Apache-2.0
"""The page itself: what stands in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from awaken import awaken

import hmsa
from hmsa.commands import val
from hmsa.report import page as module
from hmsa.report import panels

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def report(tiny_recipe, tmp_path_factory):
    """A page of an evaluation in tiles, which is compared with one without."""
    folder = tmp_path_factory.mktemp("report")
    weights = folder / "model.pdparams"
    paddle.save(awaken(hmsa.build_model(hmsa.load_config(tiny_recipe))).state_dict(), str(weights))
    common = ["--config", str(tiny_recipe), "--model_path", str(weights), "--engine", "eager"]
    earlier, output = folder / "earlier.json", folder / "evaluation.json"
    val.main(val.make_parser().parse_args([*common, "--output", str(earlier)]))
    tiles = ["--is_slide", "--crop_size", "96", "64", "--stride", "32", "64", "--report_images", "2"]
    words = ["--output", str(output), "--report", str(folder), "--compare", str(earlier), *tiles]
    val.main(val.make_parser().parse_args([*common, *words]))
    return folder / module.FILE


@pytest.mark.slow
def test_it_holds_what_the_evaluation_found(report):
    text = report.read_text(encoding="utf-8")
    found = json.loads((report.parent / "evaluation.json").read_text(encoding="utf-8"))
    assert f"<td>{100 * found['mean_iou']:.2f}</td>" in text
    assert text.count("<article") == 3  # of three images: two of the worst, and the best
    for words in ("In tiles, and whole", "test_config.is_slide", "Measured on 3 of 3 images", "tiles</th><td>96x64"):
        assert words in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert report.stat().st_size < 2**21


def test_the_busiest_place_of_a_mask_is_found():
    where = np.zeros((400, 600), bool)
    where[::37, ::41] = True
    where[300:340, 500:520] = True
    row, column = panels.busiest(where, 96)
    assert 260 < row < 380 and 460 < column < 560
    assert panels.crop_side(1024, 2048) == 320 and panels.crop_side(40, 400) == 40


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_it_works_in_a_browser_and_for_everybody(report, width, scheme):
    if CHROMIUM is None:
        pytest.skip("this needs chromium, which make system-packages installs")
    playwright = pytest.importorskip("playwright.sync_api", reason="this needs the package playwright, an extra of dev")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="this needs axe-playwright-python").Axe()
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    said, fetched = [], []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=flags)
        size = {"width": width, "height": 844}
        # axe is put into the page, which lets no script in.
        page = browser.new_page(viewport=size, color_scheme=scheme, has_touch=width < 500, bypass_csp=True)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(report.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        page.evaluate("Promise.all([...document.images].map(one => one.decode()))")  # an error where one cannot be
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert serious(axe.run(page)) == []

        page.locator(".panel").nth(2).focus()
        page.keyboard.press("Enter")
        viewer = page.locator("dialog[open]")
        pressed = viewer.locator(".layers [aria-pressed=true]")
        assert pressed.inner_text() == "prediction"
        for key, layer in (
            ("2", "truth"),
            ("ArrowDown", "prediction"),
            ("ArrowDown", "errors"),
            ("ArrowUp", "prediction"),
        ):
            page.keyboard.press(key)
            assert pressed.inner_text() == layer
        top = viewer.locator(".sheet img").last
        page.keyboard.press("[")
        assert top.evaluate("one => one.style.opacity") == "0.65"
        page.keyboard.press(" ")
        assert top.evaluate("one => one.style.opacity") == "0"
        page.keyboard.press("+")
        assert "scale(1.5)" in viewer.locator(".sheet").evaluate("one => one.style.transform")
        first = viewer.locator("strong").inner_text()
        page.keyboard.press("ArrowRight")
        assert viewer.locator("strong").inner_text() != first
        assert "scale(1)" in viewer.locator(".sheet").evaluate("one => one.style.transform")
        assert serious(axe.run(page)) == []
        if width < 500:
            touch(page, viewer)
        page.keyboard.press("Escape")
        assert not page.locator("dialog[open]").count()
        assert page.evaluate("document.activeElement.className") == "panel"
        browser.close()
    assert said == []
    assert [address for address in fetched if not address.startswith(("data:", "file:"))] == []


def touch(page, viewer) -> None:
    """Two fingers zoom, and one moves what is shown."""
    session = page.context.new_cdp_session(page)
    box = viewer.locator(".stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def fingers(kind, *places):
        points = [{"x": x + aside, "y": y, "id": number} for number, aside in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def numbers():
        """Of the transform: left, top, scale."""
        transform = viewer.locator(".sheet").evaluate("one => one.style.transform")
        return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", transform)]

    fingers("touchStart", -20, 20)
    for aside in range(30, 70, 10):
        fingers("touchMove", -aside, aside)
    fingers("touchEnd")
    left, _, scale = numbers()
    assert 2 < scale <= 3.01
    page.wait_for_timeout(400)  # another touch at once would be a double tap
    fingers("touchStart", 0)
    fingers("touchMove", -20)
    fingers("touchMove", -40)
    fingers("touchEnd")
    assert numbers()[0] < left and numbers()[2] == scale


def serious(found) -> list[str]:
    """What axe finds that keeps people out."""
    violations = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in violations]


def test_templates_are_of_the_package():
    there = {path.name for path in Path(module.__file__).with_name("templates").iterdir()}
    assert there == {"charts.html", "report.css", "report.html", "report.js"}
