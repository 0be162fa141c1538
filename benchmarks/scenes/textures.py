"""Textures that are computed: wood, tiles, bricks, checks, stripes, dots, cloth, marble, books, paintings.

A texture maps places on a surface, in metres, to colors. Colors are linear, in 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """What a surface is made of.

    Attributes:
        texture: Name of a texture.
        colors: Its colors.
        scale: Length in metres of what repeats.
        seed: Seed of what is irregular.
        gloss: Strength of highlights.
        glow: Light that the surface gives off itself, in units of its color.
    """

    texture: str
    colors: tuple[Color, ...]
    scale: float = 0.3
    seed: int = 0
    gloss: float = 0.0
    glow: float = 0.0


def albedo(material: Material, u: Array, v: Array, footprint: Array) -> Array:
    """Colors (P, 3) of places (P,) on a surface.

    Args:
        material: Its material.
        u: Place along the surface, in metres.
        v: Place up or across, in metres.
        footprint: Size of a pixel there, in metres: detail below it is left out.
    """
    return np.clip(TEXTURES[material.texture](material, u, v, footprint), 0.01, 0.95)


def hashed(i: Array, j: Array, seed: int) -> Array:
    """A number in 0..1 for each pair of whole numbers."""
    h = i.astype(np.int32).view(np.uint32) * np.uint32(374761393)
    h += j.astype(np.int32).view(np.uint32) * np.uint32(668265263) + np.uint32(seed * 2246822519 % 2**32)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(2246822519)
    return (h ^ (h >> np.uint32(16))).astype(np.float32) / 2.0**32


def noise(u: Array, v: Array, seed: int) -> Array:
    """Smooth noise in 0..1 with one bump a unit."""
    i, j = np.floor(u), np.floor(v)
    x, y = u - i, v - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    top = hashed(i, j, seed) * (1 - x) + hashed(i + 1, j, seed) * x
    bottom = hashed(i, j + 1, seed) * (1 - x) + hashed(i + 1, j + 1, seed) * x
    return top * (1 - y) + bottom * y


def clouds(u: Array, v: Array, footprint: Array, seed: int, octaves: int = 3) -> Array:
    """Noise of several sizes in 0..1, each half as large and half as strong; what a pixel cannot show fades out."""
    total = np.full_like(u, 0.5)
    for octave in range(octaves):
        frequency = 2.0**octave
        total += (noise(u * frequency, v * frequency, seed + octave) - 0.5) * fade(footprint * frequency) / frequency
    return total


def fade(footprint: Array) -> Array:
    """How much of a detail of size 1 a pixel of size `footprint` shows."""
    return np.clip(1.6 - 2 * footprint, 0, 1)


def mix(one: Any, other: Any, share: Array) -> Array:
    """Colors (P, 3) between two colors."""
    one, other = np.asarray(one, dtype=np.float32), np.asarray(other, dtype=np.float32)
    return one * (1 - share)[:, None] + other * share[:, None]


def lines(place: Array, width: float, footprint: Array) -> Array:
    """1 on lines of a width at whole numbers and 0 between, softened over a pixel."""
    apart = np.abs(place - np.round(place))
    return np.clip((width / 2 - apart) / np.maximum(footprint, 1e-3) + 0.5, 0, 1)


def _paint(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    stains = clouds(u / 0.9, v / 0.9, footprint / 0.9, m.seed)
    grain = clouds(u / 0.02, v / 0.02, footprint / 0.02, m.seed + 7, octaves=2)
    return np.asarray(m.colors[0], dtype=np.float32) * (0.9 + 0.14 * stains + 0.1 * (grain - 0.5))[:, None]


def _wood(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    board = np.floor(v / m.scale)
    shift = hashed(board, board, m.seed)
    grain = clouds(u / 0.35 + 37 * shift, v / 0.018, footprint / 0.018, m.seed)
    rings = 0.5 + 0.5 * np.sin(60 * v + 14 * clouds(u / 0.8 + 11 * shift, v / 0.12, footprint / 0.12, m.seed + 3))
    tone = 0.8 + 0.4 * hashed(board, board + 1, m.seed)
    colors = mix(m.colors[0], m.colors[1], np.clip(0.65 * grain + 0.35 * rings * fade(footprint / 0.05), 0, 1))
    length = 9 * m.scale
    joints = lines((u + 5 * shift) / length, 0.003 / length, footprint / length)
    seams = np.maximum(lines(v / m.scale, 0.004 / m.scale, footprint / m.scale), joints)
    return colors * (tone * (1 - 0.6 * seams))[:, None]


def _grain(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    grain = clouds(u / 0.4, v / 0.02, footprint / 0.02, m.seed)
    waves = clouds(u / 0.9, v / 0.15, footprint / 0.15, m.seed + 3)
    return mix(m.colors[0], m.colors[1], np.clip(0.6 * grain + 0.6 * (waves - 0.3), 0, 1))


def _tiles(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    i, j = np.floor(u / m.scale), np.floor(v / m.scale)
    tone = 0.85 + 0.3 * hashed(i, j, m.seed)
    stains = clouds(u / 0.15, v / 0.15, footprint / 0.15, m.seed)
    gaps = [lines(place / m.scale, 0.008 / m.scale, footprint / m.scale) for place in (u, v)]
    colors = np.asarray(m.colors[0], dtype=np.float32) * (tone * (0.85 + 0.3 * stains))[:, None]
    return mix(colors, m.colors[1], np.maximum(*gaps))


def _bricks(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    height = m.scale / 3
    row = np.floor(v / height)
    place = u / m.scale + 0.5 * (row % 2)
    tone = 0.7 + 0.6 * hashed(np.floor(place), row, m.seed)
    rough = clouds(u / 0.03, v / 0.03, footprint / 0.03, m.seed)
    gaps = np.maximum(
        lines(place, 0.012 / m.scale, footprint / m.scale), lines(v / height, 0.012 / height, footprint / height)
    )
    return mix(np.asarray(m.colors[0], dtype=np.float32) * (tone * (0.8 + 0.4 * rough))[:, None], m.colors[1], gaps)


def _checker(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    odd = (np.floor(u / m.scale) + np.floor(v / m.scale)) % 2
    # Checks smaller than a pixel are all one color.
    odd = 0.5 + (odd - 0.5) * fade(footprint / m.scale)
    stains = clouds(u / 0.2, v / 0.2, footprint / 0.2, m.seed)
    return mix(m.colors[0], m.colors[1], odd) * (0.85 + 0.3 * stains)[:, None]


def _stripes(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    wave = np.clip(0.5 + 2.0 * np.sin(2 * np.pi * u / m.scale), 0, 1)
    wave = 0.5 + (wave - 0.5) * fade(footprint / m.scale)
    weave = clouds(u / 0.012, v / 0.012, footprint / 0.012, m.seed, octaves=1)
    return mix(m.colors[0], m.colors[1], wave) * (0.92 + 0.16 * weave)[:, None]


def _dots(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    x, y = u / m.scale, v / m.scale
    x = x + 0.5 * (np.floor(y) % 2)
    apart = np.hypot(x - np.floor(x) - 0.5, y - np.floor(y) - 0.5)
    inside = np.clip((0.25 - apart) * m.scale / np.maximum(footprint, 1e-3) + 0.5, 0, 1)
    return mix(m.colors[0], m.colors[1], inside * fade(footprint / m.scale))


def _cloth(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    threads = (0.5 + 0.5 * np.sin(2 * np.pi * u / 0.02)) * (0.5 + 0.5 * np.sin(2 * np.pi * v / 0.02))
    folds = clouds(u / 0.25, v / 0.25, footprint / 0.25, m.seed)
    fuzz = clouds(u / 0.03, v / 0.03, footprint / 0.03, m.seed + 5, octaves=2)
    tone = 0.6 + 0.35 * folds + 0.3 * (threads - 0.25) * fade(footprint / 0.012) + 0.3 * fuzz
    return mix(m.colors[0], m.colors[1], np.clip(2 * (folds - 0.5), 0, 1)) * tone[:, None]


def _marble(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    bend = clouds(u / 0.3, v / 0.3, footprint / 0.3, m.seed, octaves=4)
    veins = np.abs(np.sin(9 * (u + 0.6 * v) + 9 * bend))
    return mix(m.colors[1], m.colors[0], np.clip(veins * 1.8, 0, 1))


def _books(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    place = u / m.scale
    place = place + 0.35 * np.sin(2.4 * place)  # books of several widths
    book = np.floor(place)
    colors = np.stack([0.08 + 0.6 * hashed(book, book + k, m.seed) ** 1.5 for k in range(3)], axis=-1)
    bulge = 0.65 + 0.35 * np.sin(np.pi * (place - book))
    band = lines((v + 0.05 * hashed(book, book, m.seed)) / 0.12, 0.12, footprint / 0.12)
    return mix(colors * bulge[:, None], (0.7, 0.6, 0.35), 0.6 * band * (hashed(book, book + 9, m.seed) > 0.5))


def _painting(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    hills = clouds(u / m.scale, v / m.scale, footprint / m.scale, m.seed)
    strokes = clouds(u / 0.03, v / 0.01, footprint / 0.01, m.seed + 2, octaves=2)
    height = v / (2 * m.scale) + 0.5 + 0.8 * (hills - 0.5)
    colors = mix(m.colors[0], m.colors[1], np.clip(4 * (height - 0.35), 0, 1))
    colors = mix(colors, m.colors[2], np.clip(6 * (height - 0.62), 0, 1))
    return colors * (0.75 + 0.5 * strokes)[:, None]


def _outside(m: Material, u: Array, v: Array, footprint: Array) -> Array:
    ridge = 0.25 * (clouds(u / 0.4, 0 * v, footprint / 0.4, m.seed) - 0.5)
    leaves = clouds(u / 0.06, v / 0.06, footprint / 0.06, m.seed + 1)
    sky = mix(m.colors[0], m.colors[1], np.clip(v + 0.5, 0, 1))
    ground = np.asarray(m.colors[2], dtype=np.float32) * (0.5 + leaves)[:, None]
    return mix(ground, sky, np.clip((v - ridge + 0.15) * 25, 0, 1))


TEXTURES: dict[str, Callable[[Material, Array, Array, Array], Array]] = {
    "paint": _paint,
    "wood": _wood,
    "grain": _grain,
    "tiles": _tiles,
    "bricks": _bricks,
    "checker": _checker,
    "stripes": _stripes,
    "dots": _dots,
    "cloth": _cloth,
    "marble": _marble,
    "books": _books,
    "painting": _painting,
    "outside": _outside,
}
