"""The words as CLIP's hidden states, where diffusers' own reading is not enough: weights, and long prompts.

CLIP reads 77 tokens at a time. Longer prompts are read in pieces of 75 and laid one after the other, so that nothing
is cut. A word with weight w is moved from the state that an empty prompt has in its place by w: 1 leaves it, 0 takes
it away. Other encoders (T5, language models) take no weights; what they cut is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from imagewright.request import Adjustment, ImageRequest

Weighted = list[tuple[int, float]]  # tokens and their weights


def spoken(
    pipe: Any, request: ImageRequest, clip_only: bool, takes: set[str]
) -> tuple[dict[str, Any], list[Adjustment]]:
    """The arguments of the pipeline's call that carry the words, and what of them is not read."""
    negative = request.negative_prompt if "negative_prompt" in takes else ""
    if clip_only and "prompt_embeds" in takes and _needs_care(pipe, request):
        return embedded(pipe, request), []
    said: dict[str, Any] = {"prompt": request.prompt}
    if negative:
        said["negative_prompt"] = negative
    return said, [] if clip_only else list(_cut(pipe, request))


def _needs_care(pipe: Any, request: ImageRequest) -> bool:
    texts = (request.prompt, request.negative_prompt)
    return bool(request.emphasis) or any(
        len(_tokens(pipe, tokenizer, text)) > tokenizer.model_max_length - 2
        for tokenizer, _ in _readers(pipe)
        for text in texts
    )


def _readers(pipe: Any) -> list[tuple[Any, Any]]:
    """The pipeline's (tokenizer, text encoder) pairs."""
    pairs = [(getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2")]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if encoder is not None]


def _tokens(pipe: Any, tokenizer: Any, text: str) -> list[int]:
    converted = pipe.maybe_convert_prompt(text, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text
    found: list[int] = tokenizer(converted, add_special_tokens=False, truncation=False, verbose=False).input_ids
    return found


def _cut(pipe: Any, request: ImageRequest) -> list[Adjustment]:
    """What the longest-reading encoder does not read of the prompt."""
    from imagewright.engines.pretrained.describe import default

    limit = default(type(pipe), "max_sequence_length")
    names = ("tokenizer_3", "tokenizer_2", "tokenizer")
    tokenizer = next((one for name in names if callable(one := getattr(pipe, name, None))), None)
    if not isinstance(limit, int) or tokenizer is None:
        return []
    count = len(tokenizer(request.prompt, truncation=False, verbose=False).input_ids)
    if count <= limit:
        return []
    return [Adjustment("prompt", f"{count} tokens", f"{limit} tokens", "the model reads no further")]


def embedded(pipe: Any, request: ImageRequest) -> dict[str, Tensor]:
    """Prompt embeddings of any length with weights, for pipelines whose encoders are all CLIP."""
    texts = (pieces(request.prompt, request.emphasis), [(request.negative_prompt, 1.0)])
    readers = _readers(pipe)
    rows = [
        [[(t, weight) for text, weight in one for t in _tokens(pipe, tokenizer, text)] for one in texts]
        for tokenizer, _ in readers
    ]
    room = readers[0][0].model_max_length - 2
    count = max(1, *(-(-len(row) // room) for pair in rows for row in pair))  # pieces, the same for all
    states = [
        [_read(pipe, tokenizer, encoder, row, room, count) for row in pair]
        for (tokenizer, encoder), pair in zip(readers, rows, strict=True)
    ]
    wanted, avoided = ([pair[i][0] for pair in states] for i in (0, 1))
    pooled = [one[1] for one in states[-1]]  # the last encoder's, as in SDXL
    both = {"prompt_embeds": torch.cat(wanted, -1), "negative_prompt_embeds": torch.cat(avoided, -1)}
    if hasattr(pipe, "tokenizer_2"):
        both |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
        if not request.negative_prompt and pipe.config.get("force_zeros_for_empty_prompt"):
            zeros = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
            both |= {name: torch.zeros_like(both[name]) for name in zeros}
    return both


def pieces(prompt: str, emphasis: Sequence[tuple[int, int, float]]) -> list[tuple[str, float]]:
    """The prompt cut where its weights change; where two overlap, they multiply."""
    edges = sorted({0, len(prompt), *(edge for start, end, _ in emphasis for edge in (start, end))})
    found = []
    for start, end in pairwise(edges):
        weight = 1.0
        for first, last, factor in emphasis:
            if first <= start and end <= last:
                weight *= factor
        found.append((prompt[start:end], weight))
    return found


@torch.no_grad()
def _read(pipe: Any, tokenizer: Any, encoder: Any, row: Weighted, room: int, count: int) -> tuple[Tensor, Tensor]:
    """Hidden states (1, 77 * count, C) of a row of tokens, and the pooled state (1, P) of its first piece."""
    chunks = [row[i * room : (i + 1) * room] for i in range(count)]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    framed = [
        [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id, *[pad] * (room - len(chunk))]
        for chunk in [*chunks, []]
    ]
    weights = torch.ones(count, room + 2)
    for i, chunk in enumerate(chunks):
        weights[i, 1 : 1 + len(chunk)] = torch.tensor([weight for _, weight in chunk])
    device = pipe._execution_device
    out = encoder(torch.tensor(framed, device=device), output_hidden_states=True)
    states = out.hidden_states[-2] if hasattr(pipe, "tokenizer_2") else out[0]  # (count + 1, 77, C)
    empty, states = states[-1:], states[:-1]
    states = states + (states - empty) * (weights[..., None] - 1).to(states)
    return states.reshape(1, -1, states.shape[-1]), out[0][:1]
