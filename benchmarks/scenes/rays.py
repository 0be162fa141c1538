"""Rays against solids in a closed room: what each pixel sees, and how far away it is.

Only additions, products, quotients and square roots go into a depth, component by component and in double precision.
IEEE 754 rounds each of them in one way, so that a depth has the same bits on every machine. Lengths are metres; x goes
along the room's width, y up, z along its length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scenes.solids import Array, Arrays, Room, Solid, Vector

TILE = 56  # pixels along each side of what is traced at a time: little enough for the cache
EPSILON = 1e-3  # metres by which a shadow ray starts above its surface


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
