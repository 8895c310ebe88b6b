"""How well a generator's pictures move with its input: EQ-T of arXiv:2106.12423 (equation 2 and appendix E.3).

The picture made from a moved input is compared with the moved picture, in dB (PSNR): the higher, the less do details
stick to the pixel grid. Deviation: the truth is the same for all generators, a whole number of pixels, with no filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imagewright.data.batch import Draws
from imagewright.models.samplers import noise_source
from imagewright.models.stylegan import StyleGAN
from imagewright.models.technique import Words

REACH = 1 / 8  # of the side: the farthest move
PEAK = 2.0  # from black to white in pixels of [-1, 1]


@torch.no_grad()
def eq_t(generate: Callable[[Tensor], Tensor], rows: int, side: int, moves: int = 8, seed: int = 0) -> float:
    """EQ-T in dB of `generate`: shift (rows, 2), parts of the side (down, right) -> pixels (rows, C, side, side).

    `moves` random moves of each of the same `rows` pictures. What moved in from outside is not compared."""
    still = generate(torch.zeros(rows, 2))
    reach = max(1, round(REACH * side))
    error = count = 0.0
    for move in range(moves):
        u = Draws(seed, move, 0, rows, rows).rand(2)
        cells = ((2 * reach + 1) * u).floor().long() - reach
        moved = generate(cells / side)
        for row, (down, right) in enumerate(cells.tolist()):
            want = torch.roll(still[row], (down, right), dims=(1, 2))
            y, x = (slice(max(0, step), side + min(0, step)) for step in (down, right))
            error += float((moved[row, :, y, x] - want[:, y, x]).square().sum())
            count += want[:, y, x].numel()
    return float(10 * torch.log10(torch.tensor(PEAK**2 * count / max(error, 1e-20))))


def equivariance(model: StyleGAN, words: Words, seeds: Sequence[int], moves: int = 8) -> float:
    """EQ-T in dB of a style-based GAN on pixels, for the pictures of `seeds` with `words` (one row each), no noise."""
    z = torch.cat([torch.from_numpy(noise_source(seed, (1, model.config.z))()) for seed in seeds])

    def generate(shift: Tensor) -> Tensor:
        ws = model.mapping(z, words)
        still = ws.new_zeros(len(ws), model.synthesis.noises)
        return model.encoder.decode(model.synthesis(ws, still, words.tokens, words.mask, shift))

    return eq_t(generate, len(seeds), model.pixels, moves)
