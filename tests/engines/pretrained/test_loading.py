"""Folders, single files and hub ids: what opens, what is refused, and what every refusal says."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import single_files
import torch
from huggingface_hub import constants
from PIL import Image
from test_verbs import make, pixels

import imagewright
from imagewright import cli
from imagewright.engines.catalog import Catalog
from imagewright.engines.pretrained import PretrainedEngine, describe, drawing, layouts, loading, samplers, sources
from imagewright.errors import ModelCorruptError, ModelError, ModelNotFoundError
from imagewright.request import ImageRequest
from imagewright.watch import Watch
from imagewright.workshop import Workshop

Get = Callable[[str], Path]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.fixture
def copy(tiny: Get, tmp_path: Path) -> Path:
    """A copy of the tiny Stable Diffusion that a test may break."""
    return Path(shutil.copytree(tiny("sd"), tmp_path / "copy"))


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_a_single_file_is_the_same_model_as_its_folder(tiny: Get, tmp_path: Path, family: str) -> None:
    file = single_files.write(tiny(family), family, tmp_path / f"{family}.safetensors")
    single_files.words_beside(tiny(family), file)
    pipes = [
        loading.open_pipeline(describe.describe(sources.locate(str(path))), torch.float32)
        for path in (tiny(family), file)
    ]
    images = []
    for pipe in pipes:
        pipe = loading.derived(pipe, type(pipe), "euler")  # a file tells no scheduler
        call = {"prompt": "a red fox", "width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
        images.append(drawing.draw(pipe, call, 1, Watch()))
    assert type(pipes[0]) is type(pipes[1])
    assert np.abs(pixels(images[0]) - pixels(images[1])).max() <= 2 and pixels(images[0]).std() > 1


def test_a_single_file_that_has_no_words_says_where_to_put_them(
    tiny: Get, shared: PretrainedEngine, tmp_path: Path
) -> None:
    file = single_files.write(tiny("sd"), "sd", tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no tokenizer") as refused:
        make(shared, file)
    assert "models get" in refused.value.fix


def test_flux_is_known_by_its_tensors() -> None:
    shapes = {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "double_blocks.18.img_attn.norm.key_norm.scale": (128,),
        "single_blocks.37.linear1.weight": (21504, 3072),
        "img_in.weight": (3072, 64),
        "txt_in.weight": (3072, 4096),
        "vector_in.in_layer.weight": (3072, 768),
        "final_layer.linear.weight": (64, 3072),
        "guidance_in.in_layer.bias": (3072,),
    }
    found = layouts.read(Path("flux1-dev.safetensors"), shapes)
    config = found.parts["transformer"][2]
    assert config is not None and (config["num_layers"], config["num_single_layers"]) == (19, 38)
    assert config["num_attention_heads"] == 24 and config["guidance_embeds"]
    assert found.parts["vae"][2] is None and found.pipeline == "FluxPipeline"
    assert layouts.read(Path("flux1-kontext-dev.safetensors"), shapes).pipeline == "FluxKontextPipeline"
    fill = {**shapes, "img_in.weight": (3072, 384)}
    assert layouts.read(Path("fill.safetensors"), fill).pipeline == "FluxFillPipeline"


def test_a_lora_is_no_model(tmp_path: Path, shared: PretrainedEngine) -> None:
    from safetensors.numpy import save_file

    save_file({"lora.down": np.zeros((2, 2), np.float32)}, str(tmp_path / "lora.safetensors"))
    with pytest.raises(ModelError, match="no checkpoint") as refused:
        shared.find(str(tmp_path / "lora.safetensors"))
    assert "--adapter" in refused.value.fix


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, shared: PretrainedEngine, name: str) -> None:
    target = tmp_path / "executed"
    (tmp_path / name).write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(ModelError):
        shared.find(str(tmp_path / name))
    assert not target.exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_pickle_among_the_components_is_refused(
    copy: Path, shared: PretrainedEngine, part: str, renamed: bool
) -> None:
    target = copy / "executed"
    weights = next((copy / part).glob("*.safetensors"))
    weights.unlink()
    name = weights.name if renamed else {"unet": "diffusion_pytorch_model.bin"}.get(part, "pytorch_model.bin")
    (copy / part / name).write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(ModelError):
        make(shared, copy)
    assert not target.exists()


def test_a_truncated_file_is_named(copy: Path, shared: PretrainedEngine) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelCorruptError, match=r"diffusion_pytorch_model\.safetensors is not a whole"):
        shared.find(str(copy))


def test_a_missing_component_is_named(copy: Path, shared: PretrainedEngine) -> None:
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelCorruptError, match="component vae is missing"):
        shared.find(str(copy))


def test_weights_of_another_network_are_refused(copy: Path, tiny: Get, shared: PretrainedEngine) -> None:
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(tiny("flux") / "vae" / name, copy / "unet" / name)
    with pytest.raises(ModelCorruptError, match=r"copy (lacks|cannot be loaded)"):
        make(shared, copy)


def test_a_folder_without_an_index_is_no_pipeline(copy: Path, shared: PretrainedEngine) -> None:
    (copy / "model_index.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model_index\.json"):
        shared.find(str(copy))
    assert Catalog().find(str(copy))[0].name == "pretrained"


@pytest.mark.parametrize(
    "entry", [{"unet": ["evil_module", "UNet"]}, {"_class_name": ["evil", "Pipeline"]}, {"vae": ["os", "system"]}]
)
def test_code_that_comes_with_a_model_is_refused(copy: Path, shared: PretrainedEngine, entry: dict[str, Any]) -> None:
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **entry}))
    (copy / "evil_module.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match="not part of diffusers"):
        shared.find(str(copy))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"_class_name": 3}'])
def test_a_damaged_index_is_an_error_of_ours(copy: Path, shared: PretrainedEngine, text: str) -> None:
    (copy / "model_index.json").write_text(text)
    with pytest.raises(ModelError):
        shared.find(str(copy))


def test_a_hub_id_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="is not here") as refused:
        Workshop().make(ImageRequest(prompt="a fox", model="some-org/some-model"))
    assert refused.value.fix == "Run: imagewright models get some-org/some-model"


def test_a_hub_id_is_read_in_the_cache(tiny: Get, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--some-org--some-model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny("sd"), home / "snapshots" / ("0" * 40))
    made = Workshop().make(ImageRequest(prompt="a fox", model="some-org/some-model", seed=1, num_inference_steps=1))
    assert made.model == "some-org/some-model" and made.engine == "pretrained"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: creativeml-openrail-m\ntags:\n- a\n---\n# Model", "creativeml-openrail-m"),
        ("---\nlicense: other\nlicense_name: flux-1-dev\n---\n", "flux-1-dev"),
        ("# No front matter\nlicense: mit", "unknown: see its page"),
        (None, "unknown: see its page"),
    ],
)
def test_the_licence_is_the_cards_and_is_said_once(copy: Path, card: str | None, licence: str) -> None:
    if card is not None:
        (copy / "README.md").write_text(card)
    said: list[str] = []
    request = ImageRequest(prompt="a fox", model=str(copy), seed=1, num_inference_steps=1)
    made = [PretrainedEngine().generate(request, Watch(say=said.append)) for _ in range(2)]
    assert said == [f"copy: licence {licence}"]
    assert made[1].records[0]["licence"] == licence


def test_a_digest_tells_models_of_one_shape_apart(copy: Path, tiny: Get) -> None:
    same = sources.locate(str(copy))
    assert describe.digest(same) == describe.digest(sources.locate(str(tiny("sd"))))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert describe.digest(same) != describe.digest(sources.locate(str(tiny("sd"))))


def test_a_half_precision_copy_is_read_where_it_is_the_only_one(copy: Path, shared: PretrainedEngine) -> None:
    for part in ("unet", "vae", "text_encoder"):
        weights = next((copy / part).glob("*.safetensors"))
        weights.rename(weights.with_name(f"{weights.stem}.fp16.safetensors"))
    assert pixels(make(shared, copy)[0]).std() > 1


def test_nothing_is_written_beside_a_model(copy: Path, shared: PretrainedEngine) -> None:
    before = sorted(copy.rglob("*"))
    make(shared, copy)
    assert sorted(copy.rglob("*")) == before


def test_a_model_that_was_few_step_distilled_is_known(tmp_path: Path, tiny: Get) -> None:
    turbo = Path(shutil.copytree(tiny("sdxl"), tmp_path / "sdxl-turbo"))
    can = describe.capabilities(describe.describe(sources.locate(str(turbo))))
    assert (can.default_steps, can.default_guidance, can.negative_prompt) == (4, 0.0, False)
    schnell = describe.capabilities(describe.describe(sources.locate(str(tiny("flux")))))
    assert (schnell.default_steps, schnell.default_guidance) == (4, 0.0)
    plain = describe.capabilities(describe.describe(sources.locate(str(tiny("sd")))))
    assert (plain.default_steps, plain.default_guidance, plain.negative_prompt) == (50, 7.5, True)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("sdxl_lightning_8step_lora", 8),
        ("ByteDance/Hyper-SD", 8),
        ("Hyper-SDXL-1step-lora", 1),
        ("stabilityai/sd-turbo", 4),
        ("lcm-lora-sdv1-5", 4),
        ("hyper-realistic-v3", None),
        ("turbocharger", None),
    ],
)
def test_names_tell_few_steps(name: str, steps: int | None) -> None:
    few = samplers.by_name(name)
    assert (few.steps if few else None) == steps


def test_the_command_and_the_function_draw_and_the_picture_can_be_made_again(
    tiny: Get, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, folder, file = "A serene landscape with mountains and a river", str(tiny("sd")), str(tmp_path / "a.png")
    assert cli.run(["generate", words, "--model", folder, "--steps", "2", "--seed", "7", "-o", file]) == 0
    made = imagewright.generate(words, model=folder, num_inference_steps=2, seed=7)
    assert np.array_equal(pixels(made[0]), pixels(Image.open(file, formats=["PNG"])))
    assert cli.run(["reproduce", file, "--model", folder]) == 0
    assert "identical" in capsys.readouterr().out
