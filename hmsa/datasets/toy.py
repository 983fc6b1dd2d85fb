# SPDX-License-Identifier: Apache-2.0
"""A drawn street world in the tree of Cityscapes: every object is a polygon, so its labels are exact.

The world is measured in metres (across, up, away) and seen by a pinhole camera. A `Thing` is one labelled outline
and the faces painted inside it; far things are painted first. Everything follows from the random generator given.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from hmsa.datasets.toy_drawing import (
    CHOICES,
    MATERIALS,
    SKIES,
    Colour,
    Material,
    Points,
    disc,
    plain,
    rect,
    sprites,
    upwards,
)
from hmsa.errors import DataError, UsageError
from hmsa.files import write_atomically

CITIES = {
    "train": ("arbordale", "brickton", "cloverfield"),
    "train_extra": ("dockside", "elmbridge", "fernhill"),
    "val": ("glimmerton", "harbourview"),
    "test": ("ivygate", "juniper"),
}
MARKER = "toy_cityscapes.json"
"""The file at the root that says how a toy set was made."""

SUPERSAMPLING = 2
"""Painted pixels per pixel, down and across."""

LARGE = {"truck": "truck_rear", "bus": "bus_front", "train": "train_front"}
"""Large vehicles, and the sprite of each that is seen along the street."""

Box = tuple[float, float, float, float]
Range = tuple[float, float]


# --------------------------------------------------------------------------------------- camera and things


class Face(NamedTuple):
    """A flat polygon, [N, 2] pixels (x, y); the plane it lies in, as the axis it is perpendicular to ("across",
    "up", "away", or "sky" for what has no distance) and its metres on that axis; what it is made of."""

    outline: np.ndarray
    axis: str
    position: float
    material: Material


@dataclass
class Thing:
    """One labelled object: outline in pixels, metres away, and the faces painted inside it, in order."""

    label: str
    outline: np.ndarray
    away: float
    faces: list[Face]
    shadow: np.ndarray | None = None

    @property
    def box(self) -> Box:
        """Left, top, right, bottom in pixels."""
        return _box(self.outline)

    @property
    def polygon(self) -> list[list[int]]:
        """The outline as Cityscapes stores it: whole pixels (x, y)."""
        return np.rint(self.outline - 0.5).astype(int).tolist()


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along the street. Pixels are continuous: the first spans 0 to 1."""

    height: int
    width: int
    focal: float
    horizon: float
    centre: float
    eye: float = 1.7

    def project(self, points: Any) -> np.ndarray:
        """[N, 3] metres (across, up, away) -> [N, 2] pixels (x, y)."""
        across, up, away = np.asarray(points, float).T
        x, y = self.centre + self.focal * across / away, self.horizon + self.focal * (self.eye - up) / away
        return np.stack([x, y], axis=1)

    def sees(self, box: Box) -> bool:
        """Whether a box in pixels is in the picture, at least in part, and worth drawing."""
        left, top, right, bottom = box
        in_picture = right > 0 and left < self.width and bottom > 0 and top < self.height
        return in_picture and max(right - left, bottom - top) >= 3.5

    def locate(self, face: Face, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels of a face -> the two coordinates its pattern takes, and the distance; in metres."""
        across, down = (x - self.centre) / self.focal, (y - self.horizon) / self.focal
        if face.axis == "sky":
            return x / self.height, 1 - y / self.horizon, np.zeros_like(x)
        if face.axis == "up":
            away = self.eye / np.maximum(down, 1e-3)
            return across * away, away, away
        if face.axis == "across":
            away = np.clip(face.position / np.where(abs(across) < 1e-3, 1e-3, across), 1, 500)
            return away, self.eye - down * away, away
        away = np.full_like(x, face.position)
        return across * away, self.eye - down * away, away

    def front(self, shape: Points, across: float, away: float, material: Material) -> Face:
        """A shape (metres right of `across`, up) that faces the camera."""
        return Face(self.project([(across + a, up, away) for a, up in shape]), "away", away, material)

    def side(self, shape: Points, across: float, away: float, material: Material) -> Face:
        """A shape (metres beyond `away`, up) along the street."""
        return Face(self.project([(across, up, away + a) for a, up in shape]), "across", across, material)

    def ground(self, shape: Points, material: Material) -> Face:
        """A shape (across, away) on the ground."""
        return Face(self.project([(across, 0, away) for across, away in shape]), "up", 0, material)

    def shadow(self, across: float, away: float, reach: float, length: float = 0.5) -> np.ndarray:
        """Outline, in pixels, of the shadow of what stands there, `reach` to both sides."""
        return self.ground(rect(across - reach, away - 0.4, across + reach, away + length), MATERIALS["black"]).outline


def hull(points: np.ndarray) -> np.ndarray:
    """Convex hull of [N, 2] points: the outline of a convex body, from its corners."""
    return cv2.convexHull(points.astype(np.float32))[:, 0].astype(float)


def _box(points: np.ndarray) -> Box:
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return left, top, right, bottom


def _shared(a: Box, b: Box) -> float:
    """Area that two boxes have in common."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# -------------------------------------------------------------------------------- what stands in the street


class Spot(NamedTuple):
    """Where a sprite stands (metres), how much it is enlarged, and 1 or -1 for its mirror image."""

    across: float
    away: float
    size: float = 1.0
    facing: int = 1

    def fit(self, shape: Points) -> Points:
        return [(self.facing * self.size * across, self.size * up) for across, up in shape]


def sprite_outline(camera: Camera, name: str, spot: Spot) -> np.ndarray:
    """Outline in pixels, [N, 2]; a sprite with a length is a body that reaches so far away."""
    sprite = sprites()[name]
    ends = (spot.away, spot.away + sprite.length) if sprite.length else (spot.away,)
    shape = spot.fit(sprite.outline)
    pixels = camera.project([(spot.across + a, up, away) for away in ends for a, up in shape])
    return hull(pixels) if sprite.length else pixels


def sprite_thing(camera: Camera, rng: np.random.Generator, name: str, spot: Spot) -> Thing:
    """A sprite in its place, in colours of its own, with its flank where that is seen and a shadow if it stands."""
    sprite = sprites()[name]
    materials = {**MATERIALS, **{key: choice.draw(rng) for key, choice in CHOICES.items()}}
    faces = [
        camera.front(spot.fit(shape), spot.across, spot.away, materials[material]) for material, shape in sprite.parts
    ]
    half, top = spot.size * np.max(sprite.outline, axis=0)
    if sprite.length and abs(spot.across) > half:
        flank = spot.across - np.sign(spot.across) * half
        wheels = [disc(at * sprite.length, 0.4, 0.4) for at in (0.2, 0.8)]
        shapes = [(faces[0].material.shaded(0.8), rect(0, 0.3, sprite.length, top))]
        if sprite.label != "truck":
            shapes.append((materials["glass"], rect(0.25, 0.5 * top, sprite.length - 0.3, 0.78 * top)))
        shapes += [(materials["black"], wheel) for wheel in wheels]
        faces = [camera.side(shape, flank, spot.away, material) for material, shape in shapes] + faces
    shadow = None
    if min(up for _, up in sprite.outline) == 0:
        shadow = camera.shadow(spot.across, spot.away, half + 0.25, max(sprite.length, 0.5))
    return Thing(sprite.label, sprite_outline(camera, name, spot), spot.away, faces, shadow)


def house(camera: Camera, rng: np.random.Generator, across: float, near: float, far: float) -> Thing:
    """A gabled house whose facade stands along the street at `across`."""
    out, eaves, rise = np.sign(across) * rng.uniform(2.5, 4), rng.uniform(3.6, 8.5), rng.uniform(1.2, 2.8)
    facade, roof = CHOICES["facade"].draw(rng), MATERIALS["roof"]
    gable = [(0, 0), (0, eaves), (out, eaves + rise), (2 * out, eaves), (2 * out, 0)]
    corners = [(across + a, up, away) for away in (near, far) for a, up in gable]
    slope = camera.project([corners[i] for i in (1, 2, 7, 6)])
    faces = [
        Face(slope, "across", across, roof),
        camera.side(rect(0, 0, far - near, eaves), across, near, facade.shaded(0.86)),
        camera.side(rect(0, eaves - 0.3, far - near, eaves), across, near, roof),
        camera.front(gable, across, near, facade),
    ]
    return Thing("building", hull(camera.project(corners)), (near + far) / 2, faces)


def screen(camera: Camera, label: str, height: float, across: float, near: float, far: float) -> Thing:
    """A wall or a fence along the street."""
    face = camera.side(rect(0, 0, far - near, height), across, near, MATERIALS[label])
    return Thing(label, face.outline, (near + far) / 2, [face])


def hedge(camera: Camera, height: float, across: float, near: float, far: float) -> Thing:
    """A clipped hedge along the street: a box of leaves."""
    shape, leaves = rect(0, 0, np.sign(across) * 1.5, height), MATERIALS["vegetation"]
    corners = [(across + a, up, away) for away in (near, far) for a, up in shape]
    side = camera.side(rect(0, 0, far - near, height), across, near, leaves.shaded(0.85))
    faces = [side, camera.front(shape, across, near, leaves)]
    return Thing("vegetation", hull(camera.project(corners)), (near + far) / 2, faces)


def tree(camera: Camera, rng: np.random.Generator, across: float, away: float) -> Thing:
    """A trunk and a wobbly crown in one outline."""
    trunk, turns = rng.uniform(1.2, 2.2), np.linspace(-0.4 * np.pi, 1.4 * np.pi, 22)
    radius = rng.uniform(1.3, 2.3)
    reach = radius * rng.uniform(0.85, 1.12, len(turns))
    crown = list(zip(reach * np.cos(turns), trunk + radius + reach * np.sin(turns)))
    leaves = MATERIALS["vegetation"].shaded(rng.uniform(0.85, 1.2))
    whole = camera.front([(0.2, 0), *crown, (-0.2, 0)], across, away, MATERIALS["bark"])
    faces = [whole, camera.front(crown, across, away, leaves)]
    return Thing("vegetation", whole.outline, away, faces, camera.shadow(across, away, radius))


# ------------------------------------------------------------------------------------------ laying out a street


@dataclass
class Layout:
    """A street being built: from its middle the road reaches to `kerb`, the pavement to `front` (metres)."""

    camera: Camera
    rng: np.random.Generator
    kerb: float
    front: float
    things: list[Thing] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)

    def put(self, *names: str, across: Range, away: Range, size: Range = (1, 1), overlap: float = 0.2) -> Spot | None:
        """Put sprites on one spot, on either side of the middle, where they are in view and hide little; the first
        of several tries that fits, else None. Later names stand in front of earlier ones."""
        rng = self.rng
        for _ in range(20):
            side, facing = 1 - 2 * rng.integers(2, size=2)
            spot = Spot(side * rng.uniform(*across), rng.uniform(*away), rng.uniform(*size), facing)
            boxes = [_box(sprite_outline(self.camera, name, spot)) for name in names]
            if all(self._is_free(box, overlap) for box in boxes):
                spots = [spot._replace(away=spot.away - 0.01 * i) for i in range(len(names))]
                self.things += [sprite_thing(self.camera, rng, name, at) for name, at in zip(names, spots)]
                self.taken += boxes
                return spot
        return None

    def _is_free(self, box: Box, overlap: float) -> bool:
        frame = (0, 0, self.camera.width, 0.93 * self.camera.height)
        if _shared(box, frame) < 0.6 * _area(box):
            return False
        return all(_shared(box, other) < overlap * min(_area(box), _area(other)) for other in self.taken)


def sky(camera: Camera, rng: np.random.Generator) -> tuple[Thing, Colour]:
    """The sky with its clouds, and the colour of the haze."""
    zenith, haze = SKIES[rng.integers(len(SKIES))]
    height, width = camera.height, camera.width
    outline = np.array(rect(0, 0, width, camera.horizon + 2))
    faces = [Face(outline, "sky", 0, Material(haze, zenith, upwards))]
    for _ in range(rng.integers(2, 5)):
        x, y, size = rng.uniform(0.1, 0.9) * width, rng.uniform(0.04, 0.3) * height, rng.uniform(0.03, 0.06) * height
        for i in range(-2, 3):
            puff = np.array(disc(x + i * size * 1.1, y, size * (1.25 - 0.28 * abs(i))))
            puff[:, 1] = np.minimum(puff[:, 1], y + 0.4 * size)
            faces.append(Face(puff, "sky", 0, MATERIALS["cloud"]))
    return Thing("sky", outline, 0, faces), haze


def ground(layout: Layout) -> list[Thing]:
    """Grass everywhere, then pavements, and the road with its marks."""
    camera, rng, kerb = layout.camera, layout.rng, layout.kerb
    nearest = 0.9 * camera.focal * camera.eye / (camera.height - camera.horizon)

    def strip(material: str, left: float, right: float, near: float = nearest, far: float = 400) -> Face:
        return camera.ground(rect(left, near, right, far), MATERIALS[material])

    grass = np.array(rect(0, camera.horizon, camera.width, camera.height))
    things = [Thing("terrain", grass, 0, [Face(grass, "up", 0, MATERIALS["terrain"])])]
    verge = kerb + rng.choice([0, rng.uniform(0.8, 1.6)])
    pavements = [strip("sidewalk", verge, layout.front), strip("sidewalk", -layout.front, -verge)]
    things += [Thing("sidewalk", pavement.outline, 0, [pavement]) for pavement in pavements]
    dashes, crossing = np.arange(rng.uniform(3, 6), 80, 4.5), rng.uniform(8, 15) if rng.random() < 0.45 else None
    if crossing is not None:
        dashes = [away for away in dashes if not crossing - 2.5 < away < crossing + 3.5]
    marks = [strip("mark", -0.08, 0.08, away, away + 2) for away in dashes]
    if crossing is not None:
        bars = np.arange(-kerb + 0.3, kerb - 0.5, 1.05)
        marks += [strip("mark", across, across + 0.5, crossing, crossing + 3) for across in bars]
    road = strip("road", -kerb, kerb)
    kerbs = [strip("kerb", kerb - 0.25, kerb), strip("kerb", -kerb, 0.25 - kerb)]
    return [*things, Thing("road", road.outline, 0, [road, *kerbs, *marks])]


def large_vehicles(layout: Layout) -> list[Thing]:
    """One or two of truck, bus and train, along or across the street; returns the tracks of the trains."""
    rng, camera, tracks = layout.rng, layout.camera, []
    lane = (0.4 * layout.kerb, 0.62 * layout.kerb)
    for kind, along in rng.permutation(list(LARGE.items()))[: rng.integers(1, 3)]:
        views = [(along, lane, (7, 17)), (f"{kind}_side", (0, 0.8 * layout.front), (15, 27))]
        for name, across, away in [views[i] for i in rng.permutation(2)]:
            spot = layout.put(name, across=across, away=away)
            if spot is not None:
                if name == "train_front":
                    tracks.append(rails(camera, spot.across - 1.2, 4, spot.across + 1.2, 120))
                elif name == "train_side":
                    tracks.append(rails(camera, -50, spot.away - 0.8, 50, spot.away + 1.2))
                break
    return tracks


def rails(camera: Camera, left: float, near: float, right: float, far: float) -> Thing:
    """Two rails on their ballast, along the longer side: what trains stand on, a label that is never scored."""
    ballast, along = camera.ground(rect(left, near, right, far), MATERIALS["ballast"]), far - near > right - left
    faces = [ballast]
    for at in (0.2, 0.75):
        x, z = left + at * (right - left), near + at * (far - near)
        rail = rect(x, near, x + 0.15, far) if along else rect(left, z, right, z + 0.15)
        faces.append(camera.ground(rail, MATERIALS["rail"]))
    return Thing("rail track", ballast.outline, 0, faces)


def cars(layout: Layout) -> None:
    """Cars along the street, coming and going, near and far, and some that cross it."""
    across = (0.4 * layout.kerb, layout.kerb - 1)
    for away in ((6, 13), (8, 22), (14, 30), (25, 60), (25, 60)):
        layout.put(str(layout.rng.choice(["car_rear", "car_front"])), across=across, away=away)
    if layout.rng.random() < 0.5:
        layout.put("car_side", across=(0, 0.8 * layout.front), away=(9, 20))


def cyclists(layout: Layout) -> None:
    """Bicycles and motorcycles, most of them ridden."""
    for kind in ("bicycle", "motorcycle"):
        for away in ((6, 13), (10, 26)):
            if layout.rng.random() < 0.5:
                rider = ["rider"] if layout.rng.random() < 0.75 else []
                layout.put(kind, *rider, across=(0, 0.95 * layout.kerb), away=away, size=(0.95, 1.1), overlap=0.25)


def furniture(layout: Layout) -> None:
    """Lights, signs and lamps on their posts, and bins, along both kerbs."""
    rng, beside = layout.rng, (layout.kerb + 0.3, layout.kerb + 1.2)
    for away in ((8, 15), (12, 24), (20, 45)):
        if rng.random() < 0.65:
            layout.put("sign_post", "traffic_light", across=beside, away=away, overlap=0.3)
        if rng.random() < 0.75:
            sign = str(rng.choice(["round_sign", "warning_sign", "square_sign"]))
            layout.put("sign_post", sign, across=beside, away=away, overlap=0.3)
        layout.put("lamp_post", across=beside, away=away, overlap=0.35)
    if rng.random() < 0.4:
        layout.put("bin", across=beside, away=(8, 20))


def people(layout: Layout) -> None:
    """Walkers on the pavements, some crossing the road."""
    pavement = (layout.kerb + 0.4, layout.front)
    for away, across in (
        *[((7, 14), pavement)] * 2,
        *[((9, 22), pavement)] * 2,
        *[((9, 22), (0, layout.kerb))] * 2,
        *[((22, 70), pavement)] * 4,
    ):
        if layout.rng.random() < 0.85:
            layout.put("person", across=across, away=away, size=(0.85, 1.15), overlap=0.3 if away[0] < 20 else 0.5)


def roadside(layout: Layout, side: int) -> None:
    """Houses, walls, fences, hedges and gaps along one side, from near to far, and trees."""
    camera, rng, things = layout.camera, layout.rng, layout.things
    lawn, away, before = rng.choice([0, rng.uniform(1, 4)]), rng.uniform(3.5, 6), ""
    kinds, weights = ("house", "wall", "fence", "hedge", "open"), np.array([0.32, 0.22, 0.2, 0.11, 0.15])
    while away < 95:
        far = away + rng.uniform(5, 9) * (1 + away / 40)
        likely = np.where([kind == before != "house" for kind in kinds], 0.02, weights)
        before = kind = kinds[rng.choice(len(kinds), p=likely / likely.sum())]
        edge, behind = side * layout.front, side * (layout.front + rng.uniform(3.5, 6))
        if kind == "house":
            things.append(house(camera, rng, edge + side * lawn, away, far))
        elif kind == "hedge":
            things.append(hedge(camera, rng.uniform(1.2, 2.6), edge, away, far))
        elif kind != "open":
            things.append(screen(camera, kind, rng.uniform(2, 3), edge, away, far))
        if kind != "house":
            if rng.random() < 0.45:
                things.append(house(camera, rng, behind + side * 2, away, far))
            things += [tree(camera, rng, behind, rng.uniform(away, far)) for _ in range(rng.integers(1, 3))]
        away = far
    if rng.random() < 0.7:
        things.append(tree(camera, rng, side * (layout.front - 0.6), rng.uniform(14, 40)))


def skyline(camera: Camera, rng: np.random.Generator) -> list[Thing]:
    """Far houses and tree tops where the street ends."""
    things, x = [], -60.0
    while x < 60:
        width, height, away = rng.uniform(8, 16), rng.uniform(5, 14), rng.uniform(105, 112)
        if rng.random() < 0.65:
            roof = (width / 2, height + rng.uniform(0, 4))
            shape = [(0, 0), (0, height), roof, (width, height), (width, 0)]
            label, material = "building", CHOICES["facade"].draw(rng)
        else:
            shape = [(a * width / 2 + width / 2, 0.8 * up * height) for a, up in disc(0, 0, 1) if up > -0.01]
            label, material = "vegetation", MATERIALS["vegetation"]
        face = camera.front(shape, x, away, material)
        things.append(Thing(label, face.outline, away, [face]))
        x += width * rng.uniform(0.7, 1.0)
    return things


def bonnet(camera: Camera, rng: np.random.Generator) -> Thing:
    """The car the camera sits in."""
    width, height, turns = camera.width, camera.height, np.linspace(0, np.pi, 24)
    rise = height * rng.uniform(0.07, 0.095)

    def arch(half: float, base: float, high: float) -> np.ndarray:
        return np.stack([width * (0.5 - half * np.cos(turns)), base - high * np.sin(turns) ** 0.6], axis=1)

    body, gloss = arch(0.46, height + 1, rise), arch(0.3, height - 0.55 * rise, 0.2 * rise)
    faces = [Face(body, "sky", 0, MATERIALS["bonnet"]), Face(gloss, "sky", 0, MATERIALS["gloss"])]
    return Thing("ego vehicle", body, 0, faces)


# ------------------------------------------------------------------------------------------------- painting


def paint(canvas: np.ndarray, camera: Camera, thing: Thing, haze: Colour) -> None:
    """Paint a thing on the canvas, float32 [S*H, S*W, 3], inside the pixels of its label; its rim is dark."""
    # A label's polygon covers the whole of every pixel it touches.
    inside, left, top = _mask(canvas, np.array(thing.polygon) * SUPERSAMPLING, spread=SUPERSAMPLING - 1)
    rim = thing.faces[0].material.shaded(0.62)._replace(pattern=plain)
    faces = [(inside, Face(thing.outline, "away", thing.away, rim))] if thing.away else []
    for face in thing.faces:
        part = Image.new("1", inside.shape[::-1])
        shape = [(x - left, y - top) for x, y in face.outline * SUPERSAMPLING - 0.5]
        ImageDraw.Draw(part).polygon(shape, fill=1)
        faces.append((inside & np.array(part), face))
    for mask, face in faces:
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            continue
        rows, columns = rows + top, columns + left
        x, y = (np.float32((at + 0.5) / SUPERSAMPLING) for at in (columns, rows))
        a, b, away = camera.locate(face, x, y)
        first, second, pattern = face.material
        mix = np.asarray(pattern(a, b), np.float32)[:, None]
        fog = 1 - np.exp(-away / 130)[:, None] if face.axis != "sky" else 0
        colour = np.float32(first) + np.float32(np.subtract(second, first)) * mix
        canvas[rows, columns] = colour + (np.float32(haze) - colour) * fog


def _mask(canvas: np.ndarray, corners: np.ndarray, spread: int = 0) -> tuple[np.ndarray, int, int]:
    """A polygon on the canvas, each point widened to a square of 1 + `spread` pixels: bool [h, w], and the left and
    top of the box it is in."""
    limit = canvas.shape[1], canvas.shape[0]
    left, top = np.clip(np.floor(corners.min(0)), 0, limit).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)) + spread + 1, 0, limit).astype(int).tolist()
    image = Image.new("1", (right - left, bottom - top))
    drawer = ImageDraw.Draw(image)
    for dx, dy in itertools.product({0, spread}, repeat=2):
        drawer.polygon([(x - left + dx, y - top + dy) for x, y in corners], fill=1)
    return np.array(image), left, top


def cast_shadow(canvas: np.ndarray, thing: Thing) -> None:
    """Darken the ground under a thing."""
    if thing.shadow is not None:
        inside, left, top = _mask(canvas, thing.shadow * SUPERSAMPLING)
        canvas[top : top + inside.shape[0], left : left + inside.shape[1]][inside] *= 0.62


def develop(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Canvas -> picture, uint8 RGB [H, W, 3]: the light of the day, then the noise of the sensor."""
    height, width = canvas.shape[0] // SUPERSAMPLING, canvas.shape[1] // SUPERSAMPLING
    picture = canvas.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean((1, 3))
    picture = picture * rng.uniform(0.82, 1.1) * rng.uniform(0.95, 1.05, 3)
    picture += rng.normal(0, rng.uniform(2, 5), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def street(rng: np.random.Generator, height: int, width: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One street: its objects as Cityscapes lists them (`label`, `polygon` of whole pixels (x, y)), first drawn
    first, and its picture, uint8 RGB [height, width, 3]."""
    focal, horizon = rng.uniform(1.3, 1.6) * height, rng.uniform(0.44, 0.5) * height
    camera = Camera(height, width, focal, horizon, centre=rng.uniform(0.44, 0.56) * width)
    kerb = rng.uniform(3.4, 5)
    layout = Layout(camera, rng, kerb, front=kerb + rng.uniform(2.6, 4.2))
    above, haze = sky(camera, rng)
    flat = [above, *ground(layout), *large_vehicles(layout)]
    riders_first = rng.random() < 0.5
    for build in (*((cyclists, cars) if riders_first else (cars, cyclists)), furniture, people):
        build(layout)
    for side in (-1, 1):
        roadside(layout, side)
    standing = sorted([*layout.things, *skyline(camera, rng)], key=lambda thing: -thing.away)
    standing = [*(thing for thing in standing if camera.sees(thing.box)), bonnet(camera, rng)]
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING, 3), np.float32)
    for thing in flat:
        paint(canvas, camera, thing, haze)
    for thing in standing:
        cast_shadow(canvas, thing)
    for thing in standing:
        paint(canvas, camera, thing, haze)
    return [{"label": thing.label, "polygon": thing.polygon} for thing in (*flat, *standing)], develop(canvas, rng)


# --------------------------------------------------------------------------------------------------- labels


def label_ids(objects: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Label ids, uint8 [height, width], drawn as cityscapesscripts draws polygons."""
    image = Image.new("L", (width, height), name2label["unlabeled"].id)
    drawer = ImageDraw.Draw(image)
    for thing in objects:
        drawer.polygon([(x, y) for x, y in thing["polygon"]], fill=name2label[thing["label"]].id)
    return np.array(image)


def auto_labels(rng: np.random.Generator, objects: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Label ids, uint8 [height, width], as a network might have made them: two in five of the small objects (up to
    a tenth of the picture's height) are overlooked, and both sides of every border are unlabeled."""

    def is_seen(thing: dict[str, Any]) -> bool:
        return np.ptp(thing["polygon"], axis=0).max() > 0.1 * height or rng.random() < 0.6

    ids = label_ids([thing for thing in objects if is_seen(thing)], height, width)
    border = np.zeros(ids.shape, bool)
    for axis, length in enumerate(ids.shape):
        differs = np.diff(ids.astype(int), axis=axis) != 0
        border |= np.insert(differs, length - 1, False, axis=axis) | np.insert(differs, 0, False, axis=axis)
    return np.where(border, np.uint8(name2label["unlabeled"].id), ids)


# ------------------------------------------------------------------------------------------ writing the tree


def write_toy_cityscapes(
    root: str | Path,
    *,
    size: tuple[int, int] = (128, 256),
    train: int = 48,
    coarse: int = 48,
    val: int = 16,
    test: int = 4,
    seed: int = 42,
) -> None:
    """Write the data set under `root`; `size` is (height, width), the others count pictures.

    The same arguments give the same bytes, and a picture depends on the seed, its split and its index only. The
    labels of the test split are withheld: they hold no object. Raises UsageError for sizes below 64 pixels or
    counts below 0, DataError where `root` holds anything else than this very toy set.
    """
    root, counts = Path(root), {"train": train, "train_extra": coarse, "val": val, "test": test}
    if min(size) < 64 or min(counts.values()) < 0 or seed < 0:
        raise UsageError(
            f"size {size[1]} {size[0]}, counts {list(counts.values())} and seed {seed} should be at least 64 pixels, "
            "0 and 0: give larger ones"
        )
    options = json.dumps({"size": list(size), "seed": seed, **counts}) + "\n"
    _check_target(root, options)
    write_atomically(root / MARKER, options.encode())
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            _write_street(root, split, index, size, np.random.default_rng((seed, number, index)))


def _check_target(root: Path, options: str) -> None:
    if not root.is_dir() or not any(root.iterdir()):
        return
    marker = root / MARKER
    if not marker.is_file():
        raise DataError(
            f"{root} should be an empty folder or hold a toy set, but holds other files: choose another folder"
        )
    if marker.read_text(encoding="utf-8") != options:
        raise DataError(
            f"{marker} should say that this toy set was made with the same options, but they differ: remove the "
            "folder or choose another"
        )


def _write_street(root: Path, split: str, index: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    cities = CITIES[split]
    city = cities[index % len(cities)]
    name = f"{city}/{city}_{index // len(cities):06d}_000000"
    objects, picture = street(rng, *size)
    if split == "train_extra":
        _write_png(root / f"leftImg8bit_trainextra/leftImg8bit/{split}/{name}_leftImg8bit.png", picture)
        _write_png(root / f"refinement_final/{split}/{name}_leftImg8bit.png", auto_labels(rng, objects, *size))
        return
    if split == "test":
        objects = []
    annotation = {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}
    _write_png(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", picture)
    _write_png(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", label_ids(objects, *size))
    write_atomically(root / f"gtFine/{split}/{name}_gtFine_polygons.json", json.dumps(annotation).encode())


def _write_png(path: Path, pixels: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    write_atomically(path, content.getvalue())
