"""What a traced scene looks like: textures, lamps with shadows, highlights, dark corners, a camera's exposure.

Colors come from sines and powers too, so that pictures agree to rounding and not to the bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.scenes.rays import EPSILON, Bounds, Solid, lit, tiles, trace
from benchmarks.scenes.rooms import Light, Scene
from benchmarks.scenes.textures import Material, albedo

Array = Any

SHIFTS = ((-0.25, -0.1), (0.25, 0.1))
"""Where in a pixel its samples lie; each sees another part of each lamp, which makes shadows soft."""


def render_depth(scene: Scene, size: int) -> Array:
    """Depth (size, size) in metres at the middles of the pixels."""
    return trace(scene.camera, scene.room, scene.solids, scene.camera.directions(size))[0]


def render_image(scene: Scene, size: int, noise: float = 0.008, seed: int = 0) -> Array:
    """A picture (size, size, 3) in bytes.

    Args:
        scene: What to render.
        size: Pixels along each side.
        noise: Standard deviation of the sensor's noise, of values in 0..1.
        seed: Seed of the noise.
    """
    light = np.mean([_sample(scene, size, shift) for shift in SHIFTS], axis=0)
    exposed = light * (0.37 * scene.exposure / max(float(np.mean(light)), 1e-6))
    # Bright parts are bent towards white, as film does.
    exposed = exposed * (1 + exposed / 6) / (1 + exposed)
    across = np.linspace(-1, 1, size)
    exposed *= (1 - 0.08 * (across[None, :] ** 2 + across[:, None] ** 2))[..., None]
    stream = np.random.Generator(np.random.PCG64(seed))
    encoded = np.clip(exposed * 1.25, 0, 1) ** (1 / 2.2) + noise * stream.standard_normal((size, size, 1))
    return np.round(np.clip(encoded, 0, 1) * 255).astype(np.uint8)


def _sample(scene: Scene, size: int, shift: tuple[float, float]) -> Array:
    """Light (size, size, 3) that reaches the camera through one place in each pixel."""
    directions = scene.camera.directions(size, shift)
    depth, seen = trace(scene.camera, scene.room, scene.solids, directions)
    # From here on single precision is enough: nothing below goes into a depth.
    points = np.stack([p + depth * d for p, d in zip(scene.camera.position, directions, strict=True)], -1)
    points, views = points.astype(np.float32), np.stack(directions, -1).astype(np.float32)
    views /= -np.sqrt((views * views).sum(-1, keepdims=True))
    footprint = (depth * (2 * scene.camera.tan_half / size)).astype(np.float32)
    normals, colors = np.empty_like(points), np.empty_like(points)
    gloss, glow = np.zeros((2, size, size), dtype=np.float32)
    order = np.argsort(seen, axis=None, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(seen.ravel()[order])) + 1):
        at = np.unravel_index(same, seen.shape)
        number = int(seen[at[0][0], at[1][0]])
        surface, material = surface_of(scene, number)
        normal, u, v = surface(*points[at].T)
        normals[at] = np.stack(normal, -1)
        slant = np.maximum(np.abs((normals[at] * views[at]).sum(-1)), 0.15)
        colors[at] = albedo(material, u, v, footprint[at] / slant)
        gloss[at], glow[at] = material.gloss, material.glow
    light = colors * (_ambient(scene, points, normals) + glow[..., None])
    casting = [solid for solid in scene.solids if solid.casts]
    bounds = Bounds.of(casting)
    for lamp in scene.lights:
        light += _from_lamp(lamp, shift, casting, bounds, points, normals, views, colors, gloss)
    return light


def surface_of(scene: Scene, number: int) -> tuple[Callable[..., Any], Material]:
    """What tells normals and places on what a ray met, by its number from `trace`; and its material."""
    if number >= 0:
        return scene.solids[number].surface, scene.solids[number].material
    return partial(scene.room.surface, -1 - number), scene.room.materials[-1 - number]


def _ambient(scene: Scene, points: Array, normals: Array) -> Array:
    """Light (size, size, 1) from everywhere: less in corners, and less from below."""
    dark = np.ones(points.shape[:-1], dtype=np.float32)
    for axis, extent in enumerate(scene.room.size):
        for distance, toward in ((points[..., axis], -1), (extent - points[..., axis], 1)):
            # A surface that is part of this side is not darkened by it.
            faces = np.clip(1 + 2 * toward * normals[..., axis], 0, 1)
            dark *= 1 - 0.5 * faces * np.exp(-np.maximum(distance, 0) / 0.25)
    return (0.2 * (0.75 + 0.25 * normals[..., 1]) * dark)[..., None]


def _from_lamp(
    lamp: Light,
    shift: tuple[float, float],
    solids: list[Solid],
    bounds: Bounds,
    points: Array,
    normals: Array,
    views: Array,
    colors: Array,
    gloss: Array,
) -> Array:
    """Light (size, size, 3) of one lamp that surfaces send on: matt, and as a highlight."""
    a, b = (2 * lamp.half * s for s in shift)
    center = (lamp.center[0] + 2 * a, lamp.center[1] + 0.3 * b, lamp.center[2] + 2 * b)
    ways = np.array(center, dtype=np.float32) - points
    squared = (ways * ways).sum(-1)
    ways /= np.sqrt(squared)[..., None]
    cosine = (ways * normals).sum(-1)
    visible = np.zeros_like(cosine)
    for tile in tiles(len(points)):
        facing = cosine[tile] > 0
        starts = points[tile][facing] + EPSILON * normals[tile][facing]
        visible[tile][facing] = lit(starts, center, solids, bounds)
    strength = (visible / (squared + 0.5))[..., None]
    halves = ways + views
    halves /= np.maximum(np.sqrt((halves * halves).sum(-1)), 1e-9)[..., None]
    shine = gloss * np.clip((halves * normals).sum(-1), 0, 1) ** 40
    power = np.array(lamp.power, dtype=np.float32)
    return strength * (np.maximum(cosine, 0)[..., None] * colors + shine[..., None]) * power
