"""Rays against boxes, spheres and cylinders: what each pixel sees, how far away; long, as all shapes share its rules.

Only additions, products, quotients and square roots go into a depth, component by component and in double precision.
IEEE 754 rounds each of them in one way, so that a depth has the same bits on every machine. Lengths are metres; x goes
along the room's width, y up, z along its length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # numpy's arrays of float64; origins and directions may be plain floats too
Vector = tuple[float, float, float]
Arrays = tuple[Array, Array, Array]

TILE = 56  # pixels along each side of what is traced at a time: little enough for the cache
EPSILON = 1e-3  # metres by which a shadow ray starts above its surface


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


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: Where it stands.
        target: A point in the middle of its picture.
        roll: How far it leans, as a tangent.
        tan_half: Tangent of half its field of view.
    """

    position: Vector
    target: Vector
    roll: float = 0.0
    tan_half: float = 0.577

    def axes(self) -> tuple[Vector, Vector, Vector]:
        """Unit vectors to the right, up and forward."""
        forward = unit(*(t - p for t, p in zip(self.target, self.position, strict=True)))
        level = unit(*cross((0.0, 1.0, 0.0), forward))
        up = cross(forward, level)
        up = unit(*(u + self.roll * r for u, r in zip(up, level, strict=True)))
        return cross(up, forward), up, forward

    def directions(self, size: int, shift: tuple[float, float] = (0.0, 0.0)) -> Arrays:
        """Rays (size, size) through the middles of the pixels, moved by `shift` pixels.

        They are as long as makes the forward part 1, so that a distance in units of them is a depth: the distance from
        the plane of the camera, as range cameras and NYU Depth v2 give it, and not the distance from the camera.
        """
        right, up, forward = self.axes()
        steps = np.arange(size) + 0.5
        across = ((steps + shift[0]) * (2 / size) - 1)[None, :] * self.tan_half
        down = ((steps + shift[1]) * (2 / size) - 1)[:, None] * self.tan_half
        x, y, z = (f + across * r - down * u for f, r, u in zip(forward, right, up, strict=True))
        return x, y, z


def unit(x: float, y: float, z: float) -> Vector:
    """A vector of length 1."""
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


def cross(a: Vector, b: Vector) -> Vector:
    """Cross product, for axes in which z is forward, y up and x right."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


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


@dataclass
class Bounds:
    """Spheres about solids, to leave out those that no ray of a bundle can meet."""

    centers: Array
    radii: Array

    @classmethod
    def of(cls, solids: Sequence[Solid]) -> "Bounds":
        """The bounds of solids, in their order."""
        centers = np.array([solid.center for solid in solids]).reshape(-1, 3)
        return cls(centers, np.array([solid.radius for solid in solids]) + 1e-6)

    def on_the_way(self, origin: Array, ways: Array) -> list[int]:
        """Solids that something may meet which goes from `origin` as far as `ways` (P, 3), or in between."""
        lengths = np.sqrt((ways * ways).sum(1))
        axis = (ways / lengths[:, None]).sum(0)
        axis /= np.linalg.norm(axis)
        angle = np.arccos(np.clip(ways @ axis / lengths, -1, 1).min())
        to_solids = self.centers - origin
        distances = np.maximum(np.linalg.norm(to_solids, axis=1), 1e-9)
        off = np.arccos(np.clip(to_solids @ axis / distances, -1, 1))
        spread = np.arcsin(np.clip(self.radii / distances, 0, 1))
        met = (off <= angle + spread + 1e-6) & (distances - self.radii <= lengths.max())
        return np.flatnonzero(met | (distances <= self.radii)).tolist()


def tiles(size: int) -> list[tuple[slice, slice]]:
    """The parts of a picture that are traced one after the other."""
    cuts = [slice(i, min(i + TILE, size)) for i in range(0, size, TILE)]
    return [(rows, columns) for rows in cuts for columns in cuts]


def trace(camera: Camera, room: Room, solids: Sequence[Solid], directions: Arrays) -> tuple[Array, Array]:
    """What rays (S, S) from the camera meet first.

    Args:
        camera: Where they start.
        room: The room around.
        solids: What stands in it.
        directions: From `Camera.directions`.

    Returns:
        Depth (S, S) in metres, and what is there (S, S): the number of a solid, or -1 - side of the room.
    """
    size = directions[0].shape[0]
    depth, seen = np.empty((size, size)), np.empty((size, size), dtype=np.int32)
    bounds, origin = Bounds.of(solids), np.array(camera.position)
    for tile in tiles(size):
        rays = (directions[0][tile], directions[1][tile], directions[2][tile])
        nearest, side = room.exits(camera.position, rays)
        found = -1 - side
        corners = np.stack(rays, -1)[[0, 0, -1, -1], [0, -1, 0, -1]]
        for number in bounds.on_the_way(origin, 1e3 * corners):
            enter, leave = solids[number].interval(camera.position, rays)
            closer = (enter <= leave) & (enter > 0) & (enter < nearest)
            nearest, found = np.where(closer, enter, nearest), np.where(closer, number, found)
        depth[tile], seen[tile] = nearest, found
    return depth, seen


def lit(points: Array, light: Vector, solids: Sequence[Solid], bounds: Bounds) -> Array:
    """Which points (P, 3) see a light: (P,) of booleans.

    Args:
        points: Points a little above their surfaces.
        light: Where the light is.
        solids: What may stand between.
        bounds: Of the solids.
    """
    free = np.ones(len(points), dtype=bool)
    if not len(points):
        return free
    ways = np.array(light, dtype=points.dtype) - points
    origin, direction = tuple(points.T.copy()), tuple(ways.T.copy())
    for number in bounds.on_the_way(np.array(light), -ways):
        enter, leave = solids[number].interval(origin, direction)
        free &= (enter >= leave) | (leave <= 0) | (enter >= 1)
    return free
