"""Add-ons change the picture, are told in the record with their hash, and leave nothing behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_addons
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_verbs import make, picture, pixels, right_half

from imagewright import cli
from imagewright.engines.pretrained import PretrainedEngine
from imagewright.errors import ModelError, ModelNotFoundError, RequestError, UnsupportedError
from imagewright.request import Adapter, Control

Get = Callable[[str], Path]


def differ(one: Image.Image, other: Image.Image) -> bool:
    return not np.array_equal(pixels(one), pixels(other))


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_lora_counts_by_its_weight_and_is_gone_after(
    tiny: Get, shared: PretrainedEngine, tmp_path: Path, family: str
) -> None:
    size = (96, 96) if family == "flux" else (64, 64)
    file = tiny_addons.lora(tiny(family), tmp_path)
    plain = make(shared, tiny(family), size=size)
    full = make(shared, tiny(family), size=size, adapters=(Adapter(str(file)),))
    half = make(shared, tiny(family), size=size, adapters=(Adapter(str(file), 0.5),))
    none = make(shared, tiny(family), size=size, adapters=(Adapter(str(file), 0.0),))
    assert differ(plain[0], full[0]) and differ(full[0], half[0])
    assert not differ(plain[0], none[0])
    assert not differ(plain[0], make(shared, tiny(family), size=size)[0])
    told = {"name": "lora.safetensors", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "weight": 0.5}
    assert half.records[0]["adapters"] == [told]


def test_several_loras_add_up(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    one = tiny_addons.lora(tiny("sd"), tmp_path, "one.safetensors")
    two = tiny_addons.lora(tiny("sd"), tmp_path, "two.safetensors", strength=0.9)
    both = (Adapter(str(one), 0.7), Adapter(str(two), 0.3))
    made = [make(shared, tiny("sd"), adapters=adapters)[0] for adapters in (both, both[:1], both[1:])]
    assert differ(made[0], made[1]) and differ(made[0], made[2])


def test_a_lora_of_another_family_is_refused_by_name(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    plain = make(shared, tiny("sd"))
    strange = tmp_path / "strange.safetensors"
    save_file({"something.else": torch.zeros(2, 2)}, str(strange))
    for file in (tiny_addons.lora(tiny("flux"), tmp_path), strange):
        with pytest.raises(ModelError, match=file.name):
            make(shared, tiny("sd"), adapters=(Adapter(str(file)),))
    assert not differ(plain[0], make(shared, tiny("sd"))[0])


def test_a_few_step_lora_brings_its_steps_its_guidance_and_its_sampler(
    tiny: Get, shared: PretrainedEngine, tmp_path: Path
) -> None:
    file = tiny_addons.lora(tiny("sd"), tmp_path, "lcm-lora.safetensors")
    record = make(shared, tiny("sd"), adapters=(Adapter(str(file)),), num_inference_steps=None).records[0]
    assert (record["num_inference_steps"], record["guidance_scale"], record["sampler"]) == (4, 1.0, "lcm")
    told = make(shared, tiny("sd"), adapters=(Adapter(str(file)),), num_inference_steps=3, sampler="euler").records[0]
    assert (told["num_inference_steps"], told["sampler"]) == (3, "euler")


def test_a_control_net_leads_every_verb(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    folder = str(tiny_addons.control_net(tiny("sd"), tmp_path / "net"))
    lead, other = Control(folder, picture(seed=1)), Control(folder, picture(seed=2))
    plain = make(shared, tiny("sd"))
    led = make(shared, tiny("sd"), controls=(lead,))
    assert differ(plain[0], led[0]) and differ(led[0], make(shared, tiny("sd"), controls=(other,))[0])
    assert not differ(plain[0], make(shared, tiny("sd"), controls=(Control(folder, picture(), 0.0),))[0])
    assert differ(led[0], make(shared, tiny("sd"), controls=(lead, other))[0])
    assert differ(led[0], make(shared, tiny("sd"), controls=(lead,), image=picture(seed=3))[0])
    filled = make(shared, tiny("sd"), controls=(lead,), image=picture(seed=3), mask=right_half())
    assert filled.records[0]["changed_outside_mask"] == 0
    assert led.records[0]["controls"] == [{"name": "net", "weight": 1.0}]


def test_a_picture_lends_its_style_or_its_subject(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    adapter = (Adapter(str(tiny_addons.ip_adapter(tiny("sd"), tmp_path))),)
    plain = make(shared, tiny("sd"))
    style = make(shared, tiny("sd"), adapters=adapter, style_images=(picture(seed=1),))
    assert differ(plain[0], style[0])
    assert differ(style[0], make(shared, tiny("sd"), adapters=adapter, style_images=(picture(seed=2),))[0])
    both = make(
        shared, tiny("sd"), adapters=adapter, style_images=(picture(seed=1),), subject_images=(picture(seed=2),)
    )
    assert differ(both[0], style[0])
    off = make(shared, tiny("sd"), adapters=adapter, subject_images=(picture(seed=1),), subject_weight=0.0)
    assert not differ(plain[0], off[0])
    assert not differ(plain[0], make(shared, tiny("sd"))[0])


def test_a_style_needs_an_adapter(tiny: Get, shared: PretrainedEngine) -> None:
    with pytest.raises(ModelNotFoundError, match="IP-Adapter"):
        make(shared, tiny("sd"), style_images=(picture(),))
    with pytest.raises(UnsupportedError, match="style"):
        make(shared, tiny("flux"), style_images=(picture(),))


def test_a_learned_word_is_known_only_where_it_is_given(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    file = str(tiny_addons.learned_word(tmp_path))
    plain = make(shared, tiny("sd"), "a foxart")
    learned = make(shared, tiny("sd"), "a foxart", embeddings=(file,))
    assert differ(plain[0], learned[0])
    assert not differ(plain[0], make(shared, tiny("sd"), "a foxart")[0])
    assert learned.records[0]["embeddings"][0]["name"] == "foxart.safetensors"
    bracketed = make(shared, tiny("sd"), "a <foxart>", embeddings=(file,))
    assert not differ(learned[0], bracketed[0])


def test_a_learned_word_of_sdxl_is_learned_by_both_readers(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    file = tmp_path / "foxart.safetensors"
    torch.manual_seed(5)
    save_file({"clip_l": torch.randn(1, 64), "clip_g": torch.randn(1, 128)}, str(file))
    plain = make(shared, tiny("sdxl"), "a foxart")
    assert differ(plain[0], make(shared, tiny("sdxl"), "a foxart", embeddings=(str(file),))[0])
    assert not differ(plain[0], make(shared, tiny("sdxl"), "a foxart")[0])


def test_a_control_net_of_another_family_is_an_error_of_ours(
    tiny: Get, shared: PretrainedEngine, tmp_path: Path
) -> None:
    folder = str(tiny_addons.control_net(tiny("sd"), tmp_path / "net"))
    with pytest.raises(ModelError, match="cannot draw this"):
        make(shared, tiny("sdxl"), controls=(Control(folder, picture()),))


def test_a_learned_word_of_another_model_is_refused(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    file = str(tiny_addons.learned_word(tmp_path, width=48))
    with pytest.raises(RequestError, match="another model"):
        make(shared, tiny("sd"), "a foxart", embeddings=(file,))


def test_an_add_on_that_is_a_pickle_is_refused(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    file = tmp_path / "lora.pt"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="can run code"):
        make(shared, tiny("sd"), adapters=(Adapter(str(file)),))


def test_a_lora_in_a_folder_is_found_if_it_is_the_only_one(tiny: Get, shared: PretrainedEngine, tmp_path: Path) -> None:
    tiny_addons.lora(tiny("sd"), tmp_path)
    make(shared, tiny("sd"), adapters=(Adapter(str(tmp_path)),))
    save_file(load_file(str(tmp_path / "lora.safetensors")), str(tmp_path / "other.safetensors"))
    with pytest.raises(ModelNotFoundError, match="2 safetensors"):
        make(shared, tiny("sd"), adapters=(Adapter(str(tmp_path)),))


def test_the_command_takes_add_ons(tiny: Get, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = tiny_addons.lora(tiny("sd"), tmp_path)
    net = tiny_addons.control_net(tiny("sd"), tmp_path / "net")
    word = tiny_addons.learned_word(tmp_path)
    picture().save(tmp_path / "lead.png")
    given = ["--adapter", f"{lora}:0.5", "--control", f"{net}={tmp_path / 'lead.png'}:0.7", "--embedding", str(word)]
    call = ["generate", "a foxart", "--model", str(tiny("sd")), "--steps", "2", "--seed", "1", "--json"]
    assert cli.run([*call, "-o", str(tmp_path / "a.png"), *given]) == 0
    record = json.loads(capsys.readouterr().out)["images"][0]["record"]
    assert record["adapters"][0]["weight"] == 0.5 and record["controls"] == [{"name": "net", "weight": 0.7}]
    assert record["embeddings"][0]["name"] == "foxart.safetensors"
    assert cli.run([*call, "--control", "net"]) == 2
    assert "MODEL=PICTURE" in capsys.readouterr().err
