import math

import numpy as np
import pytest

from graphopt.runtime.statistics import Z95, mcnemar, newcombe_paired, paired_delta, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson(n - k, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_at_the_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 9)[0] == 0.0 and wilson(9, 9)[1] == 1.0
    for k, n in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson(k, n)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 5, 14 / 64), (0, 10, 2 / 1024), (0, 1, 1.0), (2, 0, 0.5)],
)
def test_mcnemar(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_mcnemar_of_many():
    # 3 standard deviations of a fair coin: the normal two-sided tail, with the usual continuity correction.
    n, spread = 10000, 3 * math.sqrt(10000) / 2
    b = int(n / 2 - spread)
    tail = math.erfc((spread - 0.5) / (math.sqrt(n) / 2) / math.sqrt(2))
    assert mcnemar(b, n - b) == pytest.approx(tail, rel=0.01)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # the first from Newcombe, 1998, method 10; in the others phi is 0, so both Wilson intervals add in squares
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((0, 54, 0, 0), 0.9061, 1.0),
    ],
)
def test_newcombe(table, low, high):
    assert newcombe_paired(*table) == pytest.approx((low, high), abs=6e-5)
    e, f, g, h = table
    assert newcombe_paired(e, g, f, h) == pytest.approx((-high, -low), abs=6e-5)


def test_paired_delta_is_after_minus_before():
    before = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1], dtype=bool)
    after = np.array([1, 1, 0, 0, 0, 0, 0, 1, 0, 1], dtype=bool)
    got = paired_delta(before, after)
    assert (got.n, got.gained, got.lost) == (10, 1, 3)
    assert got.delta == pytest.approx(-20.0)
    assert got.ci95[0] < -20 < got.ci95[1]
    assert got.mcnemar_p == pytest.approx(0.625)
    assert paired_delta(after, before).delta == pytest.approx(20.0)


def test_paired_delta_of_many_is_near_the_normal_approximation():
    rng = np.random.default_rng(0)
    before = rng.random(5000) < 0.8
    after = before ^ (rng.random(5000) < 0.04)
    got = paired_delta(before, after)
    wald = 100 * Z95 * math.sqrt(got.gained + got.lost - (got.gained - got.lost) ** 2 / 5000) / 5000
    assert (got.ci95[1] - got.ci95[0]) / 2 == pytest.approx(wald, rel=0.05)


def test_equal_models_still_have_an_interval():
    same = np.ones(100, dtype=bool)
    same[:20] = False
    got = paired_delta(same, same)
    assert got.delta == 0 and got.mcnemar_p == 1
    assert -3 < got.ci95[0] < 0 < got.ci95[1] < 3


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], []), ([[True]], [[True]])])
def test_paired_delta_needs_pairs(a, b):
    with pytest.raises(ValueError, match="one length"):
        paired_delta(np.array(a, dtype=bool), np.array(b, dtype=bool))


def test_newcombe_covers_as_promised():
    rng = np.random.default_rng(1)
    truth = np.array([0.75, 0.07, 0.05, 0.13])  # both right, first only, second only, neither
    hits = 0
    for _ in range(1000):
        low, high = newcombe_paired(*(int(v) for v in rng.multinomial(300, truth)))
        hits += low <= truth[1] - truth[2] <= high
    assert 0.93 <= hits / 1000 <= 0.985
