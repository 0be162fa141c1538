"""Boxes, spheres, cylinders and the room around them: where rays enter and leave them, and how their surfaces lie.

Lengths are metres; x goes along the room's width, y up, z along its length.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # numpy's arrays of float64; origins and directions may be plain floats too
Vector = tuple[float, float, float]
Arrays = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Box:
    """A box that stands upright.

    Attributes:
        center: Its middle.
        half: Half its extents along its own axes.
        turn: Cosine and sine of its rotation about the vertical axis.
        material: What it is made of.
        casts: Whether it casts shadows.
    """

    center: Vector
    half: Vector
    turn: tuple[float, float] = (1.0, 0.0)
    material: Any = None
    casts: bool = True

    @property
    def radius(self) -> float:
        """Radius of a sphere about the middle that holds the box."""
        return math.hypot(*self.half)

    def local(self, x: Array, y: Array, z: Array) -> Arrays:
        """Turn a vector into the box's own axes."""
        c, s = self.turn
        return c * x + s * z, y, c * z - s * x

    def interval(self, origin: Arrays, direction: Arrays) -> tuple[Array, Array]:
        """Where rays enter and leave: an empty interval where they miss."""
        start = self.local(*(o - c for o, c in zip(origin, self.center, strict=True)))
        enter, leave = -np.inf, np.inf
        for o, d, half in zip(start, self.local(*direction), self.half, strict=True):
            near, far = slab(o, d, half)
            enter, leave = np.maximum(enter, near), np.minimum(leave, far)
        return enter, leave

    def surface(self, x: Array, y: Array, z: Array) -> tuple[Arrays, Array, Array]:
        """Normals at points of the surface, and the place on it in metres: u along, v up or across."""
        p = self.local(x - self.center[0], y - self.center[1], z - self.center[2])
        normal, u, v = face(p, self.half)
        c, s = self.turn
        return (c * normal[0] - s * normal[2], normal[1], s * normal[0] + c * normal[2]), u, v


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    center: Vector
    radius: float
    material: Any = None
    casts: bool = True

    def interval(self, origin: Arrays, direction: Arrays) -> tuple[Array, Array]:
        """Where rays enter and leave: an empty interval where they miss."""
        ox, oy, oz = (o - c for o, c in zip(origin, self.center, strict=True))
        dx, dy, dz = direction
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        return roots(a, b, ox * ox + oy * oy + oz * oz - self.radius * self.radius)

    def surface(self, x: Array, y: Array, z: Array) -> tuple[Arrays, Array, Array]:
        """Normals at points of the surface, and the place on it in metres: u along, v up."""
        px, py, pz = x - self.center[0], y - self.center[1], z - self.center[2]
        normal = (px / self.radius, py / self.radius, pz / self.radius)
        return normal, np.arctan2(px, pz) * self.radius, np.arcsin(np.clip(normal[1], -1, 1)) * self.radius


@dataclass(frozen=True)
class Cylinder:
    """A cylinder that stands upright, with both ends closed."""

    center: Vector
    base: float
    half_height: float
    material: Any = None
    casts: bool = True

    @property
    def radius(self) -> float:
        """Radius of a sphere about the middle that holds the cylinder."""
        return math.hypot(self.base, self.half_height)

    def interval(self, origin: Arrays, direction: Arrays) -> tuple[Array, Array]:
        """Where rays enter and leave: an empty interval where they miss."""
        ox, oy, oz = (o - c for o, c in zip(origin, self.center, strict=True))
        dx, dy, dz = direction
        near, far = slab(oy, dy, self.half_height)
        a = np.maximum(dx * dx + dz * dz, 1e-18)
        enter, leave = roots(a, ox * dx + oz * dz, ox * ox + oz * oz - self.base * self.base)
        return np.maximum(enter, near), np.minimum(leave, far)

    def surface(self, x: Array, y: Array, z: Array) -> tuple[Arrays, Array, Array]:
        """Normals at points of the surface, and the place on it in metres: u along, v up or across."""
        px, py, pz = x - self.center[0], y - self.center[1], z - self.center[2]
        end = np.abs(py) > self.half_height - 1e-9
        normal = (np.where(end, 0, px / self.base), np.where(end, np.sign(py), 0.0), np.where(end, 0, pz / self.base))
        return normal, np.where(end, px, np.arctan2(px, pz) * self.base), np.where(end, pz, py)


Solid = Box | Sphere | Cylinder


@dataclass(frozen=True)
class Room:
    """The closed room that the camera stands in: from (0, 0, 0) to `size`.

    Attributes:
        size: Width, height and length.
        materials: Of the walls at x = 0 and x = width, floor, ceiling, and the walls at z = 0 and z = length.
    """

    size: Vector
    materials: tuple[Any, ...] = ()

    def exits(self, origin: Arrays, direction: Arrays) -> tuple[Array, Array]:
        """Where rays from inside meet the room, and which side they meet, in the order of `materials`."""
        distance, side = np.inf, 0
        for axis, (o, d, size) in enumerate(zip(origin, direction, self.size, strict=True)):
            away = d > 0
            hit = np.where(d == 0, np.inf, (np.where(away, size, 0.0) - o) / np.where(d == 0, 1.0, d))
            side = np.where(hit < distance, 2 * axis + away, side)
            distance = np.minimum(hit, distance)
        return distance, side

    def surface(self, side: int, x: Array, y: Array, z: Array) -> tuple[Arrays, Array, Array]:
        """Normals, which point into the room, and the place on a side in metres: u along, v up or across."""
        axis, away = divmod(side, 2)
        normal = [np.zeros_like(x) for _ in range(3)]
        normal[axis] += -1.0 if away else 1.0
        u, v = ((z, y), (x, z), (x, y))[axis]
        return (normal[0], normal[1], normal[2]), u, v


def slab(origin: Array, direction: Array, half: float) -> tuple[Array, Array]:
    """Where rays enter and leave what lies between -half and half."""
    inverse = 1.0 / np.where(direction == 0, 1e-18, direction)
    one, other = (-half - origin) * inverse, (half - origin) * inverse
    return np.minimum(one, other), np.maximum(one, other)


def roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Both solutions t of a t² + 2 b t + c = 0; an empty interval where there is none."""
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    missed = inside < 0
    return np.where(missed, np.inf, (-b - root) / a), np.where(missed, -np.inf, (root - b) / a)


def face(p: Arrays, half: Vector) -> tuple[Arrays, Array, Array]:
    """Normals of a box at points of its surface, and the place on the face; all along the box's axes."""
    shares = [np.abs(q) / h for q, h in zip(p, half, strict=True)]
    on_x = (shares[0] >= shares[1]) & (shares[0] >= shares[2])
    on_y = ~on_x & (shares[1] >= shares[2])
    on_z = ~on_x & ~on_y
    normal = tuple(np.where(on, np.sign(q), 0.0) for on, q in zip((on_x, on_y, on_z), p, strict=True))
    return (normal[0], normal[1], normal[2]), np.where(on_x, p[2], p[0]), np.where(on_y, p[2], p[1])
