"""Rooms drawn at random: walls and what hangs there, furniture, lights, and a camera that looks across them."""

from dataclasses import dataclass, field, replace

from benchmarks.scenes.furniture import (
    BY_THE_WALL,
    IN_THE_MIDDLE,
    METAL,
    STRONG,
    WALLS,
    WHITES,
    WOODS,
    Draw,
    Piece,
    box,
    moved,
)
from benchmarks.scenes.rays import Box, Camera, Cylinder, Room, Solid, Vector
from benchmarks.scenes.textures import Color, Material

MOST_LIGHTS = 4


@dataclass(frozen=True)
class Light:
    """A square lamp: its middle, half its width in metres, and its color times its strength."""

    center: Vector
    half: float
    power: Color


@dataclass
class Scene:
    """A room, what stands in it, its lights, and the camera with its exposure, where 1 is a well exposed picture."""

    room: Room
    camera: Camera
    solids: list[Solid] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    exposure: float = 1.0


def draw_scene(*seed: int) -> Scene:
    """A room by a seed: the same on every machine."""
    draw = Draw(*seed)
    size = (draw.between(2.8, 6.0), draw.between(2.3, 3.1), draw.between(3.2, 8.0))
    scene = Scene(Room(size, room_materials(draw)), draw_camera(draw, size))
    hang_lamps(draw, scene)
    furnish_walls(draw, scene)
    furnish_floor(draw, scene)
    scene.exposure = draw.between(0.55, 1.25)
    return scene


def room_materials(draw: Draw) -> tuple[Material, ...]:
    """Walls, of which one may differ, floor and ceiling, in the order of `Room.materials`."""
    wall = draw.material("paint", (draw.pick(WALLS),))
    kind = draw.number(0, 5)
    if kind == 0:
        wall = draw.material("stripes", (draw.pick(WALLS), draw.pick(WHITES)), scale=draw.between(0.12, 0.35))
    elif kind == 1:
        wall = draw.material("dots", (draw.pick(WALLS), draw.pick(WHITES)), scale=draw.between(0.12, 0.25))
    other = wall
    if draw.chance(0.4):
        texture = draw.pick(("bricks", "paint", "tiles", "wood"))
        colors: tuple[Color, ...] = (draw.pick(WALLS), draw.pick(WHITES))
        if texture == "bricks":
            colors = (draw.pick(((0.45, 0.16, 0.1), (0.5, 0.3, 0.2), (0.6, 0.58, 0.54))), (0.55, 0.53, 0.5))
        elif texture == "wood":
            colors = draw.pick(WOODS)
        other = draw.material(texture, colors, scale=draw.between(0.14, 0.3))
    sides = [wall, wall, wall, wall]
    sides[draw.number(0, 3)] = other
    ceiling = draw.material("paint", (draw.pick(WHITES),))
    if draw.chance(0.15):
        ceiling = draw.material("tiles", (draw.pick(WHITES), (0.45, 0.45, 0.45)), scale=0.6)
    return sides[0], sides[1], draw_floor(draw), ceiling, sides[2], sides[3]


def draw_floor(draw: Draw) -> Material:
    """Boards, tiles, checks or a carpet."""
    texture = draw.pick(("wood", "wood", "wood", "tiles", "checker", "cloth"))
    if texture == "wood":
        return draw.material("wood", draw.pick(WOODS), scale=draw.between(0.08, 0.2), gloss=draw.between(0, 0.5))
    if texture == "tiles":
        gray = draw.between(0.3, 0.55)
        stone = draw.pick(((0.55, 0.42, 0.3), (0.6, 0.58, 0.55), (0.35, 0.33, 0.32), (0.5, 0.3, 0.22)))
        return draw.material("tiles", (stone, (gray, gray, gray)), scale=draw.between(0.2, 0.5), gloss=0.4)
    if texture == "checker":
        dark, light = draw.pick(STRONG), draw.pick(WHITES)
        return draw.material("checker", (dark, light), scale=draw.between(0.2, 0.4), gloss=0.4)
    carpet, tone = draw.pick((*WALLS, *STRONG)), draw.between(0.75, 0.95)
    return draw.material("cloth", (carpet, (tone * carpet[0], tone * carpet[1], tone * carpet[2])))


def draw_camera(draw: Draw, size: Vector) -> Camera:
    """Someone who stands near a wall of the room and looks across it, a little down."""
    width, _, length = size
    position = (draw.between(0.15, 0.85) * width, draw.between(0.95, 1.75), draw.between(0.03, 0.22) * length)
    target = (draw.between(0.1, 0.9) * width, draw.between(0.3, 1.35), draw.between(0.65, 1.0) * length)
    if draw.chance(0.5):  # across the width of the room
        position = (position[2] / length * width, position[1], position[0] / width * length)
        target = (target[2] / length * width, target[1], target[0] / width * length)
    return Camera(position, target, draw.between(-0.06, 0.06), draw.between(0.46, 0.64))


def hang_lamps(draw: Draw, scene: Scene) -> None:
    """Lamps under the ceiling, warm or cold."""
    width, height, length = scene.room.size
    count = draw.number(1, 2)
    for i in range(count):
        x, z = draw.between(0.25, 0.75) * width, (i + draw.between(0.3, 0.7)) / count * length
        warm, power = draw.between(0.0, 0.35), draw.between(2.5, 5.0) / count**0.5
        color = (power, power * (1 - 0.4 * warm), power * (1 - warm))
        scene.lights.append(Light((x, height - 0.22, z), 0.14, color))
        shade = Material("paint", ((0.9, 0.85, 0.75),), glow=1.6)
        scene.solids.append(Cylinder((x, height - 0.06, z), 0.16, 0.05, shade, casts=False))


def on_wall(scene: Scene, wall: int, along: float, solids: list[Solid]) -> None:
    """Put solids, made for a wall at z = 0 that is seen from the front, onto one of the four walls."""
    width, _, length = scene.room.size
    spots = ((along, 0.0), (along, length), (0.0, along), (width, along))
    turns = ((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
    # What is flush with a wall throws no shadow worth the time.
    scene.solids.extend(replace(solid, casts=False) for solid in moved(solids, *spots[wall], turns[wall]))


def furnish_walls(draw: Draw, scene: Scene) -> None:
    """Skirting boards, windows with daylight, doors, pictures and boards."""
    width, _, length = scene.room.size
    white = draw.material("paint", (draw.pick(WHITES),), gloss=0.2)
    for wall, extent in enumerate((width, width, length, length)):
        on_wall(scene, wall, extent / 2, [box(0, 0, 0.008, extent, 0.09, 0.016, white)])
        place = draw.between(0.4, 0.9)
        while place < extent - 0.4:
            span = draw.between(0.5, 1.5)
            if place + span > extent - 0.2:
                break
            middle, kind = place + span / 2, draw.number(0, 7)
            if kind <= 1 and span > 0.8:
                window(draw, scene, wall, middle, span, white)
            elif kind == 2:
                on_wall(scene, wall, middle, door(draw, min(span, 0.95), white))
            elif kind <= 5:
                on_wall(scene, wall, middle, picture(draw, span))
            elif kind == 6 and span > 0.6:
                on_wall(scene, wall, middle, [box(0, 1.5, 0.1, 0.8 * span, 0.03, 0.2, draw.wooden())])
            place += span + draw.between(0.1, 0.8)


def window(draw: Draw, scene: Scene, wall: int, middle: float, span: float, frame: Material) -> None:
    """A window, the light that comes through it, and perhaps curtains."""
    bottom, tall, height = draw.between(0.7, 1.0), draw.between(0.9, 1.25), scene.room.size[1]
    tall = min(tall, height - bottom - 0.1)
    bright = draw.between(0.7, 1.8)
    view = draw.material("outside", ((0.75, 0.82, 0.9), (0.4, 0.62, 0.95), (0.12, 0.25, 0.08)), glow=bright)
    parts: list[Solid] = [box(0, bottom, 0.005, span, tall, 0.01, view)]
    bars = [(0, bottom, span, 0.05), (0, bottom + tall - 0.05, span, 0.05), (0, bottom + tall / 2, span, 0.03)]
    bars += [(x, bottom, 0.05, tall) for x in (0.025 - span / 2, span / 2 - 0.025, 0.0)]
    parts += [box(x, y, 0.02, w, h, 0.04, frame) for x, y, w, h in bars]
    parts.append(box(0, bottom - 0.04, 0.08, span + 0.16, 0.04, 0.16, frame))
    if draw.chance(0.5):
        cloth = draw.material("stripes", (draw.pick(WALLS), draw.pick(STRONG)), scale=draw.between(0.05, 0.12))
        ends = (-span / 2 - 0.12, span / 2 + 0.12)
        parts += [box(x, bottom - 0.4, 0.1, 0.28, min(tall + 0.6, height - bottom + 0.35), 0.05, cloth) for x in ends]
    on_wall(scene, wall, middle, parts)
    if len(scene.lights) >= MOST_LIGHTS:
        return
    width, _, length = scene.room.size
    y = bottom + tall / 2
    centers = ((middle, y, 0.3), (middle, y, length - 0.3), (0.3, y, middle), (width - 0.3, y, middle))
    power = draw.between(1.0, 2.2) * bright
    scene.lights.append(Light(centers[wall], 0.3, (0.85 * power, 0.95 * power, 1.1 * power)))


def door(draw: Draw, span: float, frame: Material) -> list[Solid]:
    """A closed door in its frame."""
    leaf = draw.wooden() if draw.chance(0.5) else frame
    metal = draw.material("paint", (METAL,), gloss=0.8)
    parts: list[Solid] = [box(0, 0, 0.015, span, 2.02, 0.03, leaf)]
    parts += [box(x, 0, 0.025, 0.07, 2.09, 0.05, frame) for x in (-span / 2 - 0.035, span / 2 + 0.035)]
    parts.append(box(0, 2.02, 0.025, span + 0.14, 0.07, 0.05, frame))
    parts += [box(0, y, 0.032, 0.65 * span, 0.75, 0.012, leaf) for y in (0.15, 1.1)]
    parts.append(box(0.4 * span, 1.0, 0.06, 0.1, 0.02, 0.03, metal))
    return parts


def picture(draw: Draw, span: float) -> list[Solid]:
    """A painting in a frame."""
    width, tall = min(span, draw.between(0.4, 1.1)), draw.between(0.35, 0.85)
    y, thick = 1.55 - tall / 2, draw.between(0.02, 0.06)
    colors = (draw.pick(STRONG), draw.pick(WALLS), draw.pick(STRONG))
    canvas = draw.material("painting", colors, scale=draw.between(0.12, 0.3))
    return [
        box(0, y, 0.015, width, tall, 0.03, draw.wooden()),
        box(0, y + thick, 0.017, width - 2 * thick, tall - 2 * thick, 0.03, canvas),
    ]


def furnish_floor(draw: Draw, scene: Scene) -> None:
    """Furniture along the walls and in the middle, where there is room for it and not right before the camera."""
    width, _, length = scene.room.size
    x, _, z = scene.camera.position
    taken = [(x, z, 0.75, 0.75)]

    def add(piece: Piece, x: float, z: float, turn: tuple[float, float], by_the_wall: bool) -> None:
        solids, a, b = piece
        if not by_the_wall:
            a = b = (a * a + b * b) ** 0.5
        elif turn[0] == 0:
            a, b = b, a
        inside = a <= x <= width - a and b <= z <= length - b
        if inside and all(abs(x - i) >= a + c or abs(z - j) >= b + d for i, j, c, d in taken):
            taken.append((x, z, a, b))
            scene.solids.extend(moved(solids, x, z, turn))

    if draw.chance(0.55):
        half = (draw.between(0.6, 1.4), 0.006, draw.between(0.5, 1.1))
        rug = draw.material(draw.pick(("stripes", "cloth", "checker", "dots")), draw.two_colors(), scale=0.25)
        spot = (draw.between(0.35, 0.65) * width, 0.006, draw.between(0.4, 0.65) * length)
        scene.solids.append(Box(spot, half, draw.turn(0.15), rug, casts=False))
    turns = ((-1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
    for _ in range(draw.number(12, 24)):
        piece, wall = draw.pick(BY_THE_WALL)(draw), draw.number(0, 3)
        gap = piece[2] + draw.between(0.02, 0.06)
        along = piece[1] + draw.between(0.0, 1.0) * ((width if wall < 2 else length) - 2 * piece[1])
        spots = ((along, gap), (along, length - gap), (gap, along), (width - gap, along))
        add(piece, *spots[wall], turns[wall], True)
    for _ in range(draw.number(4, 12)):
        piece, turn = draw.pick(IN_THE_MIDDLE)(draw), draw.turn()
        if draw.chance(0.4):
            turn = (-turn[0], turn[1])
        add(piece, draw.between(0.15, 0.85) * width, draw.between(0.2, 0.9) * length, turn, False)
