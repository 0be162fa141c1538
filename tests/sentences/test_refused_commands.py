"""What is said of a wrong command, word for word, in one long table: a row a command."""

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Tosa, converted, converted_once, material, tosa, work  # noqa: F401
from tests.cli.mistakes import contents

COMMANDS = [
    ("convert deit_tny --layers 2", "timm knows no model 'deit_tny'. Did you mean deit_tiny or …?"),
    ("convert dense --layers 0", "Layer 0 was given, but layers are whole numbers from 1 up."),
    ("convert dense --layers 7", "Layer 7 was asked for, but the model has layers 1 to 4: choose among these."),
    (
        "convert deit_tiny --layers 2,13 --no-pretrained",
        "Layer 13 was asked for, but the model has layers 1 to 12: choose among these.",
    ),
    (
        "convert dense --layers 1,3",
        "Layer 1 cannot be a ToSA layer: its selector needs a standard layer before it. Start at layer 2.",
    ),
    (
        "convert dense --layers 2,3",
        "Layers 2 and 3 are adjacent, but a ToSA layer needs a standard layer before it. Leave one of them out.",
    ),
    ("convert dense --layers 2,4,4", "Layer 4 was given twice: name each ToSA layer once."),
    ("convert dense --layers 4,2", "Layers must be in rising order, not 4,2."),
    ("convert dense --layers two", "--layers must be layer numbers with commas, as in 2,4,6, or auto, not 'two'."),
    (
        "convert dense",
        "Nothing says which layers become ToSA layers: pass --layers, as 2,4,6,8,10, or a preset that finds them on "
        "your photos, as --preset calibrated --data-dir PHOTOS.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 0",
        "The keep rate of layer 2 is 0.0, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 1.5",
        "The keep rate of layer 2 is 1.5, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate=-1",
        "The keep rate of layer 2 is -1.0, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 0.5,2",
        "The keep rate of layer 4 is 2.0, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 0.5,0.5,0.5",
        "3 keep rates were given for 2 ToSA layers: give one for all, or one a layer.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate most",
        "--keep-rate must be a number, or one a layer as in 0.9,0.8, not 'most'.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate nan",
        "The keep rate of layer 2 is nan, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2 --target-reduction 0.9",
        "The target reduction 90.0% cannot be reached: with layers 2 at most 20.0% is saved. Name more layers.",
    ),
    (
        "convert dense --layers 2 --target-reduction 0.1 --keep-rate 0.5",
        "Both --keep-rate and --target-reduction were given: pass one of them.",
    ),
    ("convert dense --layers 2 --query-rows some", "--query-rows must be 'all' or a number from 1 up, not 'some'."),
    (
        "convert dense --layers 2 --selector best",
        "--selector must be one of: attention, similarity, ward, probe, previous, random; not 'best'.",
    ),
    ("convert dense --layers 2 --img-size big", "--img-size must be a number of pixels, or height,width; not 'big'."),
    (
        "convert dense --layers 2 --img-size 65",
        "An image of 65x65 pixels is no whole number of patches of 8x8: use 64x64 or 72x72.",
    ),
    (
        "convert deit_tiny --layers 2 --img-size 200,224 --no-pretrained",
        "An image of 200x224 pixels is no whole number of patches of 16x16: use 192x224 or 208x224.",
    ),
    (
        "convert dense --layers 2 --architecture vit_tiny_patch16_224",
        "dense is no weights file, so its architecture is known: leave out --architecture vit_tiny_patch16_224.",
    ),
    (
        "convert dense --layers 2 --neighbors 9",
        "--neighbors changes nothing, as the bypass 'identity' takes nothing from other tokens: leave it out.",
    ),
    (
        "convert dense --layers 2 --selector similarity --query-rows 4",
        "--query-rows changes nothing, as the selector 'similarity' reads no attention logits: leave it out.",
    ),
    (
        "convert dense --layers 2 --selector previous --selector-kernel 3",
        "--selector-kernel changes nothing, as the selector 'previous' has no convolutions: leave it out.",
    ),
    (
        "convert resnet18 --layers 2 --no-pretrained",
        "resnet18 is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "convert swin_tiny_patch4_window7_224 --layers 2 --no-pretrained",
        "swin_tiny_patch4_window7_224 is a SwinTransformer, which cannot be converted: its attention runs "
        "in windows of the image, which a selection of its tokens does not fill. Type `tosa list` to see "
        "what can be.",
    ),
    (
        "convert test_resnet --layers 2 --no-pretrained",
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that "
        "all work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "convert no/such/folder --layers 2",
        "There is no folder or file no/such/folder. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "convert dense/config.json --layers 2",
        "dense/config.json is not a weights file: expected one of .safetensors, .pth, .pt, .ckpt, .bin, .tar.",
    ),
    ("convert dense\udcff --layers 2", "The name dense\ufffd is no text in UTF-8: rename what it stands for."),
    ("convert --layers 2", "No model was named: run `tosa convert deit_tiny --layers 2,4,6,8,10`, or pass --recipe."),
    (
        "convert --recipe calibrated --data-dir photos",
        "No model was named, and --recipe calibrated names none: run `tosa convert deit_tiny --recipe calibrated`.",
    ),
    (
        "convert --preset paper",
        "No model was named, and --preset paper names none: run `tosa convert deit_tiny --preset paper`.",
    ),
    (
        "convert dense --recipe nope",
        "There is no recipe 'nope'. Known: calibrated, deit_tiny_imagenet_matched, "
        "deit_tiny_imagenet_paper, dinov2_small_photos, kitti_newcrfs, matched, nyu_newcrfs, paper; or give the "
        "path of a .yaml file.",
    ),
    ("distill dense-tosa --epochs 0", "--epochs must be 1 or more, not 0."),
    ("distill dense-tosa --lr 0", "--lr must be above 0, not 0.0."),
    ("finetune dense-tosa --warmup-epochs 99", "--warmup-epochs (99.0) cannot be more than --epochs (30)."),
    ("finetune dense-tosa --clip-grad=-1", "--clip-grad must be 0 or more, not -1.0."),
    ("finetune dense-tosa --smoothing 1", "--smoothing must be 0 or more and below 1, not 1.0."),
    ("finetune dense-tosa --task depth --hflip 2", "--hflip must be from 0 to 1, not 2.0."),
    ("distill dense-tosa --crop-scale 3", "--crop-scale must be above 0 and at most 1, not 3.0."),
    ("distill dense-tosa --seed=-1", "--seed must be from 0 to 4294967295, not -1."),
    (
        "distill dense-tosa --data-dir photos --opt nope -j 0",
        "--opt 'nope' cannot be used (…): try adamw, sgd or lamb.",
    ),
    ("distill dense-tosa --data-dir photos --sched nope -j 0", "--sched must be one of none, cosine, …; not 'nope'."),
    (
        "distill dense-tosa --data-dir photos --log-with nope -j 0",
        "Training cannot be set up like this: Unsupported logging capability: nope. …",
    ),
    (
        "distill dense-tosa --data-dir photos -b 100 -j 0",
        "22 images are too few for one step of 100 images in each of 1 processes, 1 times. Pass a smaller "
        "--batch-size.",
    ),
    ("finetune dense-tosa --data-dir digits -b 7 --mixup 1 -j 0", "Mixup and CutMix need an even batch size, not 7."),
    (
        "distill dense-tosa --data-dir photos --resume -j 0",
        "There is nothing to resume: …dense-tosa.distill-checkpoint.safetensors does not exist. Leave out "
        "--resume to start anew.",
    ),
    ("distill me/model --data-dir photos", "me/model is on the Hub: name the folder to write with -o."),
    (
        "distill dense --data-dir photos",
        "dense holds test_vit, which is not converted yet: run `tosa convert dense --layers 2,4,6,8,10` first.",
    ),
    (
        "eval dense --data-dir digits",
        "dense holds test_vit, which is not converted yet: run `tosa convert dense --layers 2,4,6,8,10` first.",
    ),
    (
        "eval nowhere --data-dir digits",
        "There is no model folder nowhere. Make one with `tosa convert`, or name a Hub repository.",
    ),
    (
        "distill nowhere --data-dir photos",
        "There is no model folder nowhere. Make one with `tosa convert`, or check the path.",
    ),
    (
        "eval dense-tosa --data-dir digits --device cuda",
        "There is no CUDA device here: pass --device cpu, or leave --device out.",
    ),
    (
        "eval dense-tosa --data-dir digits -j 0 --flip --depth-scale 5 --split-file none.txt --data-format kitti "
        "--depth-dir none",
        "dense-tosa has no decoder, so no maps are read: leave out --data-format and --split-file and "
        "--depth-dir and --depth-scale and --flip, or train a decoder with `tosa finetune dense-tosa "
        "--task depth`.",
    ),
    (
        "eval dense-tosa --data-dir digits -j 0 --flip",
        "dense-tosa has no decoder, so no maps are read: leave out --flip, or train a decoder with `tosa "
        "finetune dense-tosa --task depth`.",
    ),
    (
        "convert dense --preset calibrated",
        "The layers are chosen by measurement, which needs images: pass --data-dir PHOTOS, or name the "
        "layers as in --layers 2,4,6,8,10.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --target-reduction 0.2 --min-cosine 0.9",
        "Both --target-reduction and --min-cosine were given: pass one of them.",
    ),
    (
        "convert dense --preset matched --data-dir photos --min-cosine 0.9",
        "--min-cosine is for methods that put tokens into groups, for which `convert` leaves nothing to fit: pass "
        "--selector ward --bypass mean, or --target-reduction 0.25 for the selector 'similarity'.",
    ),
    (
        "convert dense --layers 2,4 --min-cosine 0.9",
        "--min-cosine chooses the layers too: pass --layers auto, or leave it out.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --min-cosine 0.9 --max-drop 1",
        "Both --min-cosine and --max-drop were given: pass one of them.",
    ),
    (
        "convert dense --preset matched --data-dir photos --max-drop 1",
        "--max-drop is for methods that put tokens into groups, for which `convert` leaves nothing to fit: pass "
        "--selector ward --bypass mean, or --target-reduction 0.25 for the selector 'similarity'.",
    ),
    (
        "convert dense --layers 2,4 --max-drop 1",
        "--max-drop chooses the layers too: pass --layers auto, or leave it out.",
    ),
    (
        "convert dense --preset calibrated --data-dir digits --max-drop 1 --num-classes 5",
        "--num-classes gives the model a new head, which is not trained and has no accuracy to lose: leave out "
        "--num-classes, or hold the tokens with --min-cosine 0.99.",
    ),
    (
        "convert dense --preset calibrated --data-dir digits --class-map names.txt",
        "--class-map is about labels, which are read for --max-drop alone: leave it out.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --max-drop 1",
        "photos has no class folders, or one, and --max-drop goes by labels: point --data-dir at one folder a class, "
        "or hold the tokens with --min-cosine 0.99, which needs none.",
    ),
    (
        "convert dense --preset calibrated --data-dir digits --max-drop 1 --max-samples 2",
        "2 images of digits would be read, and --max-drop needs 3, of which two are held out: add images, or pass a "
        "larger --max-samples.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --min-cosine 0.9 --max-samples 1",
        "1 image of photos would be read, and --min-cosine needs 3, of which two are held out: add images, or pass a "
        "larger --max-samples.",
    ),
    (
        "convert dense --preset calibrated --layers 2,4 --data-dir digits --max-drop 1",
        "No images are read without --layers auto: pass that, or leave out --data-dir.",
    ),
    (
        "convert dense --layers auto --data-dir photos",
        "With --layers auto the share of the MACs to save is missing: pass --target-reduction 0.25, and no "
        "--keep-rate.",
    ),
    ("convert dense --preset mine", "--preset must be paper, calibrated or matched, not 'mine'."),
    (
        "convert dense --preset paper --recipe deit_tiny_imagenet_paper",
        "Both --preset and --recipe were given: pass one of them.",
    ),
    (
        "convert dense --layers auto --selector similarity --data-dir nowhere --target-reduction 0.2",
        "There is no folder nowhere. Pass a folder of images with --data-dir.",
    ),
    (
        "convert dense --layers auto --selector attention --data-dir photos --target-reduction 0.2",
        "The selector 'attention' says nothing before it is trained, so what each layer can spare cannot "
        "be measured with it: use --selector similarity, or name the layers as in --layers 2,4,6,8,10.",
    ),
    (
        "convert dense --layers 2,4 --selector similarity --selection per-head",
        "The selector 'similarity' has one score a token, not one a head: use --selection shared, or one "
        "of the selectors attention, previous, random.",
    ),
    (
        "convert dense --layers 2,4 --dataset wds/photos --split train",
        "No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out "
        "--dataset and --split.",
    ),
    (
        "convert dense --preset calibrated --layers 2,4 --data-dir photos",
        "No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out --data-dir.",
    ),
    (
        "convert dense --layers 2,4 --max-samples 3",
        "No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out --max-samples.",
    ),
    ("bench --peers --sweep", "--peers and --sweep were given together: run `tosa bench` once with each."),
    ("bench --data-dir photos", "--data-dir was given without --peers: add --peers, or leave --data-dir out."),
    (
        "bench --sweep --data-dir photos",
        "--data-dir was given without --peers: add --peers, or leave --data-dir out.",
    ),
    (
        "bench --peers --max-samples 3",
        "--max-samples was given without --data-dir: name the folder of photos with --data-dir.",
    ),
    ("bench --keep-rates 0.5", "--keep-rates was given without --sweep: add --sweep, or leave --keep-rates out."),
    (
        "bench --peers --batch-sizes 1",
        "--batch-sizes was given without --sweep: add --sweep, or leave --batch-sizes out.",
    ),
    (
        "inspect dense --bypass identity",
        "--bypass was given without --data-dir: name the folder of photos with --data-dir.",
    ),
    (
        "inspect dense --max-samples 4",
        "--max-samples was given without --data-dir: name the folder of photos with --data-dir.",
    ),
    (
        "inspect dense --selector random",
        "--selector was given without --data-dir: name the folder of photos with --data-dir.",
    ),
    ("bench --plot a.png", "--plot was given without --sweep: add --sweep, or leave --plot out."),
    ("bench --sweep --keep-rates half", "--keep-rates should be shares of tokens, as in 0.9,0.8; not 'half'."),
    ("bench --sweep --keep-rates 0.5,0", "--keep-rates should be above 0 and at most 1, as in 0.9,0.8; not '0.5,0'."),
    ("bench --sweep --keep-rates 1.5", "--keep-rates should be above 0 and at most 1, as in 0.9,0.8; not '1.5'."),
    ("bench --sweep --batch-sizes 1,,2", "--batch-sizes should be numbers of images, as in 1,8,16; not '1,,2'."),
    ("bench --sweep --batch-sizes 0", "--batch-sizes should be numbers from 1 up, as in 1,8,16; not '0'."),
    (
        "bench --sweep --img-sizes 224,axb",
        "--img-sizes should be sizes in pixels, as in 224,336 or 224x320; not '224,axb'.",
    ),
    ("bench --sweep --img-sizes 0", "--img-sizes should be sizes in pixels, as in 224,336 or 224x320; not '0'."),
    (
        "bench --sweep --img-size 32 --img-sizes 48",
        "--img-size and --img-sizes were given together: give one of them.",
    ),
    ("bench --peers --data-dir nowhere", "There is no folder nowhere. Pass a folder of images with --data-dir."),
    (
        "export dense-tosa --outputs tokens",
        "--outputs must be one of: logits, pooler_output, last_hidden_state; not 'tokens'.",
    ),
    ("export dense-tosa --opset 9", "--opset must be from 18 to 23, not 9."),
    (
        "export dense-tosa -o model.txt",
        "The format onnx is written to a .onnx file, but model.txt is none: name another.",
    ),
    (
        "export dense-tosa -o model.pt2 --quantize int8",
        "--quantize is for ONNX files: leave it out, or choose the format onnx.",
    ),
    (
        "export dense-tosa -o nowhere/model.onnx",
        "nowhere/model.onnx cannot be written: …nowhere is no folder that you can write to.",
    ),
    ("viz dense-tosa", "No image was named: pass images or a folder of them, as in `tosa viz dense-tosa cat.jpg`."),
    ("viz photos/nothing.jpg", "There is no image or folder photos/nothing.jpg. Check the path."),
    ("viz photos/000.jpg --layers 3", "Layer 3 is not a ToSA layer of this model: choose among 2,4."),
    ("viz photos/000.jpg --layers two", "--layers should be layer numbers with commas, as in 2,6,10; not 'two'."),
    ("viz photos -o all.png", "all.png is one picture, but there are several images: name a folder with -o."),
    (
        "viz photos -o photos/001.jpg",
        "photos/001.jpg is a file, but a folder is written: choose another name with -o.",
    ),
    (
        "viz photos/000.jpg -o photos/001.jpg",
        "photos/001.jpg is a file, but a folder is written: choose another name with -o.",
    ),
    (
        "viz photos/000.jpg -o photos/000.jpg/cat.png",
        "…photos/000.jpg cannot be written to: choose another place with -o.",
    ),
    (
        "viz nowhere photos",
        "There is no model folder nowhere. Make one with `tosa convert`, or name a Hub repository.",
    ),
]
"""What commands refuse; "…" stands for what timm, accelerate or the place say."""


@pytest.mark.parametrize(("command", "sentence"), COMMANDS)
def test_a_wrong_command(
    work: Path,  # noqa: F811
    tosa: Tosa,  # noqa: F811
    request: pytest.FixtureRequest,
    command: str,
    sentence: str,
) -> None:
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    if not command.startswith("convert "):
        request.getfixturevalue("converted")
    before = contents(work)
    done = tosa(command)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err, done.err
    told = done.err.splitlines()[-1].removeprefix("Error: ")
    start, varies, end = sentence.partition("…")
    assert (told.startswith(start) and told.endswith(end)) if varies else told == sentence
    assert done.err.count("\n") == 1 or not command.startswith("convert ")
    assert contents(work) == before
