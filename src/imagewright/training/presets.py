"""The table of presets: for each technique, what to build and how to train it.

`tiny` runs in seconds (tests, a first try), `cpu` is meant for two cores and hours, `gpu` for one large accelerator
and minutes, with networks of a size that all four can ship together; `pixels` is `cpu` without an autoencoder, `unet`
and `unet-latents` have the other network, `edm` and `ddpm` are the recipes of those papers (`ddpm` on 28 px digits). A
diffusion model on latents first trains the autoencoder of the preset of the same name, or of `cpu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagewright.errors import OptionError
from imagewright.models.autoencoder import AutoencoderConfig
from imagewright.models.consistency import ConsistencyConfig
from imagewright.models.diffusion import DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import CodesConfig, LatentsConfig, PixelsConfig
from imagewright.models.gan import GANConfig
from imagewright.models.gpt import GPTConfig
from imagewright.models.hvae import HVAEConfig
from imagewright.models.judge import AttributeJudgeConfig, EncoderJudgeConfig, MatchJudgeConfig
from imagewright.models.stylegan import StyleGANConfig
from imagewright.models.unet import UNetConfig
from imagewright.models.vae import VAEConfig
from imagewright.models.var import VARConfig
from imagewright.models.vqvae import TokenizerConfig
from imagewright.training.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """A model config, how to train it, and the share of composed scenes among its batches."""

    model: Any
    train: TrainConfig
    scenes_share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.scenes_share <= 1:
            raise OptionError(f"scenes_share cannot be {self.scenes_share}.", "Use 0 to 1.")


_AE_TINY = AutoencoderConfig(size=32, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=8)
_AE_64 = AutoencoderConfig(size=64)
_AE_128 = AutoencoderConfig(
    size=128, widths=(48, 96, 160, 224), encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 2, 2, 2), latent=32
)
_TOK_TINY = TokenizerConfig(size=32, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), levels=(8, 5, 5, 5))
_TOK_64 = TokenizerConfig()
_TOK_VAR = TokenizerConfig(quantiser="vq", latent=16, codebook=2048, coarse_scales=(1, 2, 4, 6))
_TOK_128 = TokenizerConfig(
    size=128, widths=(32, 64, 112, 160), encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 2, 2)
)

_JUDGE_TINY: dict[str, Any] = {"size": 32, "widths": (16, 32, 32), "blocks": (1, 1, 1)}

_HVAE_PIXELS: dict[str, Any] = {
    "widths": (256, 256, 192, 128, 64), "middles": (64, 64, 64, 48, 32), "latents": (32, 16, 16, 8, 4),
    "blocks": (2, 3, 3, 3, 2), "encoder_blocks": (1, 1, 1, 1, 1), "readers": (), "finishers": (), "attending": 2,
    "cond": 192, "scale": .2, "warmup": 300, "blind_every": 0,
}  # fmt: skip


def _judge(steps: int, seed: int, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"batch": 128, "steps": steps, "seed": seed, "lr": 2e-3, "schedule": "cosine", "ema": 0.995,
                          "weight_decay": 0.05, "checkpoint_minutes": 2, "sample_every": 0, "heldout_every": 200,
                          **changes})  # fmt: skip


def _gan(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"lr": 5e-4, "warmup": 100, "cooldown": 0.25, "weight_decay": 0.0, "clip": 0.0, **changes})


def _gan_article() -> TrainConfig:
    return _gan(batch=64, steps=3_000, lr=2e-4, warmup=0, schedule="constant", precision="fp32", ema=0.9,
                checkpoint_minutes=2, sample_every=500, heldout_every=500)  # fmt: skip


# fmt: off
PRESETS: dict[str, dict[str, Preset]] = {
    "autoencoder": {
        "tiny": Preset(_AE_TINY, TrainConfig(batch=16, steps=200, lr=2e-3, warmup=20, ema=.98,
                                             checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "cpu":  Preset(_AE_64, TrainConfig(batch=32, steps=2_400, lr=2e-3, warmup=100, schedule="cosine", ema=.995,
                                           checkpoint_minutes=3, sample_every=400, heldout_every=400), .15),
        "gpu":  Preset(_AE_128, TrainConfig(batch=256, steps=16_000, lr=2e-3, warmup=200, cooldown=.4, fit=True,
                                            ema=.999, compile=True, checkpoint_minutes=1,
                                            sample_every=1_500, heldout_every=1_500), .2),
    },
    "diffusion": {
        "tiny": Preset(DiffusionConfig(LatentsConfig(_AE_TINY), DiTConfig(width=64, depth=2, heads=2, patch=1,
                                                                           copies=True),
                                       steps=8, edit_share=.3),
                       TrainConfig(batch=32, steps=200, lr=1e-3, warmup=20, ema=.98,
                                   checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "cpu":  Preset(DiffusionConfig(LatentsConfig(_AE_64), DiTConfig(width=384, depth=8, heads=6, patch=2,
                                                                         copies=True), edit_share=.3),
                       TrainConfig(batch=128, steps=6_000, lr=1e-3, warmup=100, cooldown=.25, muon=True, ema=.998,
                                   checkpoint_minutes=5, sample_every=400, heldout_every=400), .2),
        "pixels": Preset(DiffusionConfig(PixelsConfig(size=64), DiTConfig(width=384, depth=8, heads=6, patch=8)),
                         TrainConfig(batch=128, steps=6_000, lr=1e-3, warmup=100, cooldown=.25, muon=True, ema=.998,
                                     checkpoint_minutes=5, sample_every=400, heldout_every=400), .2),
        "gpu":  Preset(DiffusionConfig(LatentsConfig(_AE_128), edit_share=.3,
                                       network=DiTConfig(width=384, depth=8, heads=6, patch=1, dropout=.05,
                                                         copies=True)),
                       TrainConfig(batch=1024, steps=24_000, lr=1e-3, warmup=300, cooldown=.3, fit=True, muon=True,
                                   ema=.9995, compile=True, checkpoint_minutes=1,
                                   sample_every=4_000, heldout_every=2_000), .4),
        "unet": Preset(DiffusionConfig(PixelsConfig(size=64), UNetConfig()),
                       TrainConfig(batch=64, steps=8_000, lr=5e-4, warmup=200, cooldown=.25, ema=.998,
                                   checkpoint_minutes=5, sample_every=500, heldout_every=500), .2),
        "unet-latents": Preset(DiffusionConfig(LatentsConfig(_AE_64), UNetConfig(patch=1, widths=(128, 192))),
                               TrainConfig(batch=128, steps=6_000, lr=5e-4, warmup=200, cooldown=.25, ema=.998,
                                           checkpoint_minutes=5, sample_every=400, heldout_every=400), .2),
        # t_mean: the paper's -1.2 plus ln 2, because the data's deviation here is twice its 0.5
        "edm": Preset(DiffusionConfig(PixelsConfig(size=64), UNetConfig(), process="edm", prediction="edm",
                                      times="log_normal", t_mean=-.5, t_std=1.2, sampler="heun", steps=18),
                      TrainConfig(batch=64, steps=8_000, lr=5e-4, warmup=200, cooldown=.25, ema=.998,
                                  checkpoint_minutes=5, sample_every=500, heldout_every=500), .2),
        "ddpm": Preset(DiffusionConfig(PixelsConfig(size=28), UNetConfig(patch=2, widths=(32, 64), blocks=1,
                                                                         attention=1),
                                       process="cosine", prediction="eps", times="uniform", known_share=0.,
                                       sampler="ancestral", steps=100, guidance=2.),
                       TrainConfig(batch=64, steps=4_000, lr=2e-3, warmup=100, ema=.995, checkpoint_minutes=2,
                                   sample_every=500, heldout_every=500), 0.),
    },
    "consistency": {  # the network is that of the run that it starts from
        "tiny": Preset(ConsistencyConfig(LatentsConfig(_AE_TINY), DiTConfig(width=64, depth=2, heads=2, patch=1,
                                                                             copies=True),
                                         edit_share=.3, halvings=2, halve_every=50),
                       TrainConfig(batch=32, steps=200, lr=3e-4, warmup=20, ema=.98,
                                   checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "cpu":  Preset(ConsistencyConfig(LatentsConfig(_AE_64), DiTConfig(width=384, depth=8, heads=6, patch=2,
                                                                           copies=True), edit_share=.3),
                       TrainConfig(batch=32, steps=1_200, lr=4e-4, warmup=10, cooldown=.25, ema=.98,
                                   checkpoint_minutes=5, sample_every=300, heldout_every=300), .2),
        "gpu":  Preset(ConsistencyConfig(LatentsConfig(_AE_128), edit_share=.3, halve_every=800,
                                         network=DiTConfig(width=384, depth=8, heads=6, patch=1, copies=True)),
                       TrainConfig(batch=512, steps=8_000, lr=4e-4, warmup=100, cooldown=.25, fit=True, ema=.998,
                                   compile=True, checkpoint_minutes=1,
                                   sample_every=1_500, heldout_every=1_500), .4),
    },
    "autoregressive": {
        "tiny": Preset(GPTConfig(CodesConfig(_TOK_TINY), width=64, depth=2, heads=2),
                       TrainConfig(batch=32, steps=200, lr=1e-3, warmup=20, ema=.98,
                                   checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "cpu":  Preset(GPTConfig(CodesConfig(_TOK_64)),
                       TrainConfig(batch=64, steps=6_000, lr=1e-3, warmup=100, cooldown=.25, muon=True, ema=.998,
                                   checkpoint_minutes=5, sample_every=500, heldout_every=500), .2),
        "var":  Preset(VARConfig(CodesConfig(_TOK_VAR)),
                       TrainConfig(batch=64, steps=6_000, lr=1e-3, warmup=100, cooldown=.25, muon=True, ema=.998,
                                   checkpoint_minutes=5, sample_every=500, heldout_every=500), .2),
        "gpu":  Preset(GPTConfig(CodesConfig(_TOK_128), width=160, depth=6, heads=5),
                       TrainConfig(batch=1024, steps=16_000, lr=1e-3, warmup=300, cooldown=.35, fit=True, muon=True,
                                   ema=.999, compile=True, checkpoint_minutes=1,
                                   sample_every=4_000, heldout_every=1_000), .4),
    },
    "tokenizer": {
        "tiny": Preset(_TOK_TINY, TrainConfig(batch=16, steps=200, lr=2e-3, warmup=20, ema=.98,
                                              checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "cpu":  Preset(_TOK_64, TrainConfig(batch=32, steps=5_000, lr=2e-3, warmup=100, schedule="cosine", ema=.995,
                                            checkpoint_minutes=3, sample_every=500, heldout_every=500), .15),
        "gpu":  Preset(_TOK_128, TrainConfig(batch=256, steps=16_000, lr=2e-3, warmup=200, cooldown=.4, fit=True,
                                             ema=.999, compile=True, checkpoint_minutes=1,
                                             sample_every=1_500, heldout_every=1_500), .2),
    },
    "judge": {
        "encoder":    Preset(EncoderJudgeConfig(patch=4, widths=(64, 112, 144), blocks=(1, 1, 1), palette=7),
                             _judge(3_000, 11, muon=True, heldout_every=500), .15),
        "match":      Preset(MatchJudgeConfig(patch=4, widths=(64, 128, 144), blocks=(1, 1, 1)),
                             _judge(4_000, 22), .35),
        "attributes": Preset(AttributeJudgeConfig(patch=4, widths=(64, 96, 112), blocks=(1, 1, 1), palette=6),
                             _judge(4_000, 33, muon=True, heldout_every=500), .5),
        "tiny-encoder":    Preset(EncoderJudgeConfig(**_JUDGE_TINY, features=32, palette=4),
                                  _judge(150, 1, batch=32, warmup=10, ema=.95), .15),
        "tiny-match":      Preset(MatchJudgeConfig(**_JUDGE_TINY, features=32),
                                  _judge(150, 2, batch=32, warmup=10, ema=.95), .35),
        "tiny-attributes": Preset(AttributeJudgeConfig(**_JUDGE_TINY, slot=32, palette=4),
                                  _judge(150, 3, batch=32, warmup=10, ema=.95), .9),
    },
    "vae": {
        "tiny": Preset(HVAEConfig(LatentsConfig(_AE_TINY), widths=(64, 32, 32), middles=(16, 16, 16), cond=64),
                       TrainConfig(batch=32, steps=200, lr=2e-3, warmup=20, muon=True, ema=.98,
                                   checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "article": Preset(VAEConfig(size=28, widths=(), latent=20, conditional=False, warmup=0, temperature=1.0),
                          TrainConfig(batch=128, steps=2_000, lr=1e-3, warmup=20, ema=.99, precision="fp32",
                                      checkpoint_minutes=5, sample_every=500, heldout_every=500)),
        "conv": Preset(VAEConfig(),
                       TrainConfig(batch=64, steps=4_000, lr=1e-3, warmup=200, cooldown=.25, ema=.998,
                                   checkpoint_minutes=5, sample_every=500, heldout_every=500), .2),
        "cpu":  Preset(HVAEConfig(LatentsConfig(_AE_64)),
                       TrainConfig(batch=128, steps=3_000, lr=2e-3, warmup=100, cooldown=.35, muon=True, ema=.998,
                                   checkpoint_minutes=5, sample_every=500, heldout_every=500), .1),
        "cpu-pixels": Preset(HVAEConfig(PixelsConfig(size=64), **_HVAE_PIXELS),
                             TrainConfig(batch=32, steps=6_000, lr=1e-3, warmup=100, cooldown=.25, ema=.998,
                                         checkpoint_minutes=5, sample_every=500, heldout_every=500), .2),
        "gpu":  Preset(HVAEConfig(LatentsConfig(_AE_128)),
                       TrainConfig(batch=1024, steps=16_000, lr=2e-3, warmup=300, cooldown=.35, fit=True, muon=True,
                                   ema=.999, compile=True, checkpoint_minutes=1,
                                   sample_every=1_500, heldout_every=1_500), .3),
    },
    "gan": {
        "article":       Preset(GANConfig(), _gan_article(), 0.),
        "article-small": Preset(GANConfig(hidden=128), _gan_article(), 0.),
        "tiny": Preset(StyleGANConfig(LatentsConfig(_AE_TINY), z=32, w=64, widths=(64, 32), depths=(1, 2), blocks=1,
                                      critic_widths=(64, 32), pull=5., alone=3, tries=2),
                       _gan(batch=32, steps=200, warmup=20, ema=.98,
                            checkpoint_minutes=2, sample_every=100, heldout_every=100)),
        "cpu":  Preset(StyleGANConfig(LatentsConfig(_AE_64), depths=(0, 2), blocks=4, pull=5., alone=500, tries=4),
                       _gan(batch=64, steps=4_000, lr=1e-3, cooldown=.5, muon=True, ema=.995,
                            checkpoint_minutes=5, sample_every=500, heldout_every=1_000), .1),
        "cpu-pixels": Preset(StyleGANConfig(PixelsConfig(size=64), widths=(256, 192, 96, 48), depths=(2, 2, 2, 2),
                                            critic_widths=(256, 192, 96, 48)),
                             _gan(batch=32, steps=12_000, ema=.998,
                                  checkpoint_minutes=5, sample_every=1_000, heldout_every=1_000), .2),
        "alias-free": Preset(StyleGANConfig(PixelsConfig(size=32), widths=(96, 64), depths=(3, 3),
                                            critic_widths=(256, 128, 64), alias_free=True),
                             _gan(batch=32, steps=12_000, ema=.998,
                                  checkpoint_minutes=5, sample_every=1_000, heldout_every=1_000), .2),
        "gpu":  Preset(StyleGANConfig(LatentsConfig(_AE_128), depths=(0, 2), blocks=4, pull=5., alone=500, tries=4,
                                      penalty_every=1),
                       _gan(batch=512, steps=24_000, lr=1e-3, warmup=300, cooldown=.5, fit=True, muon=True, ema=.999,
                            compile=True, checkpoint_minutes=1, sample_every=1_500, heldout_every=1_500), .2),
    },
}
# fmt: on
