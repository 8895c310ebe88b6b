"""Getting models: the hub's real client against a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import fake_hub
import pytest

from imagewright.engines.pretrained.hub import File, chosen
from imagewright.errors import ModelError

WEIGHTS = b"w" * 100_000
PARTS = {"_class_name": "X", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "safety_checker": ["x", "S"]}
SD = {
    "model_index.json": json.dumps(PARTS).encode(),
    "README.md": b"hello",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS * 2,
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.bin": WEIGHTS,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": WEIGHTS,
    "vae/diffusion_pytorch_model.fp16.safetensors": WEIGHTS + b"1",
    "safety_checker/model.safetensors": WEIGHTS,
    "sd-full.safetensors": WEIGHTS * 3,
    "sd-full.ckpt": WEIGHTS,
}
HALF = {
    "model_index.json",
    "README.md",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}


@pytest.fixture
def hub() -> Iterator[fake_hub.FakeHub]:
    with fake_hub.running() as running:
        running.repositories["org/sd"] = fake_hub.Repository(dict(SD))
        yield running


def get(hub: fake_hub.FakeHub, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`imagewright models get` as a process whose hub is this one."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), **more}
    command = [sys.executable, "-m", "imagewright", "models", "get", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def there(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_model_is_fetched_without_pickles_and_found_again(hub: fake_hub.FakeHub, home: Path) -> None:
    done = get(hub, home, "org/sd", "--yes")
    assert done.returncode == 0, done.stderr
    assert "licence mit" in done.stdout
    folder = Path(done.stdout.splitlines()[-2])
    assert there(folder) == {name: SD[name] for name in HALF}
    code = "from imagewright.engines.pretrained.sources import cached; print(cached('org/sd'))"
    env = {**os.environ, "HF_HOME": str(home / "hf")}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == str(folder), found.stderr

    before = sum(sent for _, _, sent in hub.asked)
    assert get(hub, home, "org/sd", "--yes").returncode == 0
    assert sum(sent for _, _, sent in hub.asked) - before < len(WEIGHTS)  # the weights are not fetched again


def test_a_download_that_broke_off_goes_on(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    large = bytes(range(256)) * 100_000  # the client writes in blocks of 10 MB
    hub.repositories["org/large"] = fake_hub.Repository({"large.safetensors": large})
    hub.cut["large.safetensors"] = 15_000_000
    done = get(hub, home, "org/large", "--yes", "--to", str(tmp_path / "large"))
    assert done.returncode == 0, done.stderr
    assert there(tmp_path / "large") == {"large.safetensors": large}
    first, second = hub.sent("large.safetensors")
    assert (first, second) == (15_000_000, len(large) - 10 * 2**20)


def test_bytes_that_differ_from_their_hash_are_refused(hub: fake_hub.FakeHub, home: Path, tmp_path: Path) -> None:
    name = "vae/diffusion_pytorch_model.fp16.safetensors"
    hub.repositories["org/sd"].lies.add(name)
    done = get(hub, home, "org/sd", "--yes", "--to", str(tmp_path))
    assert done.returncode == 2
    assert name in done.stderr
    assert "deleted" in done.stderr
    assert not (tmp_path / name).exists()
    hub.repositories["org/sd"].lies.clear()
    assert get(hub, home, "org/sd", "--yes", "--to", str(tmp_path)).returncode == 0
    assert (tmp_path / name).read_bytes() == SD[name]


def test_nothing_is_fetched_before_the_licence_is_accepted(hub: fake_hub.FakeHub, home: Path) -> None:
    done = get(hub, home, "org/sd")
    assert done.returncode == 2
    assert "licence mit" in done.stdout
    assert "--yes" in done.stderr
    assert max(sent for _, _, sent in hub.asked) < len(WEIGHTS)


def test_a_gated_model_says_what_to_do(hub: fake_hub.FakeHub, home: Path) -> None:
    hub.repositories["org/gated"] = fake_hub.Repository({"model.safetensors": WEIGHTS}, "other", gated=True)
    done = get(hub, home, "org/gated", "--yes")
    assert done.returncode == 1
    assert "gated" in done.stderr
    assert f"{hub.url}/org/gated" in done.stderr
    assert "hf auth login" in done.stderr


@pytest.mark.parametrize(
    ("name", "more", "code", "said"),
    [
        ("org/nothing", {}, 2, "no repository org/nothing"),
        ("nothing", {}, 2, "ORG/NAME"),
        ("../../etc", {}, 2, "ORG/NAME"),
        ("org/sd", {"HF_HUB_OFFLINE": "1"}, 1, "cannot be reached"),
        ("org/sd", {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "cannot be reached"),
    ],
)
def test_what_cannot_be_had_is_said(
    hub: fake_hub.FakeHub, home: Path, name: str, more: Mapping[str, str], code: int, said: str
) -> None:
    done = get(hub, home, name, "--yes", **more)
    assert done.returncode == code, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_larger_than_the_disk_is_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from imagewright.engines.pretrained import hub
    from imagewright.errors import OutputError

    much = hub.Offer("org/sd", "r", "mit", False, "", (File("a.safetensors", 10**18, ""),))
    with pytest.raises(OutputError, match=r"1000000000\.0 GB"):
        hub.fetch(much, tmp_path / "not" / "yet" / "there")


def files(*names: str) -> list[File]:
    return [File(name, 1, "") for name in names]


def test_the_plain_weights_where_not_all_parts_have_half() -> None:
    there = files("model_index.json", "unet/m.safetensors", "unet/m.fp16.safetensors", "vae/m.safetensors")
    found = chosen(there, {"unet": ["diffusers", "U"], "vae": ["diffusers", "V"]})
    assert {file.path for file in found} == {"model_index.json", "unet/m.safetensors", "vae/m.safetensors"}


def test_shards_stay_together() -> None:
    shards = [f"transformer/m.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    there = files(*shards, "transformer/m-00001-of-00001.safetensors")
    assert [file.path for file in chosen(there, {"transformer": ["diffusers", "T"]})] == shards


def test_a_component_with_pickles_only_is_refused() -> None:
    there = files("unet/m.safetensors", "vae/m.bin")
    with pytest.raises(ModelError, match=r"vae is there only as m\.bin"):
        chosen(there, {"unet": ["diffusers", "U"], "vae": ["diffusers", "V"]})
    with pytest.raises(ModelError, match="can run code"):
        chosen(there, {}, ["vae/*"])
    with pytest.raises(ModelError, match="No file there is called a"):
        chosen(there, {}, ["a"])


def test_a_lora_is_one_file() -> None:
    there = files("README.md", "lora.safetensors", "lora.bin", "picture.png")
    assert {file.path for file in chosen(there, {})} == {"README.md", "lora.safetensors"}
