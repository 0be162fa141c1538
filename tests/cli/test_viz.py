"""`tosa viz` on a tiny model and real images."""

from pathlib import Path

from PIL import Image

from tests.cli.conftest import Tosa, rewrite
from tests.sentences import fragments
from tosa_cli import load, save


def test_one_image_gives_one_picture_in_this_directory(converted: Path, tosa: Tosa) -> None:
    done = tosa("viz photos/000.jpg --json")
    assert done.code == 0, done.err
    assert fragments.WORKING_ON_DENSE_TOSA in done.err and done.json["page"] is None and done.json["skipped"] == []
    (report,) = done.json["images"]
    assert report["picture"] == "000-selection.png" and Image.open("000-selection.png").format == "PNG"
    assert [layer["layer"] for layer in report["layers"]] == [2, 4]
    # Of 17 tokens 8 are kept, the class token among them: 7 of the 16 patches.
    assert [layer["kept_share"] for layer in report["layers"]] == [7 / 16] * 2
    assert [layer["keep_rate"] for layer in report["layers"]] == [0.5] * 2
    assert 0 < report["patch_cosine"] < 1 and 0 < report["class_cosine"] < 1


def leave_six_photos() -> None:
    for path in sorted(Path("photos").iterdir())[6:]:
        path.unlink()


def test_a_folder_gives_pictures_and_one_page_that_holds_them(converted: Path, tosa: Tosa) -> None:
    leave_six_photos()
    done = tosa("viz dense-tosa photos --layers 4 --no-compare")
    assert done.code == 0, done.err
    written = sorted(path.name for path in Path("dense-tosa-selection").iterdir())
    assert written == [*(f"{number:03d}.png" for number in range(6)), "index.html"]
    page = Path("dense-tosa-selection/index.html").read_text()
    assert page.count("data:image/png;base64,") == 6 and "http" not in page
    assert " 6 " in done.err and "000.jpg" in done.out


def test_the_output_can_be_named_and_is_not_overwritten_unless_asked(converted: Path, tosa: Tosa) -> None:
    assert tosa("viz photos/000.jpg -o new/cat.png --no-compare").code == 0
    before = Path("new/cat.png").read_bytes()
    refused = tosa("viz photos/001.jpg -o new/cat.png --no-compare")
    assert refused.code == 2 and "new/cat.png " in refused.err
    assert Path("new/cat.png").read_bytes() == before
    assert tosa("viz photos/001.jpg -o new/cat.png --no-compare --overwrite").code == 0
    assert Path("new/cat.png").read_bytes() != before
    Path("new/notes.txt").write_text("mine")
    assert tosa("viz photos/001.jpg photos/002.jpg -o new --no-compare").code == 0
    assert {path.name for path in Path("new").iterdir()} == {"cat.png", "notes.txt", "001.png", "002.png", "index.html"}


def test_images_of_one_name_do_not_overwrite_each_other(converted: Path, tosa: Tosa) -> None:
    Path("more").mkdir()
    Path("more/000.png").write_bytes(Path("photos/000.jpg").read_bytes())
    done = tosa("viz photos/000.jpg more/000.png -o out --no-compare --json")
    assert [report["picture"] for report in done.json["images"]] == ["out/000.png", "out/000-2.png"]


def test_broken_images_are_left_out_and_named(converted: Path, tosa: Tosa) -> None:
    leave_six_photos()
    rewrite(Path("photos/005.jpg"), b"broken")
    done = tosa("viz photos -o out --layers 2 --no-compare --json")
    assert done.code == 0 and len(done.json["images"]) == 5
    assert len(done.json["skipped"]) == 1 and "005.jpg " in done.err
    strict = tosa("viz photos -o strict --layers 2 --no-compare --strict")
    assert strict.code == 2 and "005.jpg " in strict.err


def test_a_finetuned_model_is_set_beside_its_source_as_long_as_that_is_there(converted: Path, tosa: Tosa) -> None:
    model = load(converted)
    model.provenance = model.provenance.after("finetuned", {})
    save(model, converted, overwrite=True)
    assert tosa("viz photos/000.jpg --json").json["images"][0]["patch_cosine"] > 0
    Path("dense").rename("elsewhere")
    done = tosa("viz photos/001.jpg --json")
    assert done.code == 0 and done.json["images"][0]["patch_cosine"] is None
    assert fragments.THE_DENSE_MODEL_IS_LEFT in done.err
    assert tosa("viz photos/002.jpg --compare").code == 2


def test_a_model_whose_configuration_is_broken_is_not_taken_for_a_folder_of_images(converted: Path, tosa: Tosa) -> None:
    (converted / "config.json").write_text("{")
    done = tosa("viz dense-tosa photos/000.jpg --no-compare")
    assert done.code == 2 and "dense-tosa/config.json " in done.err


def test_a_file_of_weights_is_not_taken_for_an_image_and_another_model_drawn(converted: Path, tosa: Tosa) -> None:
    Path("dense/model.safetensors").rename("w.safetensors")
    done = tosa("viz w.safetensors photos/000.jpg --no-compare")
    assert done.code == 2 and " w.safetensors" in done.err and "dense-tosa" not in done.err


def test_names_may_hold_anything_that_a_file_system_takes(converted: Path, tosa: Tosa) -> None:
    names = ["[red].jpg", ":smile:.jpg", "$a$.jpg", "a\nb.jpg", "<b>.jpg", "\udcff.jpg"]
    Path("odd").mkdir()
    for name in names:
        Path("odd", name).write_bytes(Path("photos/000.jpg").read_bytes())
    done = tosa("viz dense-tosa odd -o out --no-compare --json")
    assert done.code == 0, done.err
    assert {Path(report["image"]).name for report in done.json["images"]} == {*names}
    assert "&lt;b&gt;.jpg" in Path("out/index.html").read_text()
