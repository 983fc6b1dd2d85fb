# SPDX-License-Identifier: Apache-2.0
"""How the things of the toy world look: patterns, materials, and the sprites drawn with them.

Training shifts hue and brightness, so classes differ in pattern and shape too: trucks are chequered, buses have
upright stripes and trains level ones, walls are brick, fences are pickets, riders wear chequers and a helmet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]
Colour = Sequence[float]  # red, green, blue, each 0 to 255

# ------------------------------------------------------------------------------------------------- patterns
# A pattern takes two coordinates in metres (across or along, and up or away) and returns the share of a
# material's second colour, 0 to 1; below 0 is lighter than the first colour.


def noise(a: np.ndarray, b: np.ndarray, cell: float) -> np.ndarray:
    """One value in [0, 1) per square of `cell` metres; integers only, so the same on every machine."""
    i, j = np.floor(a / cell).astype(np.int64), np.floor(b / cell).astype(np.int64)
    mixed = (i * 73856093) ^ (j * 19349663)
    mixed = (mixed ^ (mixed >> 7)) * 2654435761
    return ((mixed >> 11) & 1023) / 1024.0


def plain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.zeros_like(a)


def upright_stripes(period: float) -> Callable:
    return lambda a, b: (a / period) % 1 < 0.5


def level_stripes(period: float, share: float = 0.5) -> Callable:
    return lambda a, b: (b / period) % 1 < share


def chequers(side: float) -> Callable:
    return lambda a, b: (np.floor(a / side) + np.floor(b / side)) % 2


def pickets(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rails = (abs(b - 0.4) < 0.12) | (abs(b - 1.2) < 0.12)
    return np.where((a / 0.6) % 1 < 0.5, 1.0, 0.75 * rails)


def bricks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    row = np.floor(b / 0.4)
    joints = ((a / 0.9 + 0.5 * (row % 2)) % 1 < 0.14) | ((b / 0.4) % 1 < 0.25)
    return np.where(joints, 1, 0.25 * noise(a, b, 0.4))


def windows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    u, v = abs((a / 2.4) % 1 - 0.5), abs(((b - 0.4) / 2.8) % 1 - 0.5)
    pane, frame = (u < 0.22) & (v < 0.27), (u < 0.29) & (v < 0.33)
    return np.where(b < 0.6, 0.35, np.where(pane, 1, -0.35 * frame))


def slabs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a % 1.0 < 0.14) | (b % 1.0 < 0.14), 1, 0.3 * noise(a, b, 1.0))


speckle = partial(noise, cell=0.12)


def tufts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 0.65 * noise(a, b, 1.3) + 0.35 * noise(a, b, 0.35)


def leaves(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 0.45 * noise(a, b, 0.7) + 0.55 * (noise(a, b, 0.28) > 0.55)


def upwards(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(b, 0, 1)


# ------------------------------------------------------------------------------------------------ materials


class Material(NamedTuple):
    """Two colours and the pattern that mixes them."""

    first: Colour
    second: Colour
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray] = plain

    def shaded(self, factor: float) -> Material:
        first, second = ([factor * value for value in colour] for colour in (self.first, self.second))
        return Material(first, second, self.pattern)


def _flat(*colour: float) -> Material:
    return Material(colour, colour)


# Every class has colours of its own, so that a small network learns to tell them apart in minutes.
MATERIALS = {
    "road": Material((66, 66, 74), (98, 98, 104), speckle),
    "mark": _flat(226, 226, 218),
    "sidewalk": Material((216, 172, 178), (156, 112, 124), slabs),
    "kerb": _flat(232, 206, 208),
    "ballast": Material((116, 98, 84), (84, 72, 64), speckle),
    "rail": _flat(190, 192, 198),
    "terrain": Material((164, 146, 52), (212, 198, 96), tufts),
    "vegetation": Material((26, 66, 38), (84, 132, 58), leaves),
    "bark": _flat(84, 60, 44),
    "wall": Material((112, 64, 30), (196, 156, 118), bricks),
    "fence": Material((48, 92, 80), (196, 246, 222), pickets),
    "roof": Material((206, 150, 128), (166, 112, 96), level_stripes(0.5, 0.35)),
    "cargo": Material((28, 58, 130), (84, 132, 214), chequers(0.42)),
    "spokes": Material((176, 228, 240), (226, 248, 255), chequers(0.2)),
    "glass": _flat(48, 64, 84),
    "black": _flat(28, 28, 32),
    "hub": _flat(176, 178, 184),
    "chrome": _flat(200, 204, 212),
    "headlight": _flat(255, 244, 190),
    "taillight": _flat(226, 40, 36),
    "helmet": _flat(255, 240, 120),
    "red": _flat(240, 52, 40),
    "amber": _flat(250, 180, 40),
    "green": _flat(60, 220, 110),
    "white": _flat(246, 246, 242),
    "post": _flat(108, 106, 188),
    "gleam": _flat(170, 168, 228),
    "box": _flat(10, 62, 40),
    "frame": _flat(0, 176, 226),
    "tank": _flat(255, 120, 16),
    "tights": _flat(58, 108, 18),
    "bin": _flat(70, 96, 92),
    "bonnet": _flat(36, 40, 52),
    "gloss": _flat(84, 92, 112),
    "cloud": _flat(250, 250, 252),
}


class Choice(NamedTuple):
    """A material that differs from one object to the next: its colours, the second colour's contrast, its pattern."""

    colours: Sequence[Colour]
    contrast: float = 1.0
    pattern: Callable = plain

    def draw(self, rng: np.random.Generator) -> Material:
        colour = np.array(self.colours[int(rng.integers(len(self.colours)))]) * rng.uniform(0.9, 1.08, 3)
        return Material(colour.tolist(), np.minimum(colour * self.contrast, 255).tolist(), self.pattern)


CHOICES = {
    "facade": Choice(((240, 218, 168), (234, 206, 158), (244, 226, 186)), 0.36, windows),
    "paint": Choice(((214, 40, 44), (194, 30, 62), (232, 64, 44))),
    "lorry": Choice(((40, 84, 168), (52, 100, 186))),
    "bus": Choice(((250, 206, 60), (242, 196, 44)), 0.62, upright_stripes(0.7)),
    "train": Choice(((56, 150, 140), (64, 160, 146)), 1.7, level_stripes(0.9)),
    "coat": Choice(((196, 44, 150), (214, 60, 166)), 0.45, upright_stripes(0.36)),
    "jersey": Choice(((112, 196, 20), (126, 206, 30)), 1.7, chequers(0.2)),
    "trousers": Choice(((70, 24, 84), (84, 30, 96))),
    "skin": Choice(((240, 200, 170), (198, 150, 112), (124, 84, 60), (90, 60, 44))),
    "hair": Choice(((40, 28, 22), (150, 110, 50), (90, 84, 84))),
}

SKIES: Sequence[tuple[Colour, Colour]] = (  # at the top, at the horizon
    ((84, 146, 222), (196, 224, 244)),
    ((120, 150, 200), (250, 222, 190)),
    ((170, 184, 200), (222, 228, 232)),
    ((92, 110, 190), (250, 196, 176)),
)

# -------------------------------------------------------------------------------------------------- sprites


class Sprite(NamedTuple):
    """A thing seen from one side: what it is, metres it reaches away from the viewer, its outline (metres across,
    metres up), and the parts painted inside the outline, each a material's name and a shape."""

    label: str
    length: float
    outline: Points
    parts: Sequence[tuple[str, Points]]


def rect(left: float, bottom: float, right: float, top: float) -> Points:
    return ((left, bottom), (left, top), (right, top), (right, bottom))


def disc(across: float, up: float, radius: float, corners: int = 14) -> Points:
    turns = np.arange(corners) * 2 * np.pi / corners
    return [(across + radius * np.cos(t), up + radius * np.sin(t)) for t in turns]


# One block a sprite: "name: label, length", then "material: shapes" from back to front, with ";" between. A shape is
# corners x,y, or rect left bottom right top, or disc across up radius, or the outline again; `twice` adds its mirror
# image.
_SPRITES = """
car_rear: car, 3.8
  outline: -.85,0 -.95,.3 -.95,.85 -.7,1.5 .7,1.5 .95,.85 .95,.3 .85,0
  paint: outline
  black: twice rect .5 0 .85 .3
  glass: -.72,.92 -.56,1.38 .56,1.38 .72,.92
  taillight: twice rect .64 .55 .92 .78
  white: rect -.26 .38 .26 .56
car_front: car, 3.8
  outline: -.85,0 -.95,.3 -.95,.8 -.7,1.5 .7,1.5 .95,.8 .95,.3 .85,0
  paint: outline
  black: twice rect .5 0 .85 .3
  glass: -.78,.88 -.58,1.38 .58,1.38 .78,.88
  headlight: twice disc .68 .6 .17
  black: rect -.4 .42 .4 .62
car_side: car, 0
  outline: -2.1,.3 -2.1,.8 -1.4,.95 -.85,1.5 .75,1.5 1.35,.95 2.05,.82 2.1,.3 1.75,0 .95,0 .85,.22 \
    -.85,.22 -.95,0 -1.75,0
  paint: outline
  glass: -1.2,.95 -.75,1.38 -.1,1.38 -.1,.95; .05,.95 .05,1.38 .68,1.38 1.12,.95
  black: twice disc 1.35 .38 .38
  hub: twice disc 1.35 .38 .17
  headlight: rect 1.85 .6 2.1 .76
  taillight: rect -2.1 .6 -1.92 .76
truck_rear: truck, 6.5
  outline: rect -1.25 0 1.25 3.3
  cargo: rect -1.25 .55 1.25 3.3
  black: rect -1.25 0 1.25 .55
  taillight: twice rect .9 .45 1.2 .65
truck_side: truck, 0
  outline: -3.7,.5 -3.7,3.4 1.7,3.4 1.7,2.6 2.9,2.6 3.5,1.5 3.7,.5 3.1,0 1.9,0 1.7,.4 -1.2,.4 -1.4,0 -3.4,0
  lorry: outline
  cargo: rect -3.7 .7 1.6 3.4
  black: rect -3.7 .4 1.7 .7
  glass: 2,1.6 2,2.4 2.75,2.4 3.2,1.6
  black: disc -2.9 .5 .5; disc -1.9 .5 .5; disc 2.5 .5 .5
  hub: disc -2.9 .5 .2; disc -1.9 .5 .2; disc 2.5 .5 .2
  headlight: rect 3.4 .7 3.7 1
bus_front: bus, 9
  outline: -1.3,0 -1.3,2.9 -1.1,3.15 1.1,3.15 1.3,2.9 1.3,0
  bus: rect -1.3 .3 1.3 3.15
  black: twice rect .75 0 1.2 .4
  glass: rect -1.1 1.5 1.1 2.5
  black: rect -.8 2.65 .8 2.95
  headlight: twice rect .8 .6 1.2 .9
bus_side: bus, 0
  outline: -5,.3 -5,2.9 -4.8,3.15 4.7,3.15 5,2.7 5,.3 3.9,0 2.8,0 -2.8,0 -3.9,0
  bus: outline
  glass: rect -4.7 1.5 -3.5 2.5; rect -3.2 1.5 -2 2.5; rect -1.7 1.5 -.5 2.5; rect -.2 1.5 1 2.5; rect 1.3 1.5 2.5 2.5
  glass: rect 2.8 .5 3.6 2.5; rect 4.1 1.3 5 2.6
  black: twice disc 3.2 .5 .5
  hub: twice disc 3.2 .5 .2
  headlight: rect 4.7 .6 5 .9
train_front: train, 18
  outline: -1.35,0 -1.4,2.7 -1,3.7 1,3.7 1.4,2.7 1.35,0
  train: outline
  black: rect -1.4 0 1.4 .35
  glass: -1.2,1.8 -1,2.9 1,2.9 1.2,1.8
  headlight: twice disc .85 .95 .22; disc 0 3.3 .2
train_side: train, 0
  outline: -9,.1 -9.6,.6 -9,2.8 -8.2,3.6 8.2,3.6 9,2.8 9.6,.6 9,.1
  train: outline
  glass: twice rect .3 1.8 2 2.75; twice rect 2.6 1.8 4.3 2.75; twice rect 4.9 1.8 6.6 2.75
  glass: twice 7.2,1.8 7.2,2.75 8.8,2.75 9.2,1.8
  black: twice rect 2.5 0 6.5 .5
bicycle: bicycle, 0
  outline: -1.05,.3 -.9,.72 -.55,.82 -.45,1.05 -.1,1.05 -.1,.9 .3,.9 .3,1.2 .6,1.2 .65,.82 .95,.7 \
    1.05,.3 .85,.04 .55,0 .2,.15 -.2,.15 -.55,0 -.85,.04
  spokes: outline
  black: twice disc .58 .42 .44
  spokes: twice disc .58 .42 .33
  frame: -.62,.4 -.3,.95 -.2,.95 .4,.85 .62,.42 .3,.7 0,.35
  black: rect -.45 .95 -.1 1.05; rect .3 1.1 .6 1.2
motorcycle: motorcycle, 0
  outline: -1.2,.35 -1.15,.7 -1,.95 -.3,.85 0,1.05 .45,1.05 .5,1.3 .75,1.2 .85,.8 1.15,.65 1.2,.3 1,0 \
    .6,0 .4,.15 -.4,.15 -.6,0 -1,0
  black: outline
  hub: twice disc .8 .42 .18
  tank: -.5,.45 -.35,.78 0,1 .45,1 .7,.75 .35,.4
  chrome: rect -.9 .2 .1 .34
  headlight: disc .62 1.05 .15
rider: rider, 0
  outline: -.5,.85 -.5,1.05 -.25,1.5 -.12,1.72 -.1,2 .1,2.12 .34,2.02 .38,1.76 .25,1.6 .62,1.3 .6,1.1 \
    .2,1.2 .22,.9 .3,.45 .05,.42 -.1,.8
  jersey: outline
  tights: -.45,.85 -.35,1.1 .18,1.1 .22,.9 .3,.45 .05,.42 -.1,.8
  skin: disc .2 1.78 .15
  helmet: -.12,1.82 -.1,2 .1,2.12 .34,2.02 .38,1.86
person: person, 0
  outline: -.3,0 -.3,.7 -.42,.75 -.4,1.3 -.18,1.42 -.2,1.7 0,1.82 .2,1.7 .18,1.42 .4,1.3 .42,.75 .3,.7 .3,0
  coat: rect -.42 .7 .42 1.45
  trousers: twice rect .03 0 .3 .7
  skin: disc 0 1.6 .19
  hair: -.2,1.64 -.2,1.7 0,1.84 .2,1.7 .2,1.64
traffic_light: traffic light, 0
  outline: rect -.45 2.6 .45 4.6
  box: outline
  red: disc 0 4.25 .25
  amber: disc 0 3.6 .25
  green: disc 0 2.95 .25
round_sign: traffic sign, 0
  outline: disc 0 3 .75
  red: outline
  white: disc 0 3 .5
  black: rect -.3 2.92 .3 3.08
warning_sign: traffic sign, 0
  outline: -.85,2.4 0,3.8 .85,2.4
  red: outline
  white: -.5,2.6 0,3.4 .5,2.6
  black: rect -.08 2.7 .08 3.1
square_sign: traffic sign, 0
  outline: rect -.7 2.3 .7 3.7
  white: outline
  red: rect -.58 2.42 .58 3.58
  white: -.3,2.6 0,3.4 .3,2.6
sign_post: pole, 0
  outline: rect -.16 0 .16 2.7
  post: outline
  gleam: rect -.1 0 .02 2.7
lamp_post: pole, 0
  outline: -.2,0 -.2,5.4 -.5,5.4 -.5,6 .5,6 .5,5.4 .2,5.4 .2,0
  post: outline
  gleam: rect -.12 0 .02 5.4
  headlight: rect -.4 5.45 .4 5.7
bin: static, 0
  outline: rect -.35 0 .35 1.1
  bin: outline
  black: rect -.35 .9 .35 1.1
"""


def _shapes(text: str, outline: Points) -> list[Points]:
    """The shapes of a line, or of one of its parts."""
    if ";" in text:
        return [shape for part in text.split(";") for shape in _shapes(part, outline)]
    words = text.split()
    if words[0] == "twice":
        (shape,) = _shapes(" ".join(words[1:]), outline)
        return [shape, [(-across, up) for across, up in shape]]
    if words[0] in ("rect", "disc"):
        return [{"rect": rect, "disc": disc}[words[0]](*map(float, words[1:]))]
    if words[0] == "outline":
        return [outline]
    pairs = (word.split(",") for word in words)
    return [[(float(across), float(up)) for across, up in pairs]]


@cache
def sprites() -> dict[str, Sprite]:
    """Every sprite by name."""
    found = {}
    for block in re.split(r"\n(?=\S)", _SPRITES.strip()):
        header, first, *rest = (line.strip().split(": ") for line in block.splitlines())
        label, length = header[1].split(", ")
        (outline,) = _shapes(first[1], ())
        parts = [(material, shape) for material, text in rest for shape in _shapes(text, outline)]
        found[header[0]] = Sprite(label, float(length), outline, parts)
    return found
