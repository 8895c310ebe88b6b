"""Realism: a critic's logit, ranked among those of real pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import discs_source

from imagewright.data.batch import STYLES
from imagewright.errors import ModelCorruptError, ModelNotFoundError
from imagewright.export import export
from imagewright.models.encoders import PixelsConfig
from imagewright.models.stylegan import StyleGAN, StyleGANConfig
from imagewright.models.technique import Words
from imagewright.models.text import load_pretrained
from imagewright.refine.realism import Critic, Realism, write_reference
from imagewright.training.config import TrainConfig
from imagewright.training.loop import train

CONFIG = StyleGANConfig(
    encoder=PixelsConfig(size=16), z=8, w=32, widths=(16, 16), depths=(1, 1), critic_widths=(16, 16)
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported GAN and an empty folder for judges beside it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = StyleGAN(CONFIG)
    model.text.load_state_dict(load_pretrained().state_dict())
    train(model, discs_source(16), TrainConfig(batch=8, steps=2, precision="fp32", warmup=0), folder / "run")
    export(folder / "run", folder / "gan", name="gan", bits=32)
    (folder / "judges").mkdir()
    return folder


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 4), np.uint8), "RGBA") for _ in range(count)]


def test_the_logits_are_those_of_torch(models: Path) -> None:
    from imagewright.refine.judge import fitted
    from imagewright.training.checkpoint import load_model

    model = load_model(models / "run")
    shown = pictures(3)
    pixels = torch.from_numpy(np.stack([fitted(p, 16) for p in shown])).permute(0, 3, 1, 2).float() / 127.5 - 1
    words: Words = model.prompted(["a red disc"] * 3, [STYLES.index("any")] * 3)
    with torch.no_grad():
        want = model.critic(model.encoder.encode(pixels), words).reshape(-1).numpy()
    np.testing.assert_allclose(Critic(models / "gan").logits(shown, ["a red disc"] * 3), want, atol=1e-3)


def test_a_score_is_the_share_of_real_pictures_that_look_less_real(models: Path) -> None:
    shown = pictures(9)
    write_reference(models / "gan", shown, ["a disc"] * 9, models / "judges")
    judge = Realism(models / "judges")
    scores = sorted(judge.score(picture, "a disc") for picture in shown)
    np.testing.assert_allclose(scores, np.arange(1, 10) / 9)


def test_a_reference_of_another_critic_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        Realism(tmp_path)
    write_reference(models / "gan", pictures(2), ["a disc"] * 2, models / "judges")
    told = json.loads((models / "judges" / "realism.json").read_text())
    (models / "other").mkdir(exist_ok=True)
    (models / "other" / "realism.json").write_text(json.dumps({**told, "critic": "0" * 64}))
    with pytest.raises(ModelCorruptError, match="another"):
        Realism(models / "other")
