import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.runtime.latency import Latency, measure, speedup


def latency(samples, batch=1):
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    return Latency(median, q1, q3, len(samples), len(samples), batch, 1, np.asarray(samples, dtype=float))


def test_models_are_timed_together(make_model):
    small, large = measure([make_model(), make_model(shape=("n", 3, 512, 512))], rounds=9, threads=1)
    for one in (small, large):
        assert one.rounds == 9 == len(one.samples_ms) and one.runs >= 9
        assert 0 < one.q1_ms <= one.median_ms <= one.q3_ms
        assert (one.batch, one.threads) == (1, 1)
    assert large.median_ms > 3 * small.median_ms
    assert speedup(large, small) > 3
    assert speedup(small, small) == 1.0


def test_fixed_batch_counts_per_image(make_model):
    (fixed,) = measure([make_model(shape=(4, 3, 8, 8))], rounds=2, batch=2)
    assert fixed.batch == 4
    assert speedup(latency([1, 1], batch=1), latency([2, 2], batch=4)) == pytest.approx(2.0)


def test_speedup_cancels_a_machine_that_changes_its_pace():
    pace = np.array([1, 1, 1, 1, 1, 5, 5, 5, 5])
    assert speedup(latency(2 * pace), latency(1 * pace)) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="together"):
        speedup(latency([1, 2]), latency([1]))


def test_open_sizes_must_be_given(make_model):
    model = make_model(shape=("n", 3, "h", "w"))
    with pytest.raises(ModelError, match="leaves its size open"):
        measure([model], rounds=1)
    assert measure([model], rounds=1, height=8, width=9)[0].rounds == 1


def test_seconds_bound_the_rounds(make_model):
    (one,) = measure([make_model()], seconds=0.05)
    assert 5 <= one.rounds <= 20
