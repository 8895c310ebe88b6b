"""Diffusion: a network, a process and a parameterisation make an image model.

One contract for the textbook forms. With x_t = alpha_t x_0 + sigma_t noise the network may predict

    eps    the noise                          DDPM, arXiv:2006.11239, equation 14
    x0     the picture                        loss on the velocity it implies, as JiT does (arXiv:2511.13720)
    v      alpha_t noise - sigma_t x_0        arXiv:2202.00512, appendix D
    flow   noise - x_0, the path's velocity   flow matching, arXiv:2210.02747, equation 20 with t reversed
    edm    the preconditioned residual        arXiv:2206.00364, equation 7

and the times of training are drawn `uniform` (DDPM, algorithm 1), `logit_normal` (arXiv:2403.03206, equation 19) or
with a `log_normal` sigma (EDM, table 1). t = 0 is data and t = 1 is noise, everywhere. docs/diffusion.md tells when to
use which. Deviation: on pixels the estimate of x_0 is clipped to their range, as DDPM's code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws
from imagewright.models.dit import DiT, DiTConfig
from imagewright.models.encoders import LatentsConfig, Pixels, PixelsConfig, build_encoder
from imagewright.models.layers import compile_each
from imagewright.models.samplers import (
    EDM,
    PROCESSES,
    SAMPLERS,
    Denoise,
    Process,
    guided,
    invert_ddim,
    noise_source,
    observed,
    stopped,
    word_maps,
)
from imagewright.models.start import Start, anchored, begin, decoded_as_tile, rolled, roller, start_of
from imagewright.models.technique import WORDS, Call, Cond, Graph, Prompted, Words
from imagewright.models.text import TextConfig
from imagewright.models.unet import UNet, UNetConfig
from imagewright.source import Floats, Source
from imagewright.watch import Watch

Prediction = Literal["eps", "x0", "v", "flow", "edm"]
Times = Literal["uniform", "logit_normal", "log_normal"]
NETWORKS: dict[type, Callable[[Any], nn.Module]] = {DiTConfig: DiT, UNetConfig: UNet}
SIGMA_DATA = 1.0  # deviation of what the encoder gives
EDITED = -1.0  # the mask where what is known is the picture before an instruction


@dataclass(frozen=True)
class DiffusionConfig:
    """`times`: how those of training are drawn; `t_mean`, `t_std`: of the normal numbers behind them, logit t or, for
    `log_normal`, ln sigma (EDM's P_mean and P_std). `drop_text`, `drop_style`: share of rows trained without them.
    `known_share`: share of rows that see a part of the picture. `edit_share`: share of rows that see the picture that
    an instruction starts from, where the data has such. `train_text`: train the text encoder too, instead of keeping
    what it was taught. `steps`, `guidance`, `interval` (of t, where guidance acts), `sampler`, `tile` (the picture goes
    on at its opposite edges), `stop` (sampling ends after that share of the steps): defaults of sampling."""

    encoder: LatentsConfig | PixelsConfig = field(default_factory=LatentsConfig)
    network: DiTConfig | UNetConfig = field(default_factory=DiTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    process: str = "flow"
    prediction: Prediction = "x0"
    times: Times = "logit_normal"
    t_mean: float = 0.0
    t_std: float = 1.0
    drop_text: float = 0.1
    drop_style: float = 0.15
    known_share: float = 0.2
    edit_share: float = 0.0
    train_text: bool = False
    steps: int = 16
    guidance: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = "dpmpp_2m"
    tile: bool = False
    stop: float = 1.0

    def __post_init__(self) -> None:
        if (self.prediction == "edm") != (self.process == "edm"):
            raise ValueError("The edm prediction and the edm process go together.")
        if self.times == "log_normal" and self.process != "edm":
            raise ValueError("log_normal times are for the edm process.")


@dataclass(frozen=True)
class Exercise:
    """Data `x0` (B, C, h, w) to find in what `noise` and `t` (B,) make of it, told `words`, and shown `known`
    (B, C, h, w) where `mask` (B, 1, h, w) is not 0."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    words: Words
    known: Tensor
    mask: Tensor


class Diffusion(Prompted):
    """Text and style to pictures, by denoising in the space of `config.encoder`."""

    family: ClassVar[str] = "diffusion"
    sampling: ClassVar[tuple[str, ...]] = ("steps", "guidance", "interval", "sampler", "tile", "stop")

    def __init__(self, config: DiffusionConfig) -> None:
        config = fitted(config)
        super().__init__(config)
        self.encoder = build_encoder(config.encoder)
        self.network = NETWORKS[type(config.network)](config.network)
        self.process: Process = PROCESSES[config.process]()

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        encoder = self.config.encoder
        return encoder.size if isinstance(encoder, PixelsConfig) else encoder.autoencoder.size

    def compile_(self) -> None:
        """Compile the blocks in place (torch.compile); parameter names stay."""
        blocks = self.network.blocks if isinstance(self.network, DiT) else [self.network]
        compile_each([*blocks, *self.text.layers])

    def denoised(self, x: Tensor, t: Tensor, words: Words, known: Tensor, mask: Tensor) -> Tensor:
        """The network's estimate of x_0 (B, C, h, w), from x_t and t (B,)."""
        return self._estimate(x, t, *words.flat(), known, mask)[0]

    def _estimate(
        self, x: Tensor, t: Tensor, *condition: Tensor, maps: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x_0, raw prediction). `condition` is what DiT.forward takes after t, `maps` as there."""
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.process.levels(t))
        if self.config.prediction == "edm":  # c_in, c_noise, c_skip and c_out of arXiv:2206.00364, table 1
            root = (sigma**2 + SIGMA_DATA**2).sqrt()
            raw = self.network(x / root, sigma.flatten().log() / 4, *condition, maps=maps).float()
            return x * (SIGMA_DATA / root) ** 2 + raw * (sigma * SIGMA_DATA / root), raw
        raw = self.network(x, t, *condition, maps=maps).float()
        return to_denoised(raw, x, alpha, sigma, self.config.prediction), raw

    def _clipped(self, denoised: Tensor) -> Tensor:
        """An estimate of x_0 inside the range of pixels, where the model works on them."""
        return denoised.clamp(-Pixels.scale, Pixels.scale) if isinstance(self.encoder, Pixels) else denoised

    def _looked(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 (B, C, h, w), and how much of its attention each image token pays to each text token (B, N, L), mean over
        heads and blocks. `inputs` as of _estimate."""
        maps: list[Tensor] = []
        denoised = self._clipped(self._estimate(*inputs, maps=maps)[0])
        return denoised, torch.stack(maps).mean(dim=0)

    def _clean(self, latents: Tensor | None, pixels: Tensor | None) -> Tensor:
        """What the encoder gives for pictures, unless it is there already."""
        if latents is not None:
            return latents
        assert pixels is not None
        return self.encoder.encode(pixels)

    def _training_times(self, draws: Draws) -> Tensor:
        """t (B,) to train at."""
        config = self.config
        if config.times == "uniform":
            return draws.rand()
        normal = config.t_mean + config.t_std * draws.randn()
        if config.times == "logit_normal":
            return torch.sigmoid(normal)
        assert isinstance(self.process, EDM)
        return self.process.time(normal.exp())

    def exercise(self, batch: Batch) -> Exercise:
        """What to denoise: the pictures of a batch at random levels of noise, and what is known of some."""
        x0 = self._clean(batch.latents, batch.pixels)
        draws, config = batch.draws, self.config
        t = self._training_times(draws).to(x0)  # (B,)
        noise = draws.randn(*x0.shape[1:]).to(x0)
        words = self.words(batch)
        mask = random_masks(draws, x0.shape[-1], config.known_share).to(x0)
        known = x0
        if batch.edited is not None and batch.before is not None:
            edited = batch.edited.view(-1, 1, 1, 1)
            before = batch.before if batch.latents is not None else self._clean(None, batch.before)
            known, mask = torch.where(edited, before, x0), torch.where(edited, EDITED, mask)
        return Exercise(x0, noise, t, words, known, mask)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, h, w) of data and noise at t (B,)."""
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.process.levels(t))
        return alpha * x0 + sigma * noise

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """The mean squared error of the prediction (for x0: of the velocity it implies), over (C, h, w)."""
        given = self.exercise(batch)
        x0, noise, t = given.x0, given.noise, given.t
        x = self.noised(x0, noise, t)
        denoised, raw = self._estimate(x, t, *given.words.flat(), given.known, given.mask)
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.process.levels(t))
        error = _error(raw, denoised, x0, noise, alpha, sigma, self.config.prediction)
        return by_noise(error.square().mean((1, 2, 3)), t)

    @property
    def edits(self) -> tuple[str, ...]:
        """An instruction needs training with pictures before and after."""
        return ("image", "images", "mask", *(("instruction",) if self.config.edit_share > 0 else ()), "tile")

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        seeds: Sequence[int],
        *,
        watch: Watch = Watch(),
        source: Source | None = None,
        **options: Any,
    ) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1]. Each row is made alone, so a seed is one picture at any batch size.

        `source`: the picture to start from, if any. `watch` is told of each picture done."""
        chosen = self.chosen(options)
        rows: list[Tensor] = []
        for row, seed in enumerate(seeds):
            words = self.wanted_and_avoided(cond, row)
            pieces = self.tokenizer.names(cond.prompts[row], self.config.text.max_tokens)
            start = self._start(source, words[1:], chosen["steps"])
            rows.append(self._drawn(seed, words, chosen, watch, start, pieces=pieces))
            watch.told(len(rows), len(seeds))
        return torch.cat(rows).clamp(-1, 1)

    @torch.no_grad()
    def render(self, code: Tensor, words: Words, *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1] from codes (B, C, h, w): what `sample` makes, from this noise.

        An inverted code gives its picture back with `guidance=1`. Samplers that add noise add the same to any code."""
        chosen, avoid = self.chosen(options), self.prompted([""], [0])
        length = words.tokens.shape[1]
        avoid = Words(avoid.tokens[:, :length], avoid.pooled, avoid.mask[:, :length], avoid.style)
        rows: list[Tensor] = []
        for row in range(len(code)):
            pairs = zip(words[row : row + 1].flat(), avoid.flat(), strict=True)
            both = Words(*(torch.cat(pair) for pair in pairs))
            rows.append(self._drawn(0, both, chosen, watch, self._start(None), code[row : row + 1]))
            watch.told(len(rows), len(code))
        return torch.cat(rows).clamp(-1, 1)

    @torch.no_grad()
    def invert(self, pixels: Tensor, words: Words, *, steps: int = 50, rounds: int = 1, **options: Any) -> Tensor:
        """The code (B, C, h, w) of pictures, without guidance: DDIM from t = 0 to 1 (arXiv:2010.02502, section 4.3).

        `rounds`: fixed-point iterations on each step, so that `render` in as many steps goes the same way back."""
        return self._inverted(self.encoder.encode(pixels), words, steps, rounds)

    def _inverted(self, latents: Tensor, words: Words, steps: int, rounds: int = 1) -> Tensor:
        condition = (*words.flat(), torch.zeros_like(latents), torch.zeros_like(latents[:, :1]))  # nothing is known

        def denoise(x: Tensor, t: float) -> Tensor:
            return self._clipped(self._estimate(x, torch.full((len(x),), t, device=x.device), *condition)[0])

        x = invert_ddim(denoise, latents, self.process.times(steps)[::-1], self.process, rounds)
        return x / self.process.levels(1.0)[1]

    def code(self, seed: int) -> Tensor:
        """The noise (1, C, h, w) that `sample` starts from with this seed."""
        return _torch_noise(seed, (1, *self.encoder.shape), next(self.parameters()).device)()

    def mix(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """On the great circle from noise `a` to noise `b`: a straight line would pass through less noise."""
        cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = cosine.arccos().view(-1, 1, 1, 1)
        return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()

    def _start(self, source: Source | None, words: Words | None = None, steps: int = 0) -> Start:
        """Where sampling starts; None: from noise, nothing is known. `words` (one row) and `steps` are for inversion,
        where pictures are blended."""
        device = next(self.parameters()).device

        def encode(pixels: Floats) -> Floats:
            return self.encoder.encode(torch.from_numpy(pixels).to(device)).float().cpu().numpy()

        def invert(latents: Floats) -> Floats:
            assert words is not None
            return self._inverted(torch.from_numpy(latents).to(device), words, steps).cpu().numpy()

        return start_of(source, encode, invert, self.encoder.shape).map(lambda a: torch.from_numpy(a).to(device))

    def _drawn(
        self,
        seed: int,
        words: Words,
        chosen: dict[str, Any],
        watch: Watch,
        start: Start,
        code: Tensor | None = None,
        pieces: Sequence[str] = (),
    ) -> Tensor:
        """One picture (1, 4, H, W) from its code (None: the seed's). `words`: two rows, the wanted and the avoided;
        `pieces`: their names, for attention maps."""
        process, device, encoder = self.process, start.known.device, self.encoder
        noise = _torch_noise(seed, (1, *encoder.shape), device)
        begun, times = begin(start, noise() if code is None else code, process, chosen["steps"])
        offset = roller(seed, encoder.shape[-1]) if chosen["tile"] else None
        maps: dict[float, Tensor] | None = {} if watch.tracing and pieces and offset is None else None
        denoise = self._denoiser(words, start, chosen, offset, maps)
        denoise = anchored(denoise, start, encoder.encode, encoder.decode)

        kept = max(1, round(chosen["stop"] * (len(times) - 1)))

        def seen(step: int, t: float, estimate: Tensor) -> None:
            sigma = process.levels(t)[1]
            watch.seen("step", step, kept, lambda: encoder.decode(estimate)[0].float().cpu(), t=t, sigma=sigma)

        if watch.tracing or watch.preview is not None:
            denoise = observed(denoise, times, seen)
        sampled = stopped(SAMPLERS[chosen["sampler"]], chosen["stop"])(denoise, begun, times, process, noise)
        if maps:
            watch.shown("attention", len(times) - 1, word_maps(maps, len(pieces)).cpu(), words=list(pieces))
        if offset:
            return decoded_as_tile(encoder.decode, sampled, lambda array: torch.from_numpy(array).to(device)).float()
        return encoder.decode(sampled).float()

    def _denoiser(
        self,
        words: Words,
        start: Start,
        chosen: dict[str, Any],
        offset: Callable[[float], tuple[int, int]] | None = None,
        maps: dict[float, Tensor] | None = None,
    ) -> Denoise:
        """The guided estimate of x_0 of one picture. `offset`: how far the network sees it rolled at t. `maps`, if
        given, gets the attention (N, L) at each t."""

        def rows(x: Tensor, t: float, count: int) -> Tensor:
            moved = offset(t) if offset else (0, 0)
            seen = [rolled(part, *moved).expand(count, -1, -1, -1) for part in (x, start.known, start.mask)]
            inputs = (seen[0], torch.full((count,), t, device=x.device), *words[:count].flat(), *seen[1:])
            if maps is None:
                return rolled(self._clipped(self._estimate(*inputs)[0]), -moved[0], -moved[1])
            estimate, attention = self._looked(*inputs)
            maps[t] = attention[0]
            return estimate

        def both(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
            estimate = rows(x, t, 2)
            return estimate[:1], estimate[1:]

        return guided(lambda x, t: rows(x, t, 1), both, chosen["guidance"], chosen["interval"])

    def graphs(self) -> dict[str, Graph]:
        """denoiser (x_0 from x_t and the condition, and the attention to each word), decoder and encoder."""
        shape = self.encoder.shape
        x, cells = torch.randn(2, *shape), torch.zeros(2, 1, *shape[1:])
        return {
            "denoiser": Graph(
                Call(self, self._looked),
                (x, torch.rand(2), *self.example_words(), x, cells),
                ("x", "t", *WORDS, "known", "mask"),
                ("denoised", "attention"),
                fast_int8=True,
            ),
            **self.encoder.graphs(),
        }

    def runtime(self) -> dict[str, Any]:
        """The shape of the latents, the process, that the denoiser has the output `attention`, and the edits."""
        shape, edits = list(self.encoder.shape), list(self.edits)
        return {"latent": shape, "process": self.config.process, "attention": True, "edits": edits}


def _torch_noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Callable[[], Tensor]:
    source = noise_source(seed, shape)
    return lambda: torch.from_numpy(source()).to(device)


def fitted(config: DiffusionConfig) -> DiffusionConfig:
    """`config` with the network's input shape and text width taken from the encoder and the text encoder, and without
    a gate for copying where it does not predict the x_0 that it could copy."""
    encoder = config.encoder
    channels, side = (
        (encoder.channels, encoder.size) if isinstance(encoder, PixelsConfig) else encoder.autoencoder.latent_shape[:2]
    )
    network = replace(config.network, channels=channels, side=side, text_width=config.text.width)
    if isinstance(network, DiTConfig) and config.prediction != "x0":
        network = replace(network, copies=False)
    return replace(config, network=network)


def to_denoised(raw: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """x_0 from the network's prediction, given x_t and its levels."""
    if prediction == "x0":
        return raw
    if prediction == "eps":
        return (x - sigma * raw) / alpha.clamp_min(1e-3)
    if prediction == "v":
        return (alpha * x - sigma * raw) / (alpha**2 + sigma**2)
    return (x - sigma * raw) / (alpha + sigma)  # flow


def by_noise(error: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Each row's error (B,) as the loss, and to look at, its mean at low and at high t (B,)."""
    low = t < 0.5
    return {
        "loss": error.mean(),
        "loss_low_t": (error * low).sum().detach() / low.sum().clamp_min(1),
        "loss_high_t": (error * ~low).sum().detach() / (~low).sum().clamp_min(1),
    }


def _error(
    raw: Tensor, denoised: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: str
) -> Tensor:
    if prediction == "eps":
        return raw - noise
    if prediction == "v":
        return raw - (alpha * noise - sigma * x0)
    if prediction == "flow":
        return raw - (noise - x0)
    if prediction == "edm":
        return (denoised - x0) * (sigma**2 + SIGMA_DATA**2).sqrt() / (sigma * SIGMA_DATA)
    return (denoised - x0) / sigma.clamp_min(0.05)  # x0: the velocity's error, (x - x_0) / sigma


def random_masks(draws: Draws, side: int, share: float) -> Tensor:
    """(B, 1, side, side): 1 where the picture is known. All 0 but for `share` of the rows, which know the inside or
    the outside of a random box."""
    u = draws.rand(6)
    low = (u[:, 0:2] * side * 0.75).floor()  # box corner
    high = low + 1 + (u[:, 2:4] * (side - low)).floor()
    cells = torch.arange(side, device=u.device)
    inside = (cells >= low[:, :, None]) & (cells < high[:, :, None])  # (B, 2, side)
    box = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].float()
    known = torch.where(u[:, 4, None, None, None] < 0.7, 1 - box, box)
    return known * (u[:, 5, None, None, None] < share)
