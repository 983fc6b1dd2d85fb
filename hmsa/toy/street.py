# SPDX-License-Identifier: Apache-2.0
"""A drawn street world in the tree of Cityscapes: every object is a polygon, so its labels are exact.

A street is laid out in metres (across from its middle, up, away), seen by a camera and painted, far things first.
Everything follows from the random generator given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hmsa.toy.drawing import CHOICES, MATERIALS, SKIES, Colour, Material, Points, disc, rect, sprites, upwards
from hmsa.toy.painting import SUPERSAMPLING, Box, Camera, Face, Thing, box, cast_shadow, develop, hull, paint, shared

LARGE = {"truck": "truck_rear", "bus": "bus_front", "train": "train_front"}
"""Large vehicles, and the sprite of each that is seen along the street."""

Range = tuple[float, float]


# ------------------------------------------------------------------------------------------ what stands in the street


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


# ------------------------------------------------------------------------------------------------ laying out a street


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
            boxes = [box(sprite_outline(self.camera, name, spot)) for name in names]
            if all(self._is_free(place, overlap) for place in boxes):
                spots = [spot._replace(away=spot.away - 0.01 * i) for i in range(len(names))]
                self.things += [sprite_thing(self.camera, rng, name, at) for name, at in zip(names, spots)]
                self.taken += boxes
                return spot
        return None

    def _is_free(self, place: Box, overlap: float) -> bool:
        def area(box: Box) -> float:
            return (box[2] - box[0]) * (box[3] - box[1])

        frame = (0, 0, self.camera.width, 0.93 * self.camera.height)
        return shared(place, frame) >= 0.6 * area(place) and all(
            shared(place, other) < overlap * min(area(place), area(other)) for other in self.taken
        )


def sky(camera: Camera, rng: np.random.Generator) -> tuple[Thing, Colour]:
    """The sky with its clouds, and the colour of the haze."""
    zenith, haze = SKIES[int(rng.integers(len(SKIES)))]
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
        for away in ((5, 10), (8, 20)):
            if layout.rng.random() < 0.65:
                rider = ["rider"] if layout.rng.random() < 0.75 else []
                layout.put(kind, *rider, across=(0, 0.95 * layout.kerb), away=away, size=(0.95, 1.1), overlap=0.25)


def furniture(layout: Layout) -> None:
    """Lights, signs and lamps on their posts, and bins, along both kerbs."""
    rng, beside = layout.rng, (layout.kerb + 0.3, layout.kerb + 1.2)
    for away in ((6, 11), (9, 18), (18, 40)):
        if rng.random() < 0.85:
            layout.put("sign_post", "traffic_light", across=beside, away=away, overlap=0.3)
        if rng.random() < 0.85:
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


def street(rng: np.random.Generator, height: int, width: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One street: its objects as Cityscapes lists them (`label`, `polygon` of whole pixels (x, y)), first drawn
    first, and its image, uint8 RGB [height, width, 3]."""
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
    standing = [*(thing for thing in standing if camera.sees(thing.outline)), bonnet(camera, rng)]
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING, 3), np.float32)
    for thing in flat:
        paint(canvas, camera, thing, haze)
    for thing in standing:
        cast_shadow(canvas, thing)
    for thing in standing:
        paint(canvas, camera, thing, haze)
    return [{"label": thing.label, "polygon": thing.polygon} for thing in (*flat, *standing)], develop(canvas, rng)
