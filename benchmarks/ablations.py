"""What makes a difference at small compute: python benchmarks/ablations.py DATA AUTOENCODER OUT [--pictures 20000]

Each arm is one named change to a small proxy of the diffusion preset, trained on an autoencoder's latents, one thread.
All get the CPU time in which the baseline sees `--pictures` pictures: an arm whose steps cost more or less takes fewer
or more of them, by a ratio that is measured with steps of both in turn, so that a busy machine slows both alike.
Measured with the averaged weights, in the same way for all predictions:

    held-out, seen, scenes   the squared error of the velocity that the estimate of x_0 implies, at fixed noise, mean
                             over t in GRID, on stickers never trained on, training stickers and training scenes
    match, R@1               of 8-step guided drawings of seen captions, by the judge that ships

OUT/arms.jsonl gets a line as each arm ends, and what is there is not done again; `--table` prints it.
`--seeds 1 2 --only baseline` repeats an arm with other weights, data and noise: that spread is no difference.
AUTOENCODER is its run folder, where the latents are kept too. Growing the patches' number in the middle of a run is
progressive training as in arXiv:1710.10196, here with the blocks kept and only the outer layers cut up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from imagewright.data.batch import STYLES, Batch, Draws
from imagewright.data.captions import natural
from imagewright.data.loader import CaptionedFolder
from imagewright.evaluation.judging import caption_scores
from imagewright.evaluation.metrics import Estimate, bootstrap, retrieval, wilson
from imagewright.evaluation.prompts import training_rows
from imagewright.models.diffusion import Diffusion
from imagewright.models.samplers import SAMPLERS, guided, noise_source
from imagewright.models.technique import Words
from imagewright.models.text import load_pretrained
from imagewright.refine.judge import Judges
from imagewright.source import to_picture
from imagewright.text import Tokenizer
from imagewright.training import overrides
from imagewright.training.checkpoint import load_model
from imagewright.training.config import TrainConfig
from imagewright.training.ema import Ema
from imagewright.training.observe import autocast
from imagewright.training.optim import build_optimizers
from imagewright.training.presets import PRESETS
from imagewright.training.sources import LatentSource, cache_latents

PROXY = {  # of the cpu preset
    "batch": "64",
    "model.network.width": "128",
    "model.network.depth": "4",
    "model.network.heads": "2",
    "model.network.copies": "false",
    "model.edit_share": "0",
}
GRID = (0.1, 0.3, 0.5, 0.7, 0.9)
WARMUP = 0.05  # of the budget
TIMED, UNTIMED = 8, 2  # steps of each to compare their cost
DRAWN = 50  # pictures at a time
STEPS, GUIDANCE = 8, 3.0
PACES = {"3 %": 0.28, "10 %": 1.0, "25 %": 3.0}  # mean age of an average as a share of the run: pace / (9 + pace)
MEASURED = "10 %"  # the one that arms are compared by: that of the training loop's warm-up
Changes = Mapping[str, str]


@dataclass(frozen=True)
class Arm:
    """One change: `changes` of dials, as `train --set` takes them; the share of `scenes`; whether captions are drawn
    from the `mix` or are the `label` alone; whether the network hears `all` of the words, only what is `pooled` or only
    the `tokens`; whether it `grows` to patches of half the side in the middle; `costs`: whether its steps cost
    something else than the baseline's."""

    name: str
    changes: Changes = field(default_factory=dict)
    scenes: float = 0.2
    told: Literal["mix", "label"] = "mix"
    heard: Literal["all", "pooled", "tokens"] = "all"
    grows: bool = False
    costs: bool = False


def _network(patch: int, width: int, depth: int, heads: int) -> Changes:
    values = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    return {f"model.network.{name}": str(value) for name, value in values.items()}


# fmt: off
ARMS = (  # those that matter most first
    Arm("baseline"),
    Arm("predict flow", {"model.prediction": "flow"}),
    Arm("AdamW 1e-3", {"muon": "false"}, costs=True),
    Arm("AdamW 3e-3", {"muon": "false", "lr": "3e-3"}, costs=True),
    Arm("Muon, the rest 3e-3", {"lr": "3e-3"}),
    Arm("flow, Muon, the rest 3e-3", {"model.prediction": "flow", "lr": "3e-3"}),
    Arm("flow, AdamW 3e-3", {"model.prediction": "flow", "muon": "false", "lr": "3e-3"}, costs=True),
    Arm("patch 1", _network(1, 128, 4, 2), costs=True),
    Arm("patch 1, width 64", _network(1, 64, 4, 1), costs=True),
    Arm("text pooled only", heard="pooled", costs=True),
    Arm("captions: label only", told="label"),
    Arm("scenes 0", scenes=0.0),
    Arm("Muon .04", {"muon_lr": ".04"}),
    Arm("Muon .01", {"muon_lr": ".01"}),
    Arm("batch 128", {"batch": "128"}, costs=True),
    Arm("batch 32", {"batch": "32"}, costs=True),
    Arm("t_mean -.5", {"model.t_mean": "-.5"}),
    Arm("t_mean +.5", {"model.t_mean": ".5"}),
    Arm("predict v", {"model.prediction": "v"}),
    Arm("text tokens only", heard="tokens"),
    Arm("width 192, depth 2", _network(2, 192, 2, 3), costs=True),
    Arm("width 96, depth 8", _network(2, 96, 8, 2), costs=True),
    Arm("scenes .4", scenes=0.4),
    Arm("grows to patch 1", grows=True, costs=True),
    Arm("train_text", {"model.train_text": "true"}, costs=True),
    Arm("drop_text .2", {"model.drop_text": ".2"}),
    Arm("drop_text .05", {"model.drop_text": ".05"}),
    Arm("dropout .1", {"model.network.dropout": ".1"}, costs=True),
    Arm("predict eps", {"model.prediction": "eps"}),
    Arm("t_std 1.5", {"model.t_std": "1.5"}),
    Arm("known_share 0", {"model.known_share": "0"}),
)
# fmt: on


class Listener(Diffusion):
    """A diffusion model whose network gets only a part of the words."""

    heard: str = "all"

    def words(self, batch: Batch, *, drop: bool = True) -> Words:
        """As Prompted.words, without what is not heard."""
        return self._heard(super().words(batch, drop=drop))

    def prompted(self, texts: Sequence[str], style: Sequence[int]) -> Words:
        """As Prompted.prompted, without what is not heard."""
        return self._heard(super().prompted(texts, style))

    def _heard(self, words: Words) -> Words:
        if self.heard == "pooled":
            return replace(words, tokens=words.tokens[:, :1], mask=torch.zeros_like(words.mask[:, :1]))
        return replace(words, pooled=torch.zeros_like(words.pooled)) if self.heard == "tokens" else words


class LabelSource(LatentSource):
    """Every picture under its label alone."""

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """As PixelSource.batch."""
        rows = self.folder.indices(seed, step, total, start, stop, scenes_share=self.scenes_share)
        labels = [natural(self.folder.records[i]["text"]) for i in rows]
        return self._batch(rows, labels, Draws(seed, step, start, stop, total), step)


def half_steps(side: int, head_dim: int, theta: float = 100.0) -> tuple[Tensor, Tensor]:
    """layers.rotary_table of `side` positions an axis, half as far apart."""
    quarter = head_dim // 4
    frequency = theta ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    y, x = torch.meshgrid(torch.arange(side) / 2, torch.arange(side) / 2, indexing="ij")
    angle = torch.cat([x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency], dim=1)  # (N, head_dim // 2)
    return angle.cos(), angle.sin()


@torch.no_grad()
def cut_up(model: Listener) -> Listener:
    """The model with patches of half the side: the same blocks, positions half as far apart. The layer that reads a
    patch is summed over its four parts and the layer that writes one is their mean, which is exact for flat patches."""
    old = model.config.network
    finer = Listener(replace(model.config, network=replace(old, patch=old.patch // 2)))
    finer.heard = model.heard
    state, p = model.state_dict(), old.patch

    def parts(weight: Tensor, channels: int) -> Tensor:
        """(C p p, D) -> (C, p / 2, 2, p / 2, 2, D): a patch is ordered as channel, row, column."""
        return weight.reshape(channels, p // 2, 2, p // 2, 2, *weight.shape[1:])

    wide = parts(state["network.patch_in.weight"].mT, 2 * old.channels + 1)
    state["network.patch_in.weight"] = wide.sum((2, 4)).flatten(0, 2).mT
    for name in ("weight", "bias"):
        state[f"network.patch_out.{name}"] = (
            parts(state[f"network.patch_out.{name}"], old.channels).mean((2, 4)).flatten(0, 2)
        )
    finer.load_state_dict(state)
    cos, sin = half_steps(old.side // finer.config.network.patch, old.width // old.heads)
    finer.network.cos.copy_(cos)  # type: ignore[operator]
    finer.network.sin.copy_(sin)  # type: ignore[operator]
    return finer


@dataclass(frozen=True)
class Probe:
    """Latents x0 (N, C, h, w) with their prompts and styles, and the noise that they are hidden under."""

    x0: Tensor
    prompts: list[str]
    styles: list[int]
    noise: Tensor

    @torch.no_grad()
    def errors(self, model: Diffusion) -> list[float]:
        """The mean squared error of the velocity at each t of GRID."""
        words = model.prompted(self.prompts, self.styles)
        nothing = torch.zeros_like(self.x0), torch.zeros_like(self.x0[:, :1])
        found = []
        for t in GRID:
            x = (1 - t) * self.x0 + t * self.noise
            with torch.autocast("cpu", torch.bfloat16):
                estimate = model.denoised(x, torch.full((len(x),), t), words, *nothing)
            found.append(float(((estimate - self.x0) / t).square().mean()))
        return found


class Learner:
    """A model in training: its optimisers, its averages by name, and the batches it sees."""

    def __init__(self, model: Listener, config: TrainConfig, source: LatentSource, seed: int) -> None:
        self.model, self.config, self.source, self.seed = model.train(), config, source, seed
        self.optimizers = build_optimizers(model, model.phases[0], config)
        self.averages = {name: Ema(model, 1.0) for name in PACES}
        self.steps = 0

    def step(self, index: int, scale: float) -> float:
        """Step `index` of the run at `scale` times the learning rates; returns its CPU time in seconds."""
        began, rows = time.process_time(), self.config.batch
        torch.manual_seed(self.seed * 1_000_003 + index)
        batch = self.source.batch(self.seed, index, 0, rows, rows)
        with autocast(torch.device("cpu"), self.config):
            loss = self.model.loss(batch)["loss"]
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.optimizers.parameters, self.config.clip or float("inf"))
        self.optimizers.step(scale)
        spent = time.process_time() - began
        for name, pace in PACES.items():
            self.averages[name].update(round(pace * self.steps))
        self.steps += 1
        return spent


class Bench:
    """What all arms share: the data, the autoencoder, the probes, the captions to draw, and the judge."""

    def __init__(
        self,
        data: Path,
        autoencoder: nn.Module,
        latents: Path,
        *,
        drawings: int = 200,
        probes: int = 128,
        proxy: Changes = PROXY,
    ) -> None:
        """`latents`: the folder that has them, or gets them; `probes`: pictures of each kind that errors are of."""
        self.folder, self.autoencoder, self.latents, self.proxy = CaptionedFolder(data), autoencoder, latents, proxy
        self.text, self.tokenizer = load_pretrained(), Tokenizer()
        self.judged = Judged(self.folder, drawings)
        known = self.learner(ARMS[0], 0).source.latents
        scenes = [i for i, record in enumerate(self.folder.records) if record.get("kind") == "scene"]
        rows = {
            "held-out": self.folder.heldout(probes, scenes=False),
            "seen": training_rows(self.folder, probes, 1),
            "scenes": np.array(scenes, np.int64)[:: len(scenes) // probes + 1],
        }
        self.probes = {name: self._probe(known, chosen) for name, chosen in rows.items() if len(chosen)}

    def _probe(self, latents: Tensor, rows: np.ndarray) -> Probe:
        x0 = latents[torch.from_numpy(rows)].float()
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        prompts = [natural(self.folder.records[i]["text"]) for i in rows]
        return Probe(x0, prompts, self.folder.styles(rows).tolist(), noise)

    def config(self, arm: Arm) -> tuple[Any, TrainConfig]:
        """The configs of an arm's model and of its training."""
        train, model, _ = overrides.split({**self.proxy, **arm.changes}, False)
        preset = PRESETS["diffusion"]["cpu"]
        found = overrides.changed(preset.model, model)
        found = replace(found, encoder=replace(found.encoder, autoencoder=self.autoencoder.config))
        return found, overrides.changed(preset.train, train)

    def model(self, arm: Arm, seed: int) -> Listener:
        """The untrained model of an arm, on the autoencoder, with the text encoder that ships."""
        torch.manual_seed(seed)
        model = Listener(self.config(arm)[0])
        model.heard = arm.heard
        model.text.load_state_dict(self.text.state_dict())
        model.encoder.autoencoder.load_state_dict(self.autoencoder.state_dict())  # type: ignore[union-attr]
        self.cache = cache_latents(model.encoder, self.folder, model.pixels, self.latents)  # sets the encoder's scale
        return model

    def learner(self, arm: Arm, seed: int, model: Listener | None = None) -> Learner:
        """An arm at its beginning, or at the second stage of its growth with the `model` cut up."""
        kind = LabelSource if arm.told == "label" else LatentSource
        model = model or self.model(arm, seed)
        source = kind(self.folder, model.pixels, self.tokenizer, self.cache, arm.scenes)
        return Learner(model, self.config(arm)[1], source, seed)

    def cost(self, arm: Arm) -> float:
        """The CPU time of an arm's step (in its second stage, if it grows) over that of the baseline's."""
        if not arm.costs:
            return 1.0
        pair = [self.learner(ARMS[0], 0), self.learner(arm, 0, cut_up(self.model(arm, 0)) if arm.grows else None)]
        times = np.array([[one.step(i, 1.0) for one in pair] for i in range(UNTIMED + TIMED)])
        base, other = np.median(times[UNTIMED:], axis=0)
        return float(other / base)

    def train(self, arm: Arm, seed: int, pictures: int) -> tuple[Learner, dict[str, Any]]:
        """An arm trained for the cost at which the baseline sees so many pictures, and what that took."""
        budget = pictures / self.config(ARMS[0])[1].batch  # in steps of the baseline
        cost, spent, seen = self.cost(arm), 0.0, 0
        stages = [budget / 2, budget / 2 / cost] if arm.grows else [budget / cost]
        learner = self.learner(arm, seed)
        for stage, steps in enumerate(max(1, round(steps)) for steps in stages):
            if stage:
                learner = self.learner(arm, seed, cut_up(learner.model))
            for i in range(steps):
                share = (stage + i / steps) / len(stages)
                spent += learner.step(10**6 * stage + i, lr_share(share, learner.config.cooldown))
                seen += learner.config.batch
        return learner, {"cost": cost, "pictures": seen, "cpu_seconds": spent}

    def row(self, arm: Arm, seed: int, pictures: int) -> dict[str, Any]:
        """What is measured of an arm."""
        learner, facts = self.train(arm, seed, pictures)
        model = learner.model.eval()
        watched = next(iter(self.probes.values()))
        averaged = {"none": watched.errors(model)}
        for name, average in learner.averages.items():
            with average.applied():
                averaged[name] = watched.errors(model)
        with learner.averages[MEASURED].applied():
            errors = {kind: probe.errors(model) for kind, probe in self.probes.items()}
            judged = self.judged(self.drawn(model))
        facts["parameters"] = sum(p.numel() for p in model.network.parameters())
        row = {"arm": arm.name, "seed": seed, "budget": pictures, **facts}
        return row | {"errors": errors, "averaged": averaged} | judged

    @torch.no_grad()
    def drawn(self, model: Diffusion) -> list[Image.Image]:
        """The judged captions, each from its own noise, DRAWN at a time."""
        pictures: list[Image.Image] = []
        for start in range(0, len(self.judged.prompts), DRAWN):
            prompts = self.judged.prompts[start : start + DRAWN]
            words = model.prompted(prompts, self.judged.styles[start : start + DRAWN])
            avoided = model.prompted([""] * len(prompts), [0] * len(prompts))
            noise = [noise_source(start + i, (1, *model.encoder.shape))() for i in range(len(prompts))]
            with torch.autocast("cpu", torch.bfloat16):
                x = _sampled(model, words, avoided, torch.from_numpy(np.concatenate(noise)))
                pixels = model.encoder.decode(x).float().numpy()
            pictures += [to_picture(pixels[i : i + 1]) for i in range(len(pixels))]
        return pictures


def _sampled(model: Diffusion, words: Words, avoided: Words, noise: Tensor) -> Tensor:
    known = torch.zeros_like(noise), torch.zeros_like(noise[:, :1])

    def estimate(x: Tensor, t: float, said: Words) -> Tensor:
        return model.denoised(x, torch.full((len(x),), t), said, *known)

    denoise = guided(
        lambda x, t: estimate(x, t, words),
        lambda x, t: (estimate(x, t, words), estimate(x, t, avoided)),
        GUIDANCE,
        (0.0, 1.0),
    )
    process = model.process
    x: Tensor = SAMPLERS["dpmpp_2m"](denoise, process.start(noise), process.times(STEPS), process, lambda: noise)
    return x


def lr_share(share: float, cooldown: float) -> float:
    """What the learning rates are multiplied by when this share of the budget is spent."""
    return min(1.0, (share + 0.01) / WARMUP, (1 - share) / cooldown)


class Judged:
    """Seen captions, and the judge of what is drawn for them."""

    def __init__(self, folder: CaptionedFolder, count: int) -> None:
        records = [folder.records[i] for i in training_rows(folder, count, 0)]
        self.prompts = [natural(record["text"]) for record in records]
        known = [record.get("style", "") in STYLES for record in records]
        self.styles = [STYLES.index(r["style"]) if k else 0 for r, k in zip(records, known, strict=True)]
        self.asked = [{"text": p, "base": r["base"]} for p, r in zip(self.prompts, records, strict=True)]
        self.judges = Judges()

    def __call__(self, pictures: list[Image.Image]) -> dict[str, Any]:
        """R@1 and the share in the style that was asked for with their intervals, and the probability to match of each
        picture."""
        rgba = self.judges.prepared(pictures)
        scores = caption_scores(self.judges, rgba, self.asked)
        matches = self.judges.match(rgba, self.prompts)
        names = self.judges.labels["styles"]
        seen = [names[int(row.argmax())] for row in self.judges.identify(rgba)["style"]]
        right = [STYLES[asked] == style for asked, style in zip(self.styles, seen, strict=True) if asked]
        told = {"R@1": asdict(retrieval(scores)), "style": asdict(wilson(sum(right), len(right)))}
        return told | {"matches": [round(float(match), 4) for match in matches]}


class Results:
    """A file with a JSON line for each arm that ended. `key`: what tells one from another."""

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, key
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        self.rows: list[dict[str, Any]] = [json.loads(row) for row in text.splitlines()]

    def has(self, **values: Any) -> bool:
        """Whether an arm of these values has ended."""
        return any(all(row[key] == values[key] for key in self.key) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep the row of an arm."""
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        self.rows.append(row)


def told(estimate: Estimate, sign: str = "") -> str:
    """A figure with its interval."""
    return f"{estimate.value:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def judged_cells(row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """The mean match, its gain over that of `first` (picture by picture), R@1, and the share in the asked style."""
    matches = np.array(row["matches"])
    shares = [told(Estimate(**row[name])) for name in ("R@1", "style")]
    return [told(bootstrap(matches)), told(bootstrap(matches - first["matches"]), "+"), *shares]


JUDGED = ("match", "against the first", "R@1", "style")


def as_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def line(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """An arm as a row; `first`: the arm that it is compared with."""
    errors = [f"{np.mean(found):.4f}" for found in row["errors"].values()]
    taken = [row["arm"], str(row["seed"]), f"{row['cost']:.2f}", f"{row['pictures']:,}"]
    return as_row([*taken, *errors, *judged_cells(row, first)])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All arms, then the errors with other averages."""
    if not rows:
        return "nothing yet"
    head = ["arm", "seed", "cost", "pictures", *rows[0]["errors"], *JUDGED]
    lines = [as_row(head), as_row(["---"] * len(head)), *(line(row, rows[0]) for row in rows)]
    lines.append(f"\naverage: error, {next(iter(rows[0]['errors']))}, mean over these rows")
    lines += [f"{n}: {np.mean([row['averaged'][n] for row in rows]):.4f}" for n in rows[0]["averaged"]]
    return "\n".join(lines)


def ablate(bench: Bench, results: Results, arms: Sequence[Arm], seeds: Sequence[int], pictures: int) -> None:
    """Run the arms that have not ended yet, one after the other."""
    for seed in seeds:
        for arm in arms:
            if not results.has(arm=arm.name, seed=seed, budget=pictures):
                results.add(bench.row(arm, seed, pictures))
                print(line(results.rows[-1], results.rows[0]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000, help="that the baseline sees")
    parser.add_argument("--only", nargs="*", default=[], help="names of arms")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--drawings", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="print what is there and do nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / "arms.jsonl", ["arm", "seed", "budget"])
    if options.table:
        print(table(results.rows))
    else:
        bench = Bench(options.data, load_model(options.autoencoder), options.autoencoder, drawings=options.drawings)
        arms = [arm for arm in ARMS if not options.only or arm.name in options.only]
        ablate(bench, results, arms, options.seeds, options.pictures)


if __name__ == "__main__":
    main()
