"""The style-based GAN: layers in closed form, phases, penalties, seeds, truncation, mixing, projection, export."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tests_support import discs_source

from imagewright.data.batch import Batch, Draws
from imagewright.engines.runners import gan as runner
from imagewright.export import write_graph
from imagewright.models import registry, stylegan
from imagewright.models.autoencoder import AutoencoderConfig
from imagewright.models.encoders import LatentsConfig, PixelsConfig
from imagewright.models.style_networks import ModulatedConv
from imagewright.models.stylegan import StyleGAN, StyleGANConfig
from imagewright.models.technique import WORDS, Cond, dropped
from imagewright.models.text import TextConfig
from imagewright.source import Source
from imagewright.training.config import TrainConfig
from imagewright.training.presets import PRESETS
from imagewright.training.state import TrainState
from imagewright.watch import Watch

SMALL = StyleGANConfig(
    encoder=PixelsConfig(size=8),
    text=TextConfig(width=32, depth=1, heads=2, max_tokens=8),
    z=8,
    w=32,
    widths=(32, 16),
    depths=(2, 2),
    critic_widths=(32, 16),
    augment=1.0,
    drop_text=0.0,
    drop_style=0.0,
)
ALIAS_FREE = replace(SMALL, encoder=PixelsConfig(size=16), critic_widths=(16, 16), widths=(16, 16), alias_free=True)
ON_LATENTS = replace(
    SMALL,
    encoder=LatentsConfig(
        AutoencoderConfig(size=32, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=4)
    ),
)
BLOCKS = replace(SMALL, depths=(1, 2), blocks=2, pull=1.0)
DISCS = Cond(["a red disc", "a blue disc"], [1, 1], ["a disc", "a disc"])


def small(config: StyleGANConfig = SMALL) -> StyleGAN:
    """A generator whose noise counts, with a mean w."""
    torch.manual_seed(0)
    model = StyleGAN(config)
    for name, parameter in model.synthesis.named_parameters():
        if name.endswith("strength"):
            parameter.data.fill_(0.3)
    model.w_mean.copy_(torch.randn(config.w))
    return model


def batch(rows: int = 8, step: int = 0, part: slice = slice(0, None), size: int = 8) -> Batch:
    whole = discs_source(size).batch(0, step, 0, rows, rows)
    start, stop, _ = part.indices(rows)
    text = replace(whole.text, ids=whole.text.ids[part], grams=whole.text.grams[part], mask=whole.text.mask[part])
    return Batch(Draws(0, step, start, stop, rows), pixels=whole.pixels[part], text=text, style=whole.style[part])


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


@pytest.mark.parametrize("preset", sorted(PRESETS["gan"]))
def test_every_preset_builds_and_its_config_survives_json(preset: str) -> None:
    config = PRESETS["gan"][preset].model
    assert registry.from_dict(registry.to_dict(config)) == config
    assert registry.TECHNIQUES[type(config)].family == "gan"


def test_dials_that_do_not_fit_are_refused() -> None:
    for wrong in ({"tries": 0}, {"alone": 5}, {"blocks": 1, "widths": (16,)}, {"blocks": 1, "alias_free": True}):
        with pytest.raises(ValueError, match=r"z|alone|[Bb]locks"):
            replace(SMALL, **wrong)


def test_sides_that_do_not_fit_are_refused() -> None:
    for wrong in ({"widths": (16, 16, 16)}, {"critic_widths": (16, 16, 16)}, {"encoder": PixelsConfig(size=12)}):
        with pytest.raises(ValueError, match=r"cells a side|critic_widths"):
            StyleGAN(replace(SMALL, **wrong))


def test_demodulation_gives_unit_variance() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(64, 48, w=16)
    w = torch.randn(4, 16) * torch.tensor([0.1, 1.0, 5.0, 20.0])[:, None]
    deviation = conv(torch.randn(4, 64, 32, 32), w)[:, :, 1:-1, 1:-1].std((1, 2, 3))
    torch.testing.assert_close(deviation, torch.ones(4), atol=0.1, rtol=0)


def test_modulation_is_that_of_the_weights() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(6, 5, w=4)
    x, w = torch.randn(3, 6, 8, 8), torch.randn(3, 4)
    for row in range(3):
        weight = conv.weight * conv.affine(w[row]).view(1, -1, 1, 1)  # arXiv:1912.04958, equation 1
        weight = weight * (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()  # equation 3
        torch.testing.assert_close(conv(x, w)[row], F.conv2d(x[row], weight, padding=1))


@pytest.mark.parametrize("train_text", [False, True])
@pytest.mark.parametrize("config", [SMALL, BLOCKS], ids=["convolutions", "blocks"])
def test_each_phase_trains_its_own_parameters(config: StyleGANConfig, train_text: bool) -> None:
    model = small(replace(config, train_text=train_text))
    state = TrainState(model, TrainConfig())  # refuses parameters that no phase trains
    discriminator, generator = (set(state.optimizers[phase.name].parameters) for phase in model.phases)
    assert discriminator == set(model.critic.parameters())
    assert set(model.text.parameters()) <= generator if train_text else not set(model.text.parameters()) & generator
    for name, own in (("discriminator", discriminator), ("generator", generator)):
        model.zero_grad()
        with state.only(list(own)):
            model.loss(batch(), name)["loss"].backward()
        moved = {p for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert moved <= own
        assert len(moved) > 0.9 * len(own), name


def test_two_processes_see_what_one_sees() -> None:
    model = small()
    whole = model.loss(batch(), "discriminator")
    halves = [model.loss(batch(part=part), "discriminator") for part in (slice(0, 4), slice(4, 8))]
    for name in ("adversarial", "matching", "r1", "r2"):
        torch.testing.assert_close(sum(half[name] for half in halves) / 2, whole[name])
    assert whole["r1"] > 0 and whole["r2"] > 0


def test_the_penalties_are_the_slopes_of_the_critic() -> None:
    model = small(replace(SMALL, penalty_every=1, augment=0.0, gamma=0.0))
    plain = model.loss(batch(), "discriminator")
    weighted = small(replace(SMALL, penalty_every=1, augment=0.0, gamma=3.0)).loss(batch(), "discriminator")
    torch.testing.assert_close(weighted["loss"] - plain["loss"], 1.5 * (plain["r1"] + plain["r2"]))
    data = batch()
    real = model.encoder.encode(data.pixels).requires_grad_(True)
    (slope,) = torch.autograd.grad(model.critic(real, model.words(data)).sum(), real)
    torch.testing.assert_close(plain["r1"], slope.square().sum((1, 2, 3)).mean())


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_training_in_bfloat16_is_near_that_in_float32(phase: str) -> None:
    model = small()
    exact = model.loss(batch(), phase)
    with torch.autocast("cpu", torch.bfloat16):
        near = model.loss(batch(), phase)
    near["loss"].backward()
    assert {name for name in exact} == {name for name in near}
    for name, value in exact.items():
        assert near[name].item() == pytest.approx(value.item(), rel=0.1, abs=0.02), name


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_held_out_loss_needs_no_gradients_and_moves_nothing(phase: str) -> None:
    model = small().eval()
    mean = model.w_mean.clone()
    with torch.no_grad():
        losses = model.loss(batch(), phase)
    assert losses["loss"].isfinite() and "r1" not in losses
    torch.testing.assert_close(model.w_mean, mean, rtol=0, atol=0)
    model.train().loss(batch(), "generator")
    assert not torch.equal(model.w_mean, mean)


def test_the_pull_alone_learns_four_pictures() -> None:
    model = small(replace(BLOCKS, alone=1_000))
    data = discs_source(8).batch(0, 3, 0, 4, 4)
    parameters = [p for group in model.param_groups("generator").values() for p in group]
    optimizer, pulls = torch.optim.Adam(parameters, lr=3e-3), []
    for step in range(100):
        losses = model.loss(replace(data, draws=Draws(0, step, 0, 4, 4), step=step), "generator")
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        pulls.append(losses["pull"].item())
    assert pulls[-1] < pulls[0] / 4


@pytest.mark.parametrize("tries", [1, 3])
def test_only_rows_that_kept_their_words_and_style_are_pulled(tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(replace(BLOCKS, alone=9, tries=tries, drop_text=0.4, drop_style=0.4))
    data = replace(batch(32), step=0)
    words, own, many = model._told(replace(data, draws=Draws(0, 0, 0, 32, 32)))
    silent = ~(own | many)
    assert (
        min(own.sum(), many.sum(), silent.sum()) > 2 and (words.style[many] == 0).all() and (words.style[own] > 0).all()
    )
    made: list[torch.Tensor] = []

    def kept(*args: object) -> torch.Tensor:
        x = StyleGAN.synthesise(model, *args)  # type: ignore[arg-type]
        if x.requires_grad:
            x.retain_grad()
        made.append(x)
        return x

    monkeypatch.setattr(model, "synthesise", kept)
    losses = model.loss(data, "generator")
    losses["loss"].backward()
    pulled = made[-1].grad.flatten(1).abs().amax(1) > 0
    assert torch.equal(pulled, own | many if tries > 1 else own)
    assert losses["loss"] == losses["pull"] and "adversarial" not in losses
    model.config = replace(model.config, alone=0)
    both = model.loss(replace(data, draws=Draws(0, 0, 0, 32, 32)), "generator")
    torch.testing.assert_close(both["pull"], losses["pull"])
    total = both["adversarial"] + model.config.matching * both["matching"] + both["pull"]
    torch.testing.assert_close(both["loss"].detach(), total)


def test_of_several_z_the_nearest_is_pulled() -> None:
    model = small(replace(BLOCKS, tries=4))
    data = batch(8)
    real, words = model.encoder.encode(data.pixels), model.words(data, drop=False)
    z, noise = torch.randn(8, BLOCKS.z), torch.randn(8, model.synthesis.noises)
    rows = torch.arange(8) % 2 == 1
    found = model._nearest_z(z, noise, words, real, rows, Draws(0, 7, 0, 8, 8))
    others = Draws(0, 7, 0, 8, 8).randn(3, BLOCKS.z)

    def away(z: torch.Tensor) -> torch.Tensor:
        return (model.synthesise(model.mapping(z, words), words, noise) - real).abs().flatten(1).mean(1)

    tried = torch.stack([away(z), *(away(others[:, i]) for i in range(3))])
    torch.testing.assert_close(found[~rows], z[~rows])
    torch.testing.assert_close(away(found)[rows], tried.amin(0)[rows])
    assert (tried.argmin(0)[rows] > 0).any()


def test_while_the_generator_learns_alone_the_critic_learns_to_read() -> None:
    model = small(replace(BLOCKS, alone=5, penalty_every=1, augment=0.0))
    for step in range(6):
        losses = model.loss(replace(batch(), step=step), "discriminator")
        model.zero_grad()
        losses["loss"].backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert all(name.startswith("critic") for name in moved) and bool(moved) == (step in (0, 4, 5))
        assert ("matching" in losses, "adversarial" in losses) == (bool(moved), step == 5)
    alone, against = (model.loss(replace(batch(), step=step), "discriminator") for step in (0, 5))
    for name in ("matching", "r1"):
        torch.testing.assert_close(alone[name], against[name])
    no_words = dropped(batch().text, torch.ones(8, dtype=torch.bool))
    silent = model.loss(replace(batch(), step=0, text=no_words, captions=("",) * 8), "generator")
    assert silent["adversarial"] > 0 and silent["pull"] == 0


def test_four_pictures_are_learned_with_their_words() -> None:
    torch.manual_seed(0)
    model = StyleGAN(replace(SMALL, augment=0.0, gamma=0.1))
    data = discs_source(8).batch(0, 3, 0, 4, 4)
    assert len(set(data.captions)) > 1
    optimizers = {
        phase.name: torch.optim.Adam(
            [p for group in model.param_groups(phase.name).values() for p in group], lr=2e-3, betas=phase.betas
        )
        for phase in model.phases
    }
    rows = torch.arange(16) % 4
    text = replace(data.text, ids=data.text.ids[rows], grams=data.text.grams[rows], mask=data.text.mask[rows])
    cond = Cond(data.captions * 4, [1] * 16)

    def away() -> tuple[float, float]:
        """Mean distance to the nearest real picture, and to the nearest with the same caption."""
        made = model.sample(cond, list(range(16)))
        between = torch.cdist(made.flatten(1), data.pixels.flatten(1))  # (16, 4)
        other = torch.tensor([[a != b for b in data.captions] for a in cond.prompts])
        return float(between.amin(1).mean()), float((between + 1e3 * other).amin(1).mean())

    before = away()
    for step in range(150):
        for name, optimizer in optimizers.items():
            model.zero_grad()
            fed = Batch(Draws(0, step, 0, 16, 16), pixels=data.pixels[rows], text=text, style=data.style[rows])
            model.loss(fed, name)["loss"].backward()
            optimizer.step()
    after = away()
    assert after[0] < before[0] / 2 and after[1] < before[1] / 2


@pytest.mark.parametrize(
    "config", [SMALL, ALIAS_FREE, ON_LATENTS, BLOCKS], ids=["pixels", "alias-free", "latents", "blocks"]
)
def test_a_seed_is_one_picture_at_any_batch_size(config: StyleGANConfig) -> None:
    model = small(config)
    two = model.sample(DISCS, [5, 6])
    assert two.shape == (2, 4, model.pixels, model.pixels)
    alone = model.sample(Cond(DISCS.prompts[1:], [1], ["a disc"]), [6])
    torch.testing.assert_close(two[1:], alone, rtol=0, atol=0)
    assert not torch.equal(model.sample(DISCS, [7, 6])[0], two[0])
    torch.testing.assert_close(model.sample(DISCS, [7, 6])[1], two[1], rtol=0, atol=0)


def test_truncation_0_gives_the_mean_picture_for_every_z() -> None:
    model = small()
    words = model.prompted(["a red disc"] * 2, [1, 1])
    codes = torch.cat([model.code(1), model.code(2)])
    codes[:, SMALL.z :] = 0  # the same noise
    mean = model.encoder.decode(model.synthesise(model.w_mean.expand(2, model.layers, -1), words)).clamp(-1, 1)
    torch.testing.assert_close(model.render(codes, words, truncation=0.0), mean)
    free = model.render(codes, words, truncation=1.0)
    half = model.styles(codes, words, truncation=0.5)
    assert not torch.allclose(free[0], free[1], atol=1e-2)
    torch.testing.assert_close(half, (model.styles(codes, words, truncation=1.0) + model.w_mean) / 2)


def test_guidance_goes_away_from_the_negative_prompt() -> None:
    model = small()
    other = replace(DISCS, negative=["a green disc", "green"])
    torch.testing.assert_close(model.sample(DISCS, [1, 2]), model.sample(other, [1, 2]))
    guided = model.sample(DISCS, [1, 2], guidance=2.0)
    assert not torch.allclose(guided, model.sample(other, [1, 2], guidance=2.0))
    with pytest.raises(TypeError, match="steps"):
        model.sample(DISCS, [1, 2], steps=3)


def test_a_seeds_code_renders_its_picture() -> None:
    model = small(replace(SMALL, guidance=1.5))
    cond = Cond(["a red disc"], [1])
    words = model.prompted(["a red disc"], [1])
    torch.testing.assert_close(model.render(model.code(3), words), model.sample(cond, [3]))
    ends = model.code(3), model.code(4)
    torch.testing.assert_close(model.mix(*ends, 0.0), ends[0])
    torch.testing.assert_close(model.render(model.mix(*ends, 1.0), words), model.sample(cond, [4]))


def test_mixing_layers() -> None:
    model = small()
    words = model.prompted(["a red disc"], [1])
    a, b = (model.styles(model.code(seed), words) for seed in (1, 2))
    assert a.shape == (1, model.layers, SMALL.w) == (1, 4, SMALL.w)
    torch.testing.assert_close(model.mix_layers(a, b, range(0)), a)
    torch.testing.assert_close(model.mix_layers(a, b, range(model.layers)), b)
    mixed = model.mix_layers(a, b, range(2, 4))
    torch.testing.assert_close(mixed[:, :2], a[:, :2])
    pictures = [model.synthesise(ws, words) for ws in (a, b, mixed)]
    assert not torch.allclose(pictures[2], pictures[0]) and not torch.allclose(pictures[2], pictures[1])


def test_each_block_has_a_style_of_its_own() -> None:
    model = small(BLOCKS)
    words = model.prompted(["a red disc"], [1])
    assert model.layers == sum(model.runtime()["depths"]) == 5 and model.synthesis.noises == 16 + 2 * 64
    a, b = (model.styles(model.code(seed), words) for seed in (1, 2))
    plain = model.synthesise(a, words)
    for layer in range(model.layers):
        assert not torch.allclose(model.synthesise(model.mix_layers(a, b, range(layer, layer + 1)), words), plain)
    both = model.mix_layers(model.mix_layers(a, b, range(1, 3)), a, range(2, 3))
    torch.testing.assert_close(both, model.mix_layers(a, b, range(1, 2)))


def test_blocks_read_the_words_and_know_a_cells_quarters() -> None:
    model = small(BLOCKS)
    ws = torch.randn(1, model.layers, BLOCKS.w)
    red, blue = (model.synthesise(ws, model.prompted([text], [1])) for text in ("a red disc", "a blue disc"))
    assert not torch.allclose(red, blue)
    quarters = red.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (1, C, 4, 4, 4)
    assert quarters.std(-1).mean() > 0.3 * red.std()


def test_projection_finds_a_generated_picture() -> None:
    model = small()
    cond, words = Cond(["a red disc"] * 2, [1, 1]), model.prompted(["a red disc"] * 2, [1, 1])
    for layer in (layer for stage in model.synthesis.stages for layer in stage.layers):
        layer.strength.data.zero_()  # noise is no part of the styles
    pictures = model.sample(cond, [100, 101])
    told: list[tuple[int, int, float]] = []
    near = model.render(model.invert(pictures, words, steps=0), words)
    code = model.invert(pictures, words, steps=60, on_step=lambda *args: told.append(args))
    found = model.render(code, words)
    assert psnr(found, pictures) > psnr(near, pictures) + 6
    assert [step for step, _, _ in told] == list(range(1, 61)) and told[-1][2] < told[0][2] / 2
    torch.testing.assert_close(code[:, SMALL.z : SMALL.z + model.synthesis.noises].abs().sum(), torch.tensor(0.0))


def test_edits_go_through_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stylegan, "STEPS", 40)
    model = small().eval()
    cond, side = Cond(["a red disc"], [1], [""]), model.pixels
    pictures = model.sample(Cond(["a blue disc"] * 2, [1, 1], ["", ""]), [100, 101])
    plain = model.sample(cond, [3])
    at = [
        model.sample(cond, [3], source=Source(pictures[:1].numpy(), strength=strength)) for strength in (0.0, 0.5, 1.0)
    ]
    assert psnr(at[0], pictures[:1]) > psnr(plain, pictures[:1]) + 3
    assert psnr(at[1], plain) > psnr(at[0], plain)
    torch.testing.assert_close(at[2], plain, atol=1e-4, rtol=1e-4)
    blend = model.sample(cond, [3], source=Source(pictures.numpy(), strength=0.0))
    assert min(psnr(blend, picture[None]) for picture in pictures) > min(
        psnr(plain, picture[None]) for picture in pictures
    )
    hole = np.zeros((1, 1, side, side), np.float32)
    hole[..., side // 2 :] = 1
    fill = model.sample(cond, [3], source=Source(pictures[:1].numpy(), hole))
    half = slice(0, side // 2)
    assert psnr(fill[..., half], pictures[:1, ..., half]) > psnr(plain[..., half], pictures[:1, ..., half]) + 3
    together = model.sample(
        Cond(["a fox", "a red disc"], [0, 1], ["", ""]), [9, 3], source=Source(pictures[:1].numpy(), hole)
    )
    torch.testing.assert_close(together[1:], fill, atol=1e-4, rtol=1e-4)


def test_an_exported_gan_edits_nothing() -> None:
    model = small()
    assert model.edits == ("image", "images", "mask") and model.runtime()["edits"] == []


@pytest.mark.parametrize(
    "config",
    [SMALL, ALIAS_FREE, ON_LATENTS, BLOCKS, replace(BLOCKS, depths=(0, 2))],
    ids=["pixels", "alias-free", "latents", "blocks", "only blocks"],
)
def test_the_embedded_runner_draws_what_torch_draws(config: StyleGANConfig, tmp_path) -> None:
    model = small(replace(config, truncation=0.8, guidance=1.5)).eval()
    sessions = {}
    for part, graph in model.graphs().items():
        write_graph(graph, tmp_path / f"{part}.onnx", 32)
        sessions[part] = onnxruntime.InferenceSession(tmp_path / f"{part}.onnx")
    exported = SimpleNamespace(
        runtime=model.runtime(), run=lambda part, outputs=None, **inputs: sessions[part].run(outputs, inputs)
    )
    with torch.no_grad():
        both = model.wanted_and_avoided(DISCS, 0)
    words = {name: tensor.numpy() for name, tensor in zip(WORDS, both.flat(), strict=True)}
    options = {"truncation": 0.8, "guidance": 1.5}
    shown: dict[str, list[np.ndarray]] = {"torch": [], "onnx": []}

    def watch(key: str) -> Watch:
        return Watch(trace=lambda kind, index, array, facts: shown[key].append(array))

    drawn = runner.draw(exported, words, options, 9, watch("onnx"))
    want = model.sample(Cond(["a red disc"], [1], ["a disc"]), [9], watch=watch("torch"), **options).numpy()
    np.testing.assert_allclose(np.clip(drawn, -1, 1), want, atol=1e-4)
    assert len(shown["onnx"]) == len(shown["torch"]) == model.layers
    np.testing.assert_allclose(shown["onnx"], shown["torch"], atol=1e-4)
    np.testing.assert_allclose(shown["onnx"][-1], want[0], atol=1e-4)
    x = torch.randn(1, *model.encoder.shape)
    with torch.no_grad():
        logit = model.critic(x, both[:1]).numpy()
    judged = exported.run("critic", x=x.numpy(), pooled=words["pooled"][:1], style=words["style"][:1])[0]
    np.testing.assert_allclose(judged, logit, atol=1e-4)
