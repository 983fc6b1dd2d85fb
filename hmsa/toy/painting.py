# SPDX-License-Identifier: Apache-2.0
"""The camera of the toy world, the things it sees, and how they are painted.

The world is measured in metres (across, up, away) and seen by a pinhole camera. A `Thing` is one labelled outline
and the faces painted inside it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hmsa.toy.drawing import MATERIALS, Colour, Material, Points, plain, rect

SUPERSAMPLING = 2
"""Painted pixels per pixel, down and across."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


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

    def sees(self, outline: np.ndarray) -> bool:
        """Whether an outline is in the image, at least in part, and large enough to be drawn."""
        left, top, right, bottom = box(outline)
        in_image = right > 0 and left < self.width and bottom > 0 and top < self.height
        return in_image and max(right - left, bottom - top) >= 3.5

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


def box(points: np.ndarray) -> Box:
    """The box around [N, 2] points."""
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return left, top, right, bottom


def shared(a: Box, b: Box) -> float:
    """Area that two boxes have in common."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def paint(canvas: np.ndarray, camera: Camera, thing: Thing, haze: Colour) -> None:
    """Paint a thing on the canvas, float32 [S*H, S*W, 3], inside the pixels of its label; its rim is dark."""
    # A label's polygon covers the whole of every pixel it touches.
    inside, left, top = _mask(canvas, np.array(thing.polygon) * SUPERSAMPLING, spread=SUPERSAMPLING - 1)
    rim = thing.faces[0].material.shaded(0.62)._replace(pattern=plain)
    faces = [(inside, Face(thing.outline, "away", thing.away, rim))] if thing.away else []
    for face in thing.faces:
        part = Image.new("1", (inside.shape[1], inside.shape[0]))
        shape = [(x - left, y - top) for x, y in face.outline * SUPERSAMPLING - 0.5]
        ImageDraw.Draw(part).polygon(shape, fill=1)
        faces.append((inside & np.array(part), face))
    for mask, face in faces:
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            continue
        rows, columns = rows + top, columns + left
        x, y = (((at + 0.5) / SUPERSAMPLING).astype(np.float32) for at in (columns, rows))
        a, b, away = camera.locate(face, x, y)
        mix = np.asarray(face.material.pattern(a, b), np.float32)[:, None]
        fog = 1 - np.exp(-away / 130)[:, None] if face.axis != "sky" else 0
        first, second, far = np.array([*face.material[:2], haze], np.float32)
        colour = first + (second - first) * mix
        canvas[rows, columns] = colour + (far - colour) * fog


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
    """Canvas -> image, uint8 RGB [H, W, 3]: the light of the day, then the noise of the sensor."""
    height, width = canvas.shape[0] // SUPERSAMPLING, canvas.shape[1] // SUPERSAMPLING
    image = canvas.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean((1, 3))
    image = image * rng.uniform(0.82, 1.1) * rng.uniform(0.95, 1.05, 3)
    image += rng.normal(0, rng.uniform(2, 5), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
