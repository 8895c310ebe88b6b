"""The options of `imagewright generate` and those that several commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Background = Annotated[str, typer.Option(help="auto, transparent, opaque, white, black or #rrggbb.")]
Compression = Annotated[int, typer.Option(help="Quality of jpeg and webp, 0-100; webp at 100 is lossless.")]
File = Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP picture.", show_default=False)]
Format = Annotated[
    str | None, typer.Option("--format", help="png, jpeg or webp. Default: from the output's name, else png.")
]
Guidance = Annotated[float | None, typer.Option(help="How closely to follow the words.")]
Model = Annotated[str | None, typer.Option(help="NAME, ENGINE/NAME or the folder of a run. See: imagewright models")]
N = Annotated[int, typer.Option("-n", "--n", help="How many pictures; picture i uses seed + i.")]
Negative = Annotated[str, typer.Option(help="What the picture should not show.")]
NoMetadata = Annotated[
    bool,
    typer.Option("--no-metadata", help="Write neither metadata nor the signed credential into the file."),
]
OpenIt = Annotated[bool, typer.Option("--open", help="Open the picture in the system's viewer.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="A picture file (replaced) or a folder. Default: ./PROMPT-SEED.png"),
]
Prompt = Annotated[str, typer.Argument(help="What the picture should show.", show_default=False)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print paths only.")]
RequireCredential = Annotated[
    bool, typer.Option("--require-credential", help="Fail where the picture cannot be signed.")
]
Sampler = Annotated[str | None, typer.Option(help="One of the model's samplers.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same picture. Default: random.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels. Default: the model's own.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps.")]
Style = Annotated[str | None, typer.Option(help="One of the model's styles.")]
