"""`tosa viz` of models with a decoder, and what the other commands say of them."""

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Tosa
from tests.hub.stub_hub import StubHub, start_stub_hub  # noqa: F401 (the fixture `stub_hub`)
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.hub.predictor import load_predictor, make_predictor
from tosa_cli.model.flops import count_flops
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.predictor_flops import count_predictor_flops
from tosa_cli.task import TaskConfig
from tosa_cli.workflow.save import save

DEPTH = TaskConfig(decoder="dpt", decoder_dim=16)
CLASSES = TaskConfig(task="segmentation", decoder="linear", num_labels=3)


@pytest.fixture
def decoders(converted: Path) -> Path:
    """Folders of models with a decoder: `depth`, `classes`, and `dense-depth`, whose encoder is not converted."""
    for name, encoder, task in (
        ("depth", "dense-tosa", DEPTH),
        ("classes", "dense-tosa", CLASSES),
        ("dense-depth", "dense", DEPTH),
    ):
        save(make_predictor(encoder, task), name)
    return converted.parent


def test_depth_is_drawn_beside_the_same_model_with_every_token(decoders: Path, tosa: Tosa) -> None:
    done = tosa("viz depth photos/000.jpg --device cpu --json")
    assert done.code == 0, done.err
    assert (done.json["task"], done.json["decoder"], done.json["img_size"]) == ("depth", "dpt", [32, 32])
    (report,) = done.json["images"]
    assert report["picture"] == "000-maps.png" and Image.open("000-maps.png").format == "PNG"
    assert [layer["kept_share"] for layer in report["layers"]] == [7 / 16] * 2
    assert 0 < report["patch_cosine"] < 1 and 0 < report["depth_difference"] < 1
    assert 0 < report["min_depth"] < report["mean_depth"] < report["max_depth"] < 10
    alone = tosa("viz depth photos/000.jpg --no-compare -o alone.png --device cpu --json").json["images"][0]
    assert alone["depth_difference"] is None and alone["mean_depth"] == report["mean_depth"]


def test_classes_are_drawn_and_counted(decoders: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2,4 --keep-rate 0.9 -o mild").code == 0
    save(make_predictor("mild", CLASSES), "classes", overwrite=True)
    done = tosa("viz classes photos/000.jpg --device cpu --json")
    assert done.code == 0, done.err
    (report,) = done.json["images"]
    assert sum(report["class_shares"].values()) == pytest.approx(1) and set(report["class_shares"]) <= set("012")
    assert 0 < report["equal_pixels"] <= 1 and "depth_difference" not in report
    assert fragments.EQUAL_PIXELS in tosa("viz classes photos/001.jpg --device cpu").out


def test_an_encoder_that_is_not_converted_has_its_map_alone(decoders: Path, tosa: Tosa) -> None:
    done = tosa("viz dense-depth photos/000.jpg --device cpu --json")
    assert done.code == 0, done.err
    (report,) = done.json["images"]
    assert report["layers"] == [] and report["patch_cosine"] is None and report["depth_difference"] is None
    table = tosa("viz dense-depth photos/001.jpg --device cpu").out
    assert "depth in m" in table and "cosine" not in table


def test_a_folder_gives_one_page_that_says_what_is_set_beside_what(decoders: Path, tosa: Tosa) -> None:
    for name in Path("photos").glob("0[0-9][1-9].jpg"):
        name.unlink()
    count = len(list(Path("photos").iterdir()))
    done = tosa("viz depth photos --layers 4 --device cpu")
    assert done.code == 0, done.err
    page = Path("depth-maps/index.html").read_text()
    assert page.count("data:image/png;base64,") == count and "http" not in page
    assert fragments.EVERY_TOKEN_COMPUTED_IN_EVERY in page and "<th>depth differs by</th>" in page
    assert fragments.DEPTH_BY_DEPTH in page and 'alt="Depth in 000.jpg"' in page
    assert tosa("viz dense-depth photos --device cpu").code == 0
    page = Path("dense-depth-maps/index.html").read_text()
    assert fragments.EVERY_TOKEN not in page and "cosine" not in page and "<th>depth in m</th>" in page


@pytest.mark.parametrize("form", [(300, 60), (60, 300), (64, 48), (9, 7)], ids=str)
def test_images_of_any_form_are_drawn_whole_in_their_own_form(
    decoders: Path, tosa: Tosa, form: tuple[int, int]
) -> None:
    Image.open("photos/000.jpg").resize(form).save("photo.png")
    for model, size in (("depth", [32, 32]), ("dense-depth", [32, 32])):
        done = tosa(f"viz {model} photo.png -o {model}.png --device cpu --json")
        assert done.code == 0 and done.json["img_size"] == size, done.err
    # Panels of the map stand beside each other; their form is that of the image.
    picture = Image.open("dense-depth.png")
    assert (picture.width > picture.height) == (form[0] / form[1] > 0.4)


def test_the_size_that_the_model_sees_can_be_named(decoders: Path, tosa: Tosa) -> None:
    done = tosa("viz depth photos/000.jpg --img-size 40,66 --device cpu --json")
    assert done.code == 0 and done.json["img_size"] == [40, 64], done.err
    assert fragments.BROUGHT_TO_40X64_PIXELS in done.err
    assert done.json["images"][0]["layers"][0]["patches"] == 5 * 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("dense-depth photos --layers 2", "dense-depth has no ToSA layers, as its encoder is not converted: leave out"),
        (
            "dense-depth photos --compare",
            "The encoder of dense-depth computes every token already: leave out --compare",
        ),
        ("depth photos --layers 3", "Layer 3 is not a ToSA layer of this model: choose among 2,4."),
        ("depth", "No image was named"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    decoders: Path, tosa: Tosa, arguments: str, sentence: str
) -> None:
    before = sorted(decoders.rglob("*"))
    done = tosa(f"viz {arguments} --device cpu")
    assert done.code == 2 and sentence in done.err, done.err
    assert sorted(decoders.rglob("*")) == before


# ---------------------------------------------------------------------- the other commands


def test_flops_counts_the_encoder_by_layers_and_the_decoder(decoders: Path, tosa: Tosa) -> None:
    report = tosa("flops depth --json").json
    model = load_predictor("depth")
    encoder, whole = count_flops(model.encoder), count_predictor_flops(model)
    assert report["task"] == "depth" and report["decoder"] == "dpt" and report["model"] == "depth"
    assert [layer["kept"] for layer in report["layers"]] == [layer.kept for layer in encoder.layers]
    assert report["encoder_gmacs"] == encoder.gmacs and report["encoder_reduction"] == pytest.approx(encoder.reduction)
    assert report["gmacs"] == encoder.gmacs + report["decoder_gmacs"] > encoder.gmacs
    assert 0 < report["reduction"] == 1 - report["gmacs"] / report["dense_gmacs"] < encoder.reduction
    selectors = model.encoder.selectors.parameters()
    assert report["decoder_params"] == sum(parameter.numel() for parameter in model.decoder.parameters())
    assert report["encoder_params"] == encoder.params and sum(each.numel() for each in selectors) < encoder.params
    assert report["params"] == report["encoder_params"] + report["decoder_params"]
    larger = tosa("flops depth --img-size 64,97 --json").json
    assert larger["img_size"] == [64, 96] and larger["gmacs"] == count_predictor_flops(model, (64, 96)).figures["gmacs"]
    assert whole.figures["gmacs"] == report["gmacs"]


def test_flops_prints_the_decoder_below_the_layers(decoders: Path, tosa: Tosa) -> None:
    out = tosa("flops depth").out
    assert "decoder" in out and "The encoder: " in out and "With the decoder: " in out
    out = tosa("flops dense-depth").out
    assert "With the decoder: " in out and "less" not in out


@pytest.mark.parametrize(
    "command",
    ["bench depth", "export depth", "distill depth --data-dir photos", "inspect depth", "convert depth --layers 2"],
)
def test_commands_that_cannot_take_a_decoder_say_so_in_one_sentence(decoders: Path, tosa: Tosa, command: str) -> None:
    done = tosa(command)
    assert done.code == 2 and "decoder" in done.err, done.err
    assert fragments.NAME_THE_CONVERTED_MODEL in done.err or fragments.NAME_THE_MODEL in done.err
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) == 1


def test_push_lists_a_model_with_a_decoder_and_draws_what_it_predicts(decoders: Path, tosa: Tosa) -> None:
    for name in ("depth", "dense-depth"):
        done = tosa(f"push {name} someone/depth --dry-run --image photos/000.jpg --json")
        assert done.code == 0, done.err
        assert {"model.safetensors", "selection.png"} <= {file["name"] for file in done.json["files"]}


def test_the_card_of_a_pushed_model_with_a_decoder_says_how_to_load_it_from_the_hub(
    decoders: Path, tosa: Tosa, stub_hub: StubHub
) -> None:
    assert fragments.MODEL_TOSA_CLI_LOAD_DEPTH in Path("depth/README.md").read_text()
    # Without a namespace the repository's whole id is known to the Hub alone.
    for name in ("me/depth-model", "depth-model"):
        assert tosa(f"push depth {name} --overwrite-card").code == 0
        card = stub_hub.files("me/depth-model")["README.md"].decode()
        assert card.count('model = tosa_cli.load("me/depth-model")') == card.count("tosa_cli.load(") == 1
    assert isinstance(load("me/depth-model"), Predictor)
