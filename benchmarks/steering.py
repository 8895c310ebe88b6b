"""Do a prompt's weights, variety, weird, stylize and stop do what they say? Measured with the judges that ship.

    python benchmarks/steering.py stickers-diffusion --seeds 4

For each of twenty prompts one word gets a weight: `word` is the mean probability that the picture fits this word alone,
`whole` that it fits the whole prompt. For the others, `spread` is the mean distance (1 - cosine of the judge's
features) between the pictures of one prompt, `moved` that from the same seed's picture without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from PIL import Image

import imagewright
from imagewright.prompt import parse
from imagewright.refine.judge import Judges

PROMPTS = (
    "a (red) cat", "a (blue) dog", "a (green) car", "a (yellow) umbrella", "a (purple) frog", "a (pink) elephant",
    "an (orange) fish", "a (black) rose", "a fox to the left of a (tree)", "a (cat) above a car",
    "a frog on a (yellow background)", "smiling face with (sunglasses)", "a house with (flowers)",
    "a rocket and (stars)", "a dog with a (hat)", "a cup of coffee with a (heart)", "a (pirate) bear",
    "an (angry) moon", "a car in the (snow)", "a (robot) apple",
)  # fmt: skip
PLAIN = ("a red cat", "a house", "a rocket", "sunflower", "a blue dog", "smiling face with sunglasses")


def pictures(prompt: str, model: str, seeds: int, size: tuple[int, int], **fields: object) -> list[Image.Image]:
    """The pictures of seeds 0, 1, ..."""
    return list(imagewright.generate(prompt, plain=True, model=model, seed=0, n=seeds, size=size, **fields))


def emphasised(judges: Judges, model: str, seeds: int, weights: Sequence[float]) -> None:
    """Prints how well pictures fit the weighted word, by its weight."""
    word, whole = np.zeros((2, len(PROMPTS), len(weights)))
    for i, text in enumerate(PROMPTS):
        (job,) = parse(text)
        ((start, end, _),) = job.emphasis
        for j, weight in enumerate(weights):
            made = pictures(job.prompt, model, seeds, (64, 64), emphasis=((start, end, weight),))
            word[i, j] = judges.match(made, [job.prompt[start:end]] * seeds).mean()
            whole[i, j] = judges.match(made, [job.prompt] * seeds).mean()
    for j, weight in enumerate(weights):
        print(f"{model}  weight {weight:<4g} word {word[:, j].mean():.3f}  whole {whole[:, j].mean():.3f}")
    rises, higher = (np.diff(word, axis=1) > -0.01).all(1).sum(), (word[:, -1] > word[:, 0]).sum()
    print(f"{model}  never falls (by 0.01) in {rises} of {len(PROMPTS)}, ends higher in {higher}", flush=True)


def scattered(judges: Judges, model: str, seeds: int, field: str, amounts: Sequence[float]) -> None:
    """Prints how far pictures lie apart, and how well they fit, by variety, weird, stylize or stop."""
    told = np.zeros((len(amounts), 3))
    for text in PLAIN:
        plain = judges.embed(pictures(text, model, seeds, (64, 64)))
        for j, amount in enumerate(amounts):
            made = pictures(text, model, seeds, (64, 64), **{field: amount})
            features = judges.embed(made)
            apart = (1 - features @ features.T)[np.triu_indices(seeds, 1)].mean()
            told[j] += apart, (1 - (features * plain).sum(1)).mean(), judges.match(made, [text] * seeds).mean()
    for amount, (spread, moved, match) in zip(amounts, told / len(PLAIN), strict=True):
        print(f"{model}  {field} {amount:<4g} spread {spread:.3f}  moved {moved:.3f}  match {match:.3f}", flush=True)


def main() -> None:
    """Measures one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=4)
    asked = parser.parse_args()
    judges = Judges()
    emphasised(judges, asked.model, asked.seeds, (0.5, 1, 1.5, 2))
    for field in ("variety", "weird"):
        scattered(judges, asked.model, asked.seeds, field, (0, 0.5, 1))
    scattered(judges, asked.model, asked.seeds, "stylize", (0, 1, 10))
    if asked.model.endswith("diffusion"):
        scattered(judges, asked.model, asked.seeds, "stop", (1, 0.75, 0.5, 0.25))


if __name__ == "__main__":
    main()
