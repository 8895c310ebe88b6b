"""A run exported to ONNX gives the pictures of the torch model, from the same noise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests_support import discs_source

from imagewright.data.batch import STYLES
from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.engines.engine import options_of
from imagewright.engines.runners import diffusion
from imagewright.engines.trained import TrainedEngine
from imagewright.errors import (
    ModelCorruptError,
    ModelError,
    ModelNotFoundError,
    OptionError,
    OutputError,
    UnsupportedError,
)
from imagewright.export import export
from imagewright.models.autoencoder import Autoencoder, AutoencoderConfig
from imagewright.models.diffusion import Diffusion, DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import LatentsConfig
from imagewright.models.hvae import HierarchicalVAE, HVAEConfig
from imagewright.models.technique import Cond
from imagewright.models.text import load_pretrained
from imagewright.request import ImageRequest
from imagewright.source import to_picture
from imagewright.training.checkpoint import load_model
from imagewright.training.config import TrainConfig
from imagewright.training.loop import train
from imagewright.watch import Watch

AUTOENCODER = AutoencoderConfig(size=16, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=8)
CONFIG = DiffusionConfig(
    encoder=LatentsConfig(AUTOENCODER), network=DiTConfig(width=64, depth=2, heads=2, patch=1), steps=6
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small model that has learned a little."""
    out = tmp_path_factory.mktemp("export") / "run"
    torch.manual_seed(0)
    model = Diffusion(CONFIG)
    model.text.load_state_dict(load_pretrained().state_dict())
    source = discs_source(16)
    for step in range(60):  # the autoencoder first, so that the decoder means something
        autoencoder = model.encoder.autoencoder.requires_grad_(True)
        batch = source.batch(0, step, 0, 16, 16)
        autoencoder.loss(batch)["loss"].backward()
        with torch.no_grad():
            for p in autoencoder.parameters():
                p -= 0.003 * p.grad.sign()
                p.grad = None
    model.encoder.autoencoder.requires_grad_(False)
    train(model, source, TrainConfig(batch=16, steps=60, lr=3e-3, warmup=5, ema=0.9, precision="fp32"), out)
    return out


def exported(run: Path, tmp_path: Path, bits: int) -> Path:
    return export(run, tmp_path / "model", name="discs", bits=bits)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2) / 4 + 1e-20))


@pytest.mark.parametrize("bits,least", [(32, 60.0), (8, 35.0), (4, 22.0)])
def test_same_noise_same_picture_as_torch(run: Path, tmp_path: Path, bits: int, least: float) -> None:
    technique = load_model(run)
    model = ExportedModel(exported(run, tmp_path, bits))
    for seed in range(3):
        request = ImageRequest(prompt="a red disc", seed=seed, style="noto")
        options = options_of(request, {**model.description["sampling"], "steps": 6})
        made = diffusion.draw(model, model.words(request)[0], options, seed, Watch())
        want = technique.sample(Cond(["a red disc"], [STYLES.index("noto")]), [seed], steps=6).numpy()
        assert psnr(np.clip(made, -1, 1), want) >= least


def test_the_encoder_and_the_torch_encoder_agree(run: Path, tmp_path: Path) -> None:
    pixels = discs_source(16).batch(0, 0, 0, 2, 2).pixels
    want = load_model(run).encoder.encode(pixels).numpy()
    made = ExportedModel(exported(run, tmp_path, bits=32)).run("encoder", pixels=pixels.numpy())[0]
    np.testing.assert_allclose(made, want, atol=1e-3)


def test_a_seed_is_one_picture_at_any_batch_size(run: Path, tmp_path: Path) -> None:
    engine, path = EmbeddedEngine([]), str(exported(run, tmp_path, bits=8))
    four = engine.generate(ImageRequest(prompt="a disc", model=path, n=4, seed=7))
    for i in range(4):
        alone = engine.generate(ImageRequest(prompt="a disc", model=path, seed=7 + i))
        assert alone[0].tobytes() == four[i].tobytes()
    assert four[0].tobytes() != four[1].tobytes()
    assert [record["seed"] for record in four.records] == [7, 8, 9, 10]
    assert "path" not in four.records[0]


def test_the_trained_engine_makes_the_same_picture(run: Path, tmp_path: Path) -> None:
    request = ImageRequest(prompt="a blue disc", model=str(run), seed=1)
    torch_made = np.asarray(TrainedEngine().generate(request)[0]).astype(float)
    onnx_path = str(exported(run, tmp_path, bits=32))
    onnx_made = EmbeddedEngine([]).generate(ImageRequest(prompt="a blue disc", model=onnx_path, seed=1))[0]
    assert np.abs(torch_made - np.asarray(onnx_made)).mean() < 1.0  # of 255


def test_progress_counts_every_step_of_every_picture(run: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = str(exported(run, tmp_path, bits=8))
    request = ImageRequest(prompt="a disc", model=path, n=2, num_inference_steps=3)
    EmbeddedEngine([]).generate(request, Watch(lambda done, total: seen.append((done, total))))
    assert seen[-1] == (6, 6) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_prompt_that_is_too_long_is_cut_and_said(run: Path, tmp_path: Path) -> None:
    path = str(exported(run, tmp_path, bits=8))
    result = EmbeddedEngine([]).generate(ImageRequest(prompt="fox " * 40, model=path, num_inference_steps=1))
    (adjustment,) = result.adjustments
    assert adjustment.field == "prompt" and "40" in adjustment.requested and "24" in adjustment.used


def test_what_it_cannot_do_is_refused(run: Path, tmp_path: Path) -> None:
    path = str(exported(run, tmp_path, bits=8))
    with pytest.raises(UnsupportedError):
        EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=path, style="cubist"))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "format"])
def test_a_damaged_model_is_refused(run: Path, tmp_path: Path, harm: str) -> None:
    folder = exported(run, tmp_path, bits=8)
    file = folder / "denoiser.onnx"
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "remove":
        file.unlink()
    else:
        described = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(ModelCorruptError):
        EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=str(folder)))


def test_an_autoencoder_alone_is_not_exported(tmp_path: Path) -> None:
    model = Autoencoder(AUTOENCODER)
    train(model, discs_source(16), TrainConfig(batch=4, steps=1, precision="fp32"), tmp_path / "run")
    with pytest.raises(ModelError):
        export(tmp_path / "run", tmp_path / "model", name="x")
    with pytest.raises(ModelNotFoundError):
        export(tmp_path / "nothing", tmp_path / "model", name="x")
    assert not (tmp_path / "model").exists()


def test_a_folder_of_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError):
        exported(run, tmp_path, bits=32)
    assert (tmp_path / "model" / "letter.txt").read_text() == "dear"


def test_defaults_can_be_set_and_an_export_repeated(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path, bits=32)
    export(run, tmp_path / "model", name="discs", defaults={"steps": 3, "guidance": 2.5})
    (model,) = EmbeddedEngine([tmp_path]).models()
    assert (model.capabilities.default_steps, model.capabilities.default_guidance) == (3, 2.5)
    assert model.capabilities.styles == ("noto",)


def test_a_default_sampler_that_adds_noise_is_not_for_blends(run: Path, tmp_path: Path) -> None:
    noisy = {"sampler": "ancestral", "steps": 4, "guidance": 1.0}
    path = export(run, tmp_path / "model", name="discs", defaults=noisy)
    sampling = ExportedModel(path).description["sampling"]
    blend = ImageRequest(prompt="a disc", images=(Image.new("RGBA", (16, 16)),) * 2)
    assert options_of(ImageRequest(prompt="a disc"), sampling)["sampler"] == "ancestral"
    assert options_of(blend, sampling)["sampler"] == "dpmpp_2m", "its noise says what the pictures show"
    assert options_of(replace(blend, sampler="ancestral"), sampling)["sampler"] == "ancestral", "unless it is asked for"
    with pytest.raises(OptionError, match="There is no sampler 'quick'"):
        export(run, tmp_path / "model", name="discs", defaults={"sampler": "quick"})


def test_a_model_with_other_word_vectors_is_not_exported(tmp_path: Path) -> None:
    model = Diffusion(CONFIG)  # its table is random
    train(model, discs_source(16), TrainConfig(batch=4, steps=1, precision="fp32"), tmp_path / "run")
    with pytest.raises(ModelError, match="word vectors"):
        export(tmp_path / "run", tmp_path / "model", name="x")


def test_fewer_bits_are_fewer_bytes(run: Path, tmp_path: Path) -> None:
    sizes = [export(run, tmp_path / str(b), name="m", bits=b) / "denoiser.onnx" for b in (32, 8, 4)]
    large, middle, small = (file.stat().st_size for file in sizes)
    assert small < 0.8 * middle < 0.4 * large
    with pytest.raises(OptionError, match="bits"):
        export(run, tmp_path / "5", name="m", bits=5)


def test_a_part_that_drawing_does_not_need_can_be_left_out(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "thin", name="thin", without=["encoder"])
    assert not (folder / "encoder.onnx").exists()
    (can,) = (model.capabilities for model in EmbeddedEngine([tmp_path]).models())
    assert not can.image and not can.mask and "images" not in can.features and "tile" in can.features
    assert EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=str(folder), seed=1))[0].size == (16, 16)
    with pytest.raises(OptionError, match="denoiser"):
        export(run, tmp_path / "thinner", name="thin", without=["denoiser"])


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_names_inside_a_graph_are_short(run: Path, tmp_path: Path, bits: int) -> None:
    graph = onnx.load(str(export(run, tmp_path / "m", name="m", bits=bits) / "denoiser.onnx")).graph
    outside = {value.name for value in (*graph.input, *graph.output)}
    inside = {name for node in graph.node for name in (*node.input, *node.output)} - outside
    assert {"x", "t", "known", "denoised", "attention"} <= outside
    assert (max(len(name) for name in inside) <= 4) == (bits < 32)


def test_a_default_that_the_technique_has_not_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="truncation"):
        export(run, tmp_path / "model", name="discs", defaults={"truncation": 0.7})


def test_an_option_of_another_technique_is_said_not_dropped(run: Path, tmp_path: Path) -> None:
    path = str(exported(run, tmp_path, bits=8))
    (said,) = EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=path, temperature=0.5)).adjustments
    assert said.field == "temperature" and said.used is None


def test_a_part_that_a_neighbour_holds_is_shared(run: Path, tmp_path: Path) -> None:
    whole = export(run, tmp_path / "whole", name="whole", bits=8)
    thin = export(run, tmp_path / "thin", name="thin", bits=8, share=True)
    assert (whole / "decoder.onnx").exists() and not (thin / "decoder.onnx").exists()
    pictures = [
        EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=str(m), seed=1))[0] for m in (whole, thin)
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    (whole / "decoder.onnx").unlink()
    with pytest.raises(ModelCorruptError):
        EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=str(thin)))


def test_a_decoder_trained_on_since_gives_larger_pictures(run: Path, tmp_path: Path) -> None:
    ours = load_model(run).encoder.autoencoder
    assert isinstance(ours, Autoencoder)
    tuned = Autoencoder(replace(AUTOENCODER, detail=8, frozen=True))
    tuned.load_state_dict(ours.state_dict(), strict=False)
    train(tuned, discs_source(32), TrainConfig(batch=8, steps=4, lr=1e-2, warmup=0, ema=0), tmp_path / "tuned")
    model = ExportedModel(export(run, tmp_path / "model", name="discs", bits=32, autoencoder=tmp_path / "tuned"))
    request = ImageRequest(prompt="a red disc", seed=1)
    (large,), _ = model.generate(request)
    (native,), _ = model.generate(replace(request, size=(16, 16)))
    assert (large.size, native.size) == ((32, 32), (16, 16)), "no more than asked for"
    technique = load_model(run)
    technique.encoder.autoencoder = load_model(tmp_path / "tuned")  # type: ignore[union-attr]
    sampled = technique.sample(Cond(["a red disc"], [0]), [1])
    assert psnr(np.asarray(native), np.asarray(to_picture(sampled.numpy()))) > 20 and not np.array_equal(
        np.asarray(native), np.asarray(large.resize((16, 16)))
    )
    engine = EmbeddedEngine([tmp_path])
    around = {"image": large, "model": "discs", "size": None}
    filled = engine.generate(replace(request, mask=Image.new("RGBA", (32, 32)), **around))  # type: ignore[arg-type]
    varied = engine.generate(replace(request, strength=0.5, **around))  # type: ignore[arg-type]
    assert filled.images[0].size == varied.images[0].size == (32, 32)
    tiled, _ = model.generate(replace(request, tile=True))
    assert tiled[0].size == (32, 32)


VAE = HVAEConfig(
    LatentsConfig(replace(AUTOENCODER, detail=8)), widths=(32, 32, 16), middles=(16, 16, 16), latents=(8, 4, 0),
    blocks=(1, 1, 0), readers=(2, 2, 0), finishers=(0, 0, 1), cond=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def vae_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a VAE on the latents of `run`, whose decoder also gives larger pictures."""
    out = tmp_path_factory.mktemp("export") / "vae"
    model = HierarchicalVAE(VAE)
    model.text.load_state_dict(load_pretrained().state_dict())
    model.encoder.load_state_dict(load_model(run).encoder.state_dict(), strict=False)  # type: ignore[union-attr]
    train(model, discs_source(16), TrainConfig(batch=16, steps=30, lr=3e-3, ema=0, precision="fp32"), out)
    return out


@pytest.mark.parametrize("bits,least", [(32, 60.0), (4, 15.0)])
def test_a_vae_on_latents_draws_and_edits_alike(vae_run: Path, tmp_path: Path, bits: int, least: float) -> None:
    technique = load_model(vae_run)
    engine, path = EmbeddedEngine([]), str(export(vae_run, tmp_path / "vae", name="vae", bits=bits))
    request = ImageRequest(prompt="a red disc", seed=3, style="noto", model=path)
    native, large = (engine.generate(replace(request, size=size))[0] for size in ((16, 16), None))
    want = to_picture(technique.sample(Cond(["a red disc"], [STYLES.index("noto")]), [3]).numpy())
    assert (native.size, large.size) == ((16, 16), (32, 32))
    assert psnr(np.asarray(native) / 127.5, np.asarray(want) / 127.5) >= min(least, 40.0)
    around = replace(request, image=want, strength=0.5, size=(16, 16))
    edited, again = engine.generate(around)[0], TrainedEngine().generate(replace(around, model=str(vae_run)))[0]
    again = again.resize(edited.size)
    assert psnr(np.asarray(edited) / 127.5, np.asarray(again) / 127.5) >= min(least, 20.0)


def test_a_vae_shares_the_decoder_and_does_without_its_encoders(vae_run: Path, tmp_path: Path) -> None:
    export(vae_run, tmp_path / "whole", name="whole")
    thin = export(vae_run, tmp_path / "thin", name="thin", share=True, without=["encoder", "posterior"])
    assert {file.name for file in thin.iterdir()} == {"model.json"}, "all of the rest lies in the other"
    can = {model.name: model.capabilities.image for model in EmbeddedEngine([tmp_path]).models()}
    assert can == {"whole": True, "thin": False}
    assert EmbeddedEngine([]).generate(ImageRequest(prompt="a disc", model=str(thin)))[0].size == (32, 32)
    half = export(vae_run, tmp_path / "half" / "half", name="half", without=["posterior"])
    assert json.loads((half / "model.json").read_text())["runtime"]["edits"] == []
    with pytest.raises(OptionError, match="decoder"):
        export(vae_run, tmp_path / "none", name="none", without=["decoder"])


def test_a_decoder_of_other_latents_is_refused(run: Path, tmp_path: Path) -> None:
    train(Autoencoder(AUTOENCODER), discs_source(16), TrainConfig(batch=4, steps=1), tmp_path / "other")
    with pytest.raises(OptionError, match="makes other latents"):
        export(run, tmp_path / "model", name="discs", autoencoder=tmp_path / "other")
    with pytest.raises(OptionError, match="has no decoder"):
        export(run, tmp_path / "model", name="discs", autoencoder=run)


def test_a_text_encoder_that_was_trained_further_goes_along(run: Path, tmp_path: Path) -> None:
    trained = Diffusion(replace(CONFIG, train_text=True))
    trained.text.load_state_dict(load_pretrained().state_dict())
    with torch.no_grad():
        trained.text.pool.weight.mul_(1.5)
    out = tmp_path / "run"
    train(trained, discs_source(16), TrainConfig(batch=4, steps=1, precision="fp32"), out)
    folder = export(out, tmp_path / "model", name="own", bits=32)
    assert (folder / "text.safetensors").stat().st_size < 3e6  # without the word table
    ids, grams, mask, _ = (model := ExportedModel(folder)).tokenizer.encode(["a red disc"])
    made = model.encode_text(ids, grams, mask)
    tokens, pooled = (w.detach().numpy() for w in load_model(out).text(*map(torch.from_numpy, (ids, grams, mask))))
    for a, b in ((made[0][mask], tokens[mask]), (made[1], pooled)):  # 8-bit rows; padding means nothing
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)
    assert not (export(run, tmp_path / "plain", name="plain") / "text.safetensors").exists()


def test_to_picture_undoes_premultiplication() -> None:
    half_red = np.zeros((1, 4, 1, 2), np.float32)
    half_red[0, :, 0, 0] = np.array([0.5, 0.0, 0.0, 0.5]) * 2 - 1  # red at half alpha
    half_red[0, :, 0, 1] = -1  # nothing
    picture = to_picture(half_red)
    assert picture.getpixel((0, 0)) == (255, 0, 0, 128)
    assert picture.getpixel((1, 0)) == (0, 0, 0, 0)
