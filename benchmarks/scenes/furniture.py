"""Furniture drawn at random, out of boxes, spheres and cylinders, with small things on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from benchmarks.scenes.rays import Box, Cylinder, Solid, Sphere
from benchmarks.scenes.textures import Color, Material

T = TypeVar("T")

WHITES: tuple[Color, ...] = ((0.75, 0.73, 0.68), (0.68, 0.66, 0.6), (0.7, 0.72, 0.74), (0.8, 0.78, 0.74))
WALLS: tuple[Color, ...] = (*WHITES, (0.55, 0.6, 0.5), (0.6, 0.5, 0.38), (0.4, 0.5, 0.6), (0.62, 0.42, 0.36))
WOODS: tuple[tuple[Color, Color], ...] = (
    ((0.42, 0.25, 0.12), (0.22, 0.11, 0.05)),
    ((0.6, 0.42, 0.23), (0.42, 0.26, 0.12)),
    ((0.66, 0.53, 0.36), (0.5, 0.36, 0.2)),
    ((0.17, 0.09, 0.05), (0.08, 0.04, 0.025)),
)
STRONG: tuple[Color, ...] = (
    (0.6, 0.08, 0.06),
    (0.08, 0.2, 0.5),
    (0.1, 0.35, 0.15),
    (0.75, 0.5, 0.06),
    (0.35, 0.12, 0.35),
    (0.05, 0.4, 0.42),
    (0.7, 0.3, 0.1),
    (0.12, 0.12, 0.13),
    (0.7, 0.68, 0.62),
)
METAL: Color = (0.3, 0.31, 0.33)


class Draw:
    """Random choices that depend on the seed alone: all come from plain doubles of a PCG64 stream."""

    def __init__(self, *seed: int) -> None:  # noqa: D107
        self.stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def between(self, low: float, high: float) -> float:
        """A number in a range."""
        return low + (high - low) * float(self.stream.random())

    def number(self, low: int, high: int) -> int:
        """A whole number in a range, both ends included."""
        return low + int(self.between(0, high - low + 1))

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.between(0, 1) < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.number(0, len(options) - 1)]

    def turn(self, most: float = 1.0) -> tuple[float, float]:
        """Cosine and sine of an angle up to 2 atan(most), without a trigonometric function."""
        t = self.between(-most, most)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def material(self, texture: str, colors: Sequence[Color], **settings: Any) -> Material:
        """A material with a seed of its own."""
        return Material(texture, tuple(colors), seed=self.number(0, 10**6), **settings)

    def wooden(self, gloss: float = 0.15) -> Material:
        """Plain wood, as furniture is made of."""
        return self.material("grain", self.pick(WOODS), gloss=gloss)

    def soft(self) -> Material:
        """What covers beds and sofas."""
        kind, one, other = self.pick(("cloth", "cloth", "stripes", "checker", "dots")), *self.two_colors()
        return self.material(kind, (one, other), scale=self.between(0.06, 0.16))

    def hard(self) -> Material:
        """What small things are made of."""
        kind, one, other = self.pick(("paint", "paint", "marble", "grain", "dots", "stripes")), *self.two_colors()
        return self.material(kind, (one, other), scale=self.between(0.04, 0.1), gloss=self.between(0, 0.6))

    def two_colors(self) -> tuple[Color, Color]:
        """Two different colors."""
        one = self.number(0, len(STRONG) - 1)
        return STRONG[one], STRONG[(one + self.number(1, len(STRONG) - 1)) % len(STRONG)]


Piece = tuple[list[Solid], float, float]
"""Solids about (0, 0, 0) on the floor, their back towards +z; half their width and half their depth."""


def box(x: float, y: float, z: float, width: float, height: float, depth: float, material: Material) -> Box:
    """A box that stands at a height y above the floor, by its extents."""
    return Box((x, y + height / 2, z), (width / 2, height / 2, depth / 2), material=material)


def post(x: float, y: float, z: float, radius: float, height: float, material: Material) -> Cylinder:
    """A cylinder that stands at a height y above the floor."""
    return Cylinder((x, y + height / 2, z), radius, height / 2, material)


def legs(width: float, depth: float, height: float, thick: float, material: Material, round_: bool) -> list[Solid]:
    """Four legs under a board."""
    x, z = width / 2 - 1.2 * thick, depth / 2 - 1.2 * thick
    corners = [(a, b) for a in (-x, x) for b in (-z, z)]
    if round_:
        return [post(a, 0, b, thick / 2, height, material) for a, b in corners]
    return [box(a, 0, b, thick, height, thick, material) for a, b in corners]


def things(draw: Draw, y: float, width: float, depth: float, most: int) -> list[Solid]:
    """Small things on a board at a height y, side by side."""
    count = draw.number(0, most)
    solids: list[Solid] = []
    for i in range(count):
        x = ((i + draw.between(0.3, 0.7)) / count - 0.5) * width
        z, room = draw.between(-0.25, 0.25) * depth, 0.32 * min(depth, width / count)
        kind, material = draw.number(0, 3), draw.hard()
        if kind == 0:
            radius = min(draw.between(0.05, 0.14), room)
            solids.append(Sphere((x, y + radius, z), radius, material))
        elif kind == 1:
            solids.append(post(x, y, z, min(draw.between(0.03, 0.1), room), draw.between(0.08, 0.32), material))
        elif kind == 2:
            turn, side, height = draw.turn(), min(draw.between(0.05, 0.16), room), draw.between(0.03, 0.16)
            solids.append(Box((x, y + height, z), (side, height, 0.7 * side), turn, material))
        else:
            radius, stem = min(draw.between(0.08, 0.14), room), draw.between(0.1, 0.2)
            shade = draw.material("cloth", ((0.9, 0.82, 0.6), (0.85, 0.7, 0.5)), glow=0.8)
            solids += [post(x, y, z, 0.02, stem + 0.05, material), post(x, y + stem, z, radius, 0.16, shade)]
    return solids


def table(draw: Draw) -> Piece:
    """A table or a desk, with things on it."""
    width, depth, height = draw.between(0.7, 1.6), draw.between(0.5, 0.9), draw.between(0.42, 0.78)
    wood = draw.wooden()
    top = box(0, height - 0.04, 0, width, 0.04, depth, wood)
    solids: list[Solid] = [top, *legs(width, depth, height - 0.04, 0.06, wood, draw.chance(0.4))]
    return solids + things(draw, height, width, depth, 4), width / 2, depth / 2


def round_table(draw: Draw) -> Piece:
    """A round table on one leg."""
    radius, height, wood = draw.between(0.3, 0.6), draw.between(0.45, 0.76), draw.wooden()
    solids: list[Solid] = [post(0, height - 0.03, 0, radius, 0.03, wood), post(0, 0, 0, 0.05, height - 0.03, wood)]
    solids.append(post(0, 0, 0, 0.55 * radius, 0.03, wood))
    return solids + things(draw, height, 1.3 * radius, 0.9 * radius, 2), radius, radius


def chair(draw: Draw) -> Piece:
    """A chair."""
    side, seat, back, wood = draw.between(0.38, 0.48), draw.between(0.42, 0.48), draw.between(0.4, 0.55), draw.wooden()
    solids: list[Solid] = [box(0, seat - 0.04, 0, side, 0.05, side, draw.soft() if draw.chance(0.5) else wood)]
    solids += legs(side, side, seat - 0.04, 0.04, wood, False)
    solids += [box(x, seat, side / 2 - 0.02, 0.04, back, 0.035, wood) for x in (-side / 2 + 0.02, side / 2 - 0.02)]
    bars = draw.number(1, 3)
    solids += [
        box(0, seat + back * (i + 0.9) / (bars + 0.9) - 0.04, side / 2 - 0.02, side - 0.06, 0.08, 0.025, wood)
        for i in range(bars)
    ]
    return solids, side / 2, side / 2


def sofa(draw: Draw) -> Piece:
    """A sofa or an armchair."""
    seats, depth, cover = draw.number(1, 3), draw.between(0.75, 0.95), draw.soft()
    width = 0.65 * seats + 0.36
    solids: list[Solid] = [
        box(0, 0.06, 0, width, 0.24, depth, cover),
        box(0, 0.3, depth / 2 - 0.11, width, draw.between(0.4, 0.55), 0.22, cover),
    ]
    solids += [box(x, 0.3, 0, 0.18, 0.28, depth, cover) for x in (-width / 2 + 0.09, width / 2 - 0.09)]
    for i in range(seats):
        x = (i - (seats - 1) / 2) * 0.65
        solids.append(box(x, 0.3, -0.1, 0.63, 0.14, depth - 0.24, cover))
        if draw.chance(0.4):
            pillow = Box((x, 0.6, depth / 2 - 0.3), (0.19, 0.17, 0.07), draw.turn(0.2), draw.soft())
            solids.append(pillow)
    return solids, width / 2, depth / 2


def bed(draw: Draw) -> Piece:
    """A bed, its head against the wall."""
    width, length, height, wood = draw.between(0.9, 1.7), draw.between(1.9, 2.1), draw.between(0.3, 0.5), draw.wooden()
    sheet = draw.material("cloth", (draw.pick(WHITES), draw.pick(WHITES)))
    solids: list[Solid] = [
        box(0, 0.08, 0, width, height - 0.2, length, wood),
        box(0, height - 0.12, 0, width - 0.06, 0.14, length - 0.06, sheet),
        box(0, height + 0.02, -0.25, width + 0.04, 0.06, length - 0.6, draw.soft()),
        box(0, 0, length / 2 - 0.03, width + 0.06, draw.between(0.8, 1.2), 0.06, wood),
    ]
    count = 1 if width < 1.2 else 2
    for i in range(count):
        x = (i - (count - 1) / 2) * width / count
        solids.append(Box((x, height + 0.09, length / 2 - 0.3), (0.28, 0.07, 0.18), draw.turn(0.1), draw.soft()))
    return solids, width / 2 + 0.03, length / 2


def shelf(draw: Draw) -> Piece:
    """Shelves with books and things."""
    width, depth, height, wood = draw.between(0.6, 1.3), draw.between(0.24, 0.36), draw.between(0.9, 2.1), draw.wooden()
    boards = max(2, round(height / draw.between(0.32, 0.45)))
    solids: list[Solid] = [box(x, 0, 0, 0.03, height, depth, wood) for x in (0.015 - width / 2, width / 2 - 0.015)]
    solids.append(box(0, 0, depth / 2 - 0.01, width, height, 0.02, wood))
    gap = (height - 0.03) / boards
    for i in range(boards + 1):
        solids.append(box(0, i * gap, 0, width - 0.06, 0.03, depth, wood))
        if i == boards:
            break
        if draw.chance(0.65):
            share, left = draw.between(0.4, 1.0), draw.chance(0.5)
            length = share * (width - 0.08)
            x = (width / 2 - 0.04 - length / 2) * (-1 if left else 1)
            books = draw.material("books", (), scale=draw.between(0.025, 0.05), gloss=0.1)
            tall = min(gap - 0.06, draw.between(0.2, 0.3))
            solids.append(replace(box(x, i * gap + 0.03, 0.02, length, tall, depth - 0.1, books), casts=False))
        else:
            solids += things(draw, i * gap + 0.03, width - 0.1, 0.8 * depth, 3) if gap > 0.38 else []
    return solids, width / 2, depth / 2


def cabinet(draw: Draw) -> Piece:
    """A cabinet, a wardrobe or a chest of drawers."""
    width, depth, height = draw.between(0.5, 1.5), draw.between(0.38, 0.6), draw.between(0.5, 2.0)
    body = draw.wooden() if draw.chance(0.6) else draw.material("paint", (draw.pick(WALLS),), gloss=0.2)
    knob = draw.material("paint", (METAL,), gloss=0.8)
    solids: list[Solid] = [box(0, 0, 0.01, width, height, depth - 0.02, body)]
    # What shows in the gaps between doors, which throw no shadows of their own.
    gaps = replace(body, colors=tuple((0.4 * r, 0.4 * g, 0.4 * b) for r, g, b in body.colors))
    solids.append(replace(box(0, 0.04, 0.005, width - 0.01, height - 0.045, depth - 0.02, gaps), casts=False))
    across, up = draw.number(1, 3), draw.number(1, 4) if height < 1.3 else draw.number(1, 2)
    w, h, front = width / across, (height - 0.08) / up, 0.01 - depth / 2
    for i in range(across):
        for j in range(up):
            x, y = (i + 0.5) * w - width / 2, 0.06 + j * h
            solids.append(replace(box(x, y + 0.01, front, w - 0.025, h - 0.02, 0.02, body), casts=False))
            solids.append(Sphere((x, y + h / 2, front - 0.025), 0.018, knob, casts=False))
    return solids + things(draw, height, width, depth, 3 if height < 1.4 else 0), width / 2, depth / 2


def plant(draw: Draw) -> Piece:
    """A plant in a pot."""
    pot, height = draw.between(0.1, 0.2), draw.between(0.2, 0.4)
    green = draw.material("cloth", ((0.05, 0.22, 0.05), (0.12, 0.32, 0.06)))
    solids: list[Solid] = [post(0, 0, 0, pot, height, draw.hard()), post(0, height, 0, 0.02, 0.3, draw.wooden())]
    for _ in range(draw.number(4, 8)):
        x, z, y = draw.between(-pot, pot), draw.between(-pot, pot), height + draw.between(0.15, 0.7)
        solids.append(Sphere((x, y, z), draw.between(0.08, 0.18), green))
    return solids, 1.6 * pot, 1.6 * pot


def lamp(draw: Draw) -> Piece:
    """A lamp that stands on the floor."""
    height, metal = draw.between(1.3, 1.7), draw.material("paint", (METAL,), gloss=0.8)
    shade = draw.material("cloth", ((0.9, 0.82, 0.6), (0.85, 0.7, 0.5)), glow=1.2)
    parts: list[Solid] = [
        post(0, 0, 0, 0.15, 0.03, metal),
        post(0, 0, 0, 0.015, height, metal),
        post(0, height - 0.1, 0, draw.between(0.14, 0.22), 0.28, shade),
    ]
    return parts, 0.2, 0.2


def heap(draw: Draw) -> Piece:
    """Boxes on top of each other, or a ball, or a stool."""
    kind = draw.number(0, 2)
    if kind == 0:
        radius = draw.between(0.1, 0.35)
        return [Sphere((0.0, radius, 0.0), radius, draw.hard())], radius, radius
    if kind == 1:
        radius, height = draw.between(0.15, 0.28), draw.between(0.3, 0.6)
        return [post(0, 0, 0, radius, height, draw.soft())], radius, radius
    y, solids, side = 0.0, [], draw.between(0.25, 0.5)
    for _ in range(draw.number(1, 3)):
        height = draw.between(0.15, 0.35)
        half = (side / 2, height / 2, side * draw.between(0.3, 0.5))
        solids.append(Box((0.0, y + height / 2, 0.0), half, draw.turn(0.3), draw.hard()))
        y, side = y + height, side * draw.between(0.6, 0.9)
    return list(solids), 0.4, 0.4


BY_THE_WALL: tuple[Callable[[Draw], Piece], ...] = (sofa, bed, shelf, shelf, cabinet, cabinet, table, plant, lamp)
IN_THE_MIDDLE: tuple[Callable[[Draw], Piece], ...] = (table, round_table, chair, chair, sofa, heap, heap, plant)


def moved(solids: Sequence[Solid], x: float, z: float, turn: tuple[float, float]) -> list[Solid]:
    """Solids that are turned about the vertical axis and then moved over the floor."""
    c, s = turn
    result: list[Solid] = []
    for solid in solids:
        px, py, pz = solid.center
        center = (x + c * px - s * pz, py, z + s * px + c * pz)
        if isinstance(solid, Box):
            a, b = solid.turn
            result.append(replace(solid, center=center, turn=(a * c - b * s, a * s + b * c)))
        else:
            result.append(replace(solid, center=center))
    return result
