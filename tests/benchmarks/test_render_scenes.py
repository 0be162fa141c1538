"""Rendered rooms: exact depth, the same for everyone by a seed, and pictures that show it."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.scenes import render_scenes
from benchmarks.scenes.rays import Bounds, Box, Camera, Cylinder, Room, Solid, Sphere, lit, trace
from benchmarks.scenes.render_scenes import FARTHEST, NEAREST, render, room, run
from benchmarks.scenes.rooms import Scene, draw_scene
from benchmarks.scenes.shading import render_image
from benchmarks.scenes.textures import TEXTURES, Material, albedo

EMPTY = Room((4.0, 3.0, 6.0))
AHEAD = Camera(position=(2.0, 1.5, 1.0), target=(2.0, 1.5, 5.0), tan_half=0.5)
SMALL = 48


def depth_of(*solids: Solid, camera: Camera = AHEAD, size: int = 64) -> np.ndarray:
    return trace(camera, EMPTY, solids, camera.directions(size))[0]


def points_of(depth: np.ndarray, camera: Camera = AHEAD) -> np.ndarray:
    """The points (S, S, 3) that a depth map stands for."""
    ways = np.stack(camera.directions(len(depth)), -1)
    return np.array(camera.position) + depth[..., None] * ways


# ---------------------------------------------------------------------- depth


def test_a_wall_straight_ahead_is_as_far_everywhere() -> None:
    camera = Camera(position=(2.0, 1.5, 1.0), target=(2.0, 1.5, 5.0), tan_half=0.25)
    assert np.array_equal(depth_of(camera=camera), np.full((64, 64), 5.0))


def test_floor_ceiling_and_side_walls_are_where_they_are() -> None:
    depth, size = depth_of(), 64
    place = ((np.arange(size) + 0.5) / size - 0.5)[None, :]  # tan_half is 0.5: the picture is as wide as it is deep
    side, up = 2.0 / np.maximum(np.abs(place), 1e-9), 1.5 / np.maximum(np.abs(place.T), 1e-9)
    assert np.allclose(depth, np.minimum(np.minimum(side, up), 5.0), atol=1e-12)
    # The lower a pixel in the picture, the lower what it sees.
    assert (np.diff(points_of(depth)[:, 32, 1]) <= 1e-9).all()
    assert (np.diff(points_of(depth)[32, :, 0]) >= -1e-9).all()


def test_a_sphere_has_its_depth() -> None:
    center, radius, size = (2.0, 1.5, 4.0), 0.8, 65
    depth = depth_of(Sphere(center, radius), size=size)
    assert depth[32, 32] == pytest.approx(3.0 - radius, abs=1e-12)
    place = ((np.arange(size) + 0.5) / size - 0.5)[None, :]
    squared = 1 + place**2 + place.T**2  # of a ray's length, for a depth of 1
    inside = 9 - squared * (9 - radius**2)
    hit = inside > 0
    assert 300 < hit.sum() < 1500
    assert np.allclose(depth[hit], ((3 - np.sqrt(np.maximum(inside, 0))) / squared)[hit], atol=1e-12)
    assert np.array_equal(depth[~hit], depth_of(size=size)[~hit])


def test_what_is_seen_of_a_turned_box_lies_on_its_faces() -> None:
    turned = Box((2.2, 1.0, 4.0), (0.5, 0.7, 0.3), (0.8, 0.6))
    depth = depth_of(turned)
    hit = depth < depth_of() - 1e-9
    assert hit.sum() > 200
    x, y, z = (points_of(depth)[hit] - np.array(turned.center)).T
    along, across = 0.8 * x + 0.6 * z, 0.8 * z - 0.6 * x  # in the axes of the box
    shares = np.stack([np.abs(along) / 0.5, np.abs(y) / 0.7, np.abs(across) / 0.3])
    assert np.allclose(shares.max(0), 1, atol=1e-9)
    normal, _, _ = turned.surface(*points_of(depth)[hit].T)
    assert np.allclose(sum(n * n for n in normal), 1)
    ways = np.stack(AHEAD.directions(64), -1)[hit]
    assert (sum(n * w for n, w in zip(normal, ways.T, strict=True)) < 0).all()  # faces look at the camera


def test_what_is_seen_of_a_cylinder_lies_on_it() -> None:
    upright, camera = Cylinder((2.0, 0.5, 4.0), 0.6, 0.5), Camera((2.0, 2.0, 1.0), (2.0, 0.8, 4.0), tan_half=0.5)
    depth = depth_of(upright, camera=camera)
    hit = depth < depth_of(camera=camera) - 1e-9
    x, y, z = (points_of(depth, camera)[hit] - np.array(upright.center)).T
    on_side, on_top = np.isclose(np.hypot(x, z), 0.6, atol=1e-9), np.isclose(y, 0.5, atol=1e-9)
    assert on_side.sum() > 100 and on_top.sum() > 100 and (on_side | on_top).all()
    assert (np.hypot(x, z) <= 0.6 + 1e-9).all() and (np.abs(y) <= 0.5 + 1e-9).all()


def test_the_nearer_of_two_hides_the_other() -> None:
    near, far = Sphere((2.0, 1.5, 3.0), 0.3), Box((2.0, 1.5, 4.0), (1.0, 1.0, 0.2))
    assert np.array_equal(depth_of(near, far), depth_of(far, near))
    assert np.array_equal(depth_of(near, far), np.minimum(depth_of(near), depth_of(far)))


def test_a_solid_that_is_left_out_early_is_one_that_no_ray_meets() -> None:
    scene = draw_scene(5, 0)
    rays = scene.camera.directions(SMALL)
    depth, seen = trace(scene.camera, scene.room, scene.solids, rays)
    nearest, side = scene.room.exits(scene.camera.position, rays)
    found = -1 - side
    for number, solid in enumerate(scene.solids):
        enter, leave = solid.interval(scene.camera.position, rays)
        closer = (enter <= leave) & (enter > 0) & (enter < nearest)
        nearest, found = np.where(closer, enter, nearest), np.where(closer, number, found)
    assert np.array_equal(depth, nearest) and np.array_equal(seen, found)
    assert len(np.unique(seen)) > 10


# ---------------------------------------------------------------------- light


def test_a_point_behind_something_does_not_see_the_light() -> None:
    ball, light = Sphere((2.0, 1.0, 3.0), 0.5), (2.0, 2.9, 3.0)
    points = np.array([[2.0, 0.0, 3.0], [2.0, 2.0, 3.0], [3.9, 0.0, 3.0], [2.0, 1.6, 3.0]])
    assert lit(points, light, [ball], Bounds.of([ball])).tolist() == [False, True, True, True]


def test_shadows_are_those_of_all_solids() -> None:
    scene = draw_scene(5, 0)
    depth, _ = trace(scene.camera, scene.room, scene.solids, scene.camera.directions(SMALL))
    points = points_of(depth, scene.camera).reshape(-1, 3)[::7]
    light = scene.lights[0].center
    expected = np.ones(len(points), dtype=bool)
    for solid in scene.solids:
        enter, leave = solid.interval(tuple(points.T), tuple((np.array(light) - points).T))
        expected &= ~((enter < leave) & (leave > 0) & (enter < 1))
    found = lit(points, light, scene.solids, Bounds.of(scene.solids))
    assert np.array_equal(found, expected) and 0.05 < found.mean() < 0.95


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_varies_and_fades_where_a_pixel_is_larger_than_its_detail(texture: str) -> None:
    material = Material(texture, ((0.6, 0.1, 0.1), (0.1, 0.2, 0.6), (0.7, 0.7, 0.6)), scale=0.1, seed=3)
    u, v = (axis.ravel().astype(np.float32) for axis in np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-0.5, 0.5, 60)))
    near, far = (albedo(material, u, v, np.full_like(u, size)) for size in (1e-3, 0.5))
    assert near.shape == (3600, 3) and near.dtype == np.float32
    assert near.min() >= 0 and near.max() <= 1 and near.std(0).max() > 0.003
    if texture in ("checker", "stripes", "dots", "paint"):
        assert far.std(0).max() < 0.5 * near.std(0).max()


# ---------------------------------------------------------------------- the data set

DEPTH_OF_SEED_0 = "20f939fa48b46d4ae45d1ecad6e696728b7b95caca8a9818637019575ace54a7"


def test_depth_has_the_same_bits_for_everyone() -> None:
    digest = hashlib.sha256()
    for index in range(3):
        _, depth = room(0, index, SMALL)
        digest.update(depth.astype("<f8").tobytes())
    # Another digest here means another data set: count VERSION up.
    assert digest.hexdigest() == DEPTH_OF_SEED_0


PICTURE_OF_SEED_0 = [
    [201.3, 201.9, 203.6, 216.8],
    [127.8, 141.5, 167.5, 180.6],
    [83.5, 78.3, 90.8, 108.5],
    [95.5, 84.6, 93.9, 78.9],
]
"""Mean grey of the sixteen parts of the first picture, in bytes."""


def test_pictures_are_the_same_for_everyone_to_rounding() -> None:
    image, _ = render(0, 0, SMALL)
    parts = image.astype(float).mean(2).reshape(4, SMALL // 4, 4, SMALL // 4).mean((1, 3))
    assert np.abs(parts - PICTURE_OF_SEED_0).max() < 1


def test_a_seed_gives_one_picture_and_another_seed_another_one() -> None:
    one, again, other = render(0, 0, SMALL), render(0, 0, SMALL), render(1, 0, SMALL)
    for kind in range(2):
        assert np.array_equal(one[kind], again[kind])
        assert not np.array_equal(one[kind], other[kind])


def test_depth_is_in_range_everywhere_and_pictures_show_something() -> None:
    medians = []
    for index in range(6):
        image, depth = render(2, index, SMALL)
        assert depth.dtype == np.uint16 and depth.shape == (SMALL, SMALL)
        assert depth.min() >= NEAREST * 1000 and depth.max() <= FARTHEST * 1000
        assert image.dtype == np.uint8 and image.shape == (SMALL, SMALL, 3)
        assert image.std() > 15 and 40 < image.mean() < 220
        assert depth.max() - depth.min() > 1000 and len(np.unique(depth)) > 200
        medians.append(np.median(depth))
    assert 1500 < np.mean(medians) < 4500


def test_the_picture_and_its_depth_are_of_the_same_view() -> None:
    """Where the depth jumps, the picture does so more often than elsewhere."""
    ratios = []
    for index in range(4):
        image, depth = render(4, index, 96)
        steps = np.abs(np.diff(image.astype(float).mean(2), axis=1))
        jumps = np.abs(np.diff(depth.astype(float), axis=1)) > 300
        ratios.append(steps[jumps].mean() / steps[~jumps].mean())
    assert min(ratios) > 2


def test_cameras_stand_in_the_room_as_a_person_does() -> None:
    for index in range(40):
        scene: Scene = draw_scene(0, index)
        assert all(0 < p < s for p, s in zip(scene.camera.position, scene.room.size, strict=True))
        assert 0.9 < scene.camera.position[1] < 1.8
        assert 49 < 2 * np.degrees(np.arctan(scene.camera.tan_half)) < 66
        assert np.allclose(np.array(scene.camera.axes()) @ np.array(scene.camera.axes()).T, np.eye(3), atol=1e-12)
        assert len(scene.solids) > 20 and scene.lights


def test_noise_changes_the_picture_by_its_size_only() -> None:
    scene = draw_scene(0, 0)
    clean, noisy = (render_image(scene, SMALL, noise=noise).astype(float) for noise in (0, 0.02))
    assert 2 < (noisy - clean).std() < 8


def test_a_folder_holds_pairs_and_split_files_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    assert run(folder, 12, 7, 24, workers=1)[0] == 12
    names = [f"{index:06d}.png" for index in range(12)]
    for kind in ("rgb", "depth"):
        assert sorted(path.name for path in (folder / kind).iterdir()) == names
    image, depth = (Image.open(folder / kind / names[3]) for kind in ("rgb", "depth"))
    assert (image.mode, image.size) == ("RGB", (24, 24)) and depth.mode == "I;16"
    expected = render(7, 3, 24)
    assert np.array_equal(np.asarray(image), expected[0]) and np.array_equal(np.asarray(depth), expected[1])

    train, test = ((folder / name).read_text().splitlines() for name in ("train.txt", "test.txt"))
    assert not set(train) & set(test)
    assert sorted(train + test) == [f"rgb/{name} depth/{name}" for name in names]
    assert test == ["rgb/000009.png depth/000009.png"]
    meta = json.loads((folder / "scenes.json").read_text())
    assert meta["depth_scale"] == 1000 and meta["seed"] == 7 and meta["complete"]

    kept, lost = folder / "rgb" / names[0], folder / "depth" / names[5]
    content, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert run(folder, 12, 7, 24, workers=1)[0] == 1
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == stamp
    assert run(folder, 13, 7, 24, workers=1)[0] == 1  # and a larger count adds to it
    assert len((folder / "train.txt").read_text().splitlines()) == 12


def test_several_processes_write_what_one_does(tmp_path: Path) -> None:
    for workers in (1, 2):
        run(tmp_path / str(workers), 10, 1, 16, workers)
    for kind in ("rgb", "depth"):
        for path in sorted((tmp_path / "1" / kind).iterdir()):
            assert path.read_bytes() == (tmp_path / "2" / kind / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "3"], "holds images with seed 1, not 3: name another folder"),
        (["--size", "32"], "holds images with size 16, not 32: name another folder"),
        (["--count", "0"], "--count must be 1 or more, not 0"),
        (["--workers", "0"], "--workers must be 1 or more, not 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "scenes", 1, 1, 16, workers=1)
    before = (tmp_path / "scenes" / "scenes.json").read_text()
    given = {"--seed": "1", "--size": "16", "--count": "1", **dict([arguments])}
    options = [word for pair in given.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["render_scenes.py", str(tmp_path / "scenes"), *options])
    with pytest.raises(SystemExit, match=message):
        render_scenes.main()
    assert (tmp_path / "scenes" / "scenes.json").read_text() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(render_scenes.UserError, match="was not written by this script"):
        run(tmp_path, 1, 0, 16, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
