"""The options of `imagewright generate` and those that several commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Background = Annotated[str, typer.Option(help="auto, transparent, opaque, white, black or #rrggbb.")]
BestOf = Annotated[int, typer.Option(help="Draw so many, with seeds one after the other, and keep the best.")]
Compression = Annotated[
    int, typer.Option("--compression", help="Quality of jpeg and webp, 0-100; webp at 100 is lossless.")
]
File = Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP picture.", show_default=False)]
Format = Annotated[
    str | None,
    typer.Option("--format", help="png, jpeg, webp or svg (traced). Default: from the output's name, else png."),
]
Guidance = Annotated[float | None, typer.Option("--guidance", help="How closely to follow the words.")]
MaxTries = Annotated[int | None, typer.Option(help="Draw at most so many. Default: 8, or --best-of if that is more.")]
MinMatch = Annotated[float | None, typer.Option(help="Draw again while the judge of words gives less, 0 to 1.")]
MinRealism = Annotated[float | None, typer.Option(help="Draw again while the judge of pictures gives less, 0 to 1.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="NAME, ENGINE/NAME (openai/gpt-image-2), the folder of a run, or open weights: a folder, a .safetensors "
        "file or ORG/NAME. See: imagewright models",
    ),
]
N = Annotated[int, typer.Option("-n", "--n", help="How many pictures; picture i uses seed + i.")]
Negative = Annotated[str, typer.Option("--negative", help="What the picture should not show.")]
NoMetadata = Annotated[
    bool,
    typer.Option("--no-metadata", help="Write neither metadata nor the signed credential into the file."),
]
OpenIt = Annotated[bool, typer.Option("--open", help="Open the picture in the system's viewer.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="A picture file (replaced) or a folder. Default: ./PROMPT-SEED.png"),
]
Plain = Annotated[bool, typer.Option("--plain", help="Take the prompt as it is, without the prompt language.")]
Prompt = Annotated[str, typer.Argument(help="What the picture should show.", show_default=False)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print paths only.")]
Repeat = Annotated[
    int | None, typer.Option(min=1, max=64, help="Make it so often, each time with the seeds that follow.")
]
RequireCredential = Annotated[
    bool, typer.Option("--require-credential", help="Fail where the picture cannot be signed.")
]
Sampler = Annotated[str | None, typer.Option(help="One of the model's samplers.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same picture. Default: random.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels. Default: the model's own.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Sampling steps.")]
Style = Annotated[str | None, typer.Option(help="One of the model's styles.")]
Technique = Annotated[
    str | None,
    typer.Option(help="vae, gan, diffusion or autoregressive: the first model of that family. See: imagewright models"),
]
Temperature = Annotated[float | None, typer.Option(help="How freely tokens or latents are drawn; 1 is as trained.")]
TopK = Annotated[int | None, typer.Option(help="Draw each token from the k likeliest; 0: from all.")]
TopP = Annotated[float | None, typer.Option(help="Draw each token from the likeliest with this share of the odds.")]
Trace = Annotated[Path | None, typer.Option(help="A new folder that shows how the picture came about, step by step.")]
Truncation = Annotated[float | None, typer.Option(help="A GAN's psi: 1 has all its variety, 0 is its mean picture.")]
Wildcards = Annotated[
    Path | None, typer.Option(help="A folder of text files: __name__ in the prompt is a line of name.txt.")
]

# What the commands that edit add.
Amount = Annotated[str, typer.Option(help="How far to pan: pixels, or percent of the side.")]
EditOutput = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="A picture file (replaced) or a folder. Default: NAME-VERB.png beside it."),
]
EditPrompt = Annotated[str | None, typer.Argument(help="What the picture should show.", show_default=False)]
Factor = Annotated[int, typer.Argument(help="2 or 4.")]
Feather = Annotated[
    int | None,
    typer.Option(help="Pixels inside the hole over which the seam is softened. Default: a 128th of the longer side."),
]
Instruction = Annotated[str, typer.Argument(help="What to change, or what it should show.", show_default=False)]
Invert = Annotated[bool, typer.Option(help="Keep what is chosen, and change all else.")]
Like = Annotated[Path | None, typer.Option(help="A picture whose style it should have.")]
Mask = Annotated[
    Path | None,
    typer.Option(help="A picture that is transparent, or without alpha white, where this one may change."),
]
Margin = Annotated[str, typer.Option(help="How much to add there: pixels, or percent of the side.")]
Original = Annotated[Path | None, typer.Option(help="The picture that was edited first, if it is not beside this one.")]
Pan = Annotated[str | None, typer.Option(help="Move the window left, right, up or down; the picture keeps its size.")]
Pictures = Annotated[list[Path], typer.Argument(help="Two pictures or more.", show_default=False)]
Region = Annotated[str | None, typer.Option(help="Where it may change: x,y,width,height in pixels or percent.")]
SaveMask = Annotated[Path | None, typer.Option(help="Write the mask to this file, to use it again.")]
Select = Annotated[str | None, typer.Option(help='What to find and change, such as "the hat".')]
Strength = Annotated[float | None, typer.Option(help="How much may change, 0 to 1.")]
Weights = Annotated[str | None, typer.Option(help="How much each picture counts, such as 2,1. Default: all the same.")]
ZoomOut = Annotated[float | None, typer.Option(help="How many times as wide and high the canvas becomes, as 1.5.")]
