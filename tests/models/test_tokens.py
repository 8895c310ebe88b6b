"""Sampling of tokens: against closed forms, and the two orders of drawing."""

import numpy as np
import pytest

from imagewright.models.tokens import Choice, Drawing, onlooker, pick, probabilities, raster, scales, uniforms
from imagewright.watch import Watch

P = np.array([[0.5, 0.05, 0.25, 0.2]])
LOGITS = np.log(P) + 3.0


def test_temperature_is_a_power_of_the_probabilities() -> None:
    np.testing.assert_allclose(probabilities(LOGITS), P)
    np.testing.assert_allclose(probabilities(LOGITS, temperature=0.5), P**2 / (P**2).sum())
    np.testing.assert_array_equal(probabilities(LOGITS, temperature=0), [[1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [0.5, 0, 0.25, 0]),
        ({"top_p": 0.3}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [0.5, 0, 0.25, 0]),
        ({"top_p": 0.8}, [0.5, 0, 0.25, 0.2]),
        ({"top_k": 3, "top_p": 0.6}, [0.5, 0, 0.25, 0]),
        ({"top_k": 9}, P[0]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(cut: dict[str, float], kept: list[float]) -> None:
    expected = np.array([kept]) / sum(kept)
    np.testing.assert_allclose(probabilities(LOGITS, **cut), expected)  # type: ignore[arg-type]


def test_top_k_is_exact_where_logits_tie() -> None:
    assert (probabilities(np.zeros((1, 8)), top_k=3) > 0).sum() == 3


def test_a_token_is_picked_in_proportion_to_its_probability() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount(pick(np.repeat(P, 1000, axis=0), u), minlength=4)
    np.testing.assert_array_equal(counts, 1000 * P[0])


def test_no_impossible_token_is_picked_at_the_ends() -> None:
    p = np.array([[0.0, 1.0, 0.0]])
    assert pick(p, np.array([0.0])) == pick(p, np.array([np.nextafter(1.0, 0.0)])) == 1


def test_guidance_moves_the_logits_away_from_the_avoided_ones() -> None:
    wanted, avoided = np.log([[0.6, 0.4]]), np.log([[0.5, 0.5]])
    logits, u = np.stack([wanted, avoided]), np.array([0.7])
    share = 0.6**3 / (0.6**3 + 0.4**3)  # a uniform avoided row leaves a power of the wanted one
    assert Choice(guidance=1.0)(logits[:1], u) == 1
    assert Choice(guidance=3.0)(logits, np.array([share - 1e-6])) == 0
    assert Choice(guidance=3.0)(logits, np.array([share + 1e-6])) == 1


def test_a_seed_has_numbers_of_its_own() -> None:
    np.testing.assert_array_equal(uniforms(5, 8), uniforms(5, 8))
    assert not np.array_equal(uniforms(5, 8), uniforms(6, 8))


def test_raster_hands_each_token_to_the_next_and_keeps_what_is_given() -> None:
    asked = []

    def logits(previous: int, position: int) -> np.ndarray:
        asked.append((previous, position))
        return np.eye(10)[[(previous + 1) % 10]]

    drawing = Drawing(uniforms(0, 5), Choice(temperature=0), {2: 7}, lambda count, tokens: None)
    np.testing.assert_array_equal(raster(logits, 3, drawing), [4, 5, 7, 8, 9])
    assert asked == [(3, 0), (4, 1), (5, 2), (7, 3), (8, 4)]


def test_scales_see_the_finished_scales_alone() -> None:
    seen = []

    def logits(tokens: np.ndarray) -> np.ndarray:
        seen.append(tokens.copy())
        return np.eye(10)[np.arange(5) + len(seen)][None]

    drawing = Drawing(uniforms(0, 5), Choice(temperature=0), {3: 9}, lambda count, tokens: None)
    np.testing.assert_array_equal(scales(logits, (1, 2), drawing), [1, 3, 4, 9, 6])
    np.testing.assert_array_equal(seen, [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])


def test_an_onlooker_is_shown_the_picture_so_far() -> None:
    told, shown = [], []
    watch = Watch(lambda done, total: told.append((done, total)), lambda *shown_: shown.append(shown_))
    look = onlooker(watch, 12, lambda codes, made: codes[None] * made[None])
    for count in range(1, 13):
        look(count, np.full(12, 5))
    assert told == [(count, 12) for count in range(1, 13)]
    assert [(kind, index, array.sum()) for kind, index, array, _ in shown] == [("token", 8, 40), ("token", 12, 60)]
