"""`imagewright models`: what is here, what is recommended, and the cache of conversions."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from imagewright import cli
from imagewright.engines.pretrained import conversions, recommended
from imagewright.engines.pretrained.recommended import Recommended

RATES = {"convolution": 2e11, "product": 1e11, "attention": 5e10}


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommended, "rates", lambda: RATES)


def test_the_list_is_short_and_says_what_one_must_know(known_rates: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "--recommended"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 8 <= len(lines) - 2 <= 12
    for entry, line in zip(recommended.recommended(), lines[1:], strict=False):
        assert entry.id in line
        assert entry.licence in line
        assert entry.commercial in line
        assert line.endswith(entry.date)


def test_the_entries_make_sense() -> None:
    entries = recommended.recommended()
    assert len({entry.id for entry in entries}) == len(entries)
    tasks = " ".join(entry.task for entry in entries)
    for wanted in ("fast on a CPU", "best quality", "fill", "instruction", "ControlNet", "IP-Adapter", "few steps"):
        assert wanted in tasks
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.id)
        assert re.fullmatch(r"20\d\d-[01]\d", entry.date)
        assert entry.commercial in ("yes", "no", "conditions")
        assert entry.memory_gb >= 2 * entry.parameters_millions / 1000 - 0.1
        assert 1.5 <= 1000 * entry.download_gb / entry.parameters_millions <= 4.3  # bytes of a parameter


def test_the_time_is_operations_over_rates() -> None:
    entry = Recommended(
        task="t",
        id="a/b",
        about="",
        licence="MIT",
        commercial="yes",
        parameters_millions=1000,
        download_gb=2,
        date="2024-01",
        size=512,
        steps=10,
        step_gflop={"convolution": 200, "product": 100, "attention": 50},
        rest_gflop={"convolution": 400, "product": 0, "attention": 0},
    )
    assert entry.seconds(RATES) == pytest.approx(10 * (1 + 1 + 1) + 2)
    assert entry.seconds({kind: 2 * rate for kind, rate in RATES.items()}) == pytest.approx(16)


def test_the_list_as_json(known_rates: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "--recommended", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["models"]
    timed = [entry for entry in entries if entry["steps"]]
    assert all(entry["seconds_here"] > 0 for entry in timed)
    assert len(timed) < len(entries)  # an add-on has no time of its own


def test_without_torch_the_list_lacks_only_the_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recommended, "find_spec", lambda name: None)
    assert cli.run(["models", "--recommended"]) == 0
    told = capsys.readouterr()
    assert "?, 25 steps, 512 px" in told.out
    assert "imagewright[pretrained]" in told.err


def test_the_list_counts_as_a_real_network_does() -> None:
    pytest.importorskip("diffusers")
    import diffusers
    import torch

    from imagewright.engines.pretrained import estimate

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    work = estimate.denoising(unet, 64, 64, 2)
    entry = next(e for e in recommended.recommended() if e.id.endswith("/stable-diffusion-v1-5"))
    assert work is not None
    assert sum(entry.step_gflop.values()) * 1e9 == pytest.approx(work.total, rel=0.01)
    assert entry.parameters_millions * 1e6 > sum(p.numel() for p in unet.parameters())


def test_listing_needs_no_torch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "diffusers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.run(["models"]) == 0
    assert "stickers-diffusion" in capsys.readouterr().out


def test_getting_needs_the_hubs_client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.run(["models", "get", "org/name", "--yes"]) == 2
    assert "imagewright[pretrained]" in capsys.readouterr().err


def test_the_cache_is_cleared(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "clear-cache"]) == 0
    assert "0 MB freed" in capsys.readouterr().out
    kept = conversions.Kept("something")
    with kept.lock():
        kept.save(lambda path: path.write_bytes(bytes(3_000_000)) and None)
    assert kept.there()
    assert cli.run(["models", "clear-cache"]) == 0
    assert "3.0 MB freed" in capsys.readouterr().out
    assert not kept.there()
    assert not conversions.folder().exists()


def test_a_conversion_is_whole_or_not_there(home: Path) -> None:
    kept = conversions.Kept("something")

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with kept.lock(), pytest.raises(OSError, match="No space"):
        kept.save(fails)
    assert not kept.there()
    assert [file.suffix for file in conversions.folder().iterdir()] == [".lock"]

    kept.save(lambda path: path.write_bytes(b"whole") and None)
    kept.checked("[(1, 2)]", 50.0)
    again = conversions.Kept("something")
    assert again.there()
    assert again.about["checks"] == {"[(1, 2)]": 50.0}
    kept.graph.write_bytes(b"cut")
    assert not again.there()
    (kept.folder / "about.json").write_text("[]")
    assert not again.there()
