"""Statistics of the data, compared with values by hand."""

import numpy as np
import pytest

from alignflow.data import statistics


def lengths(*values):
    return np.array(values, np.uint32)


def test_quantiles_are_lengths_that_occur():
    """Of 1 to 100 the smallest length with half of all at or below it is 50."""
    found = statistics.quantiles(lengths(*range(100, 0, -1)))
    assert (found["mean"], found["50%"], found["95%"], found["max"]) == (50.5, 50, 95, 100)
    assert statistics.quantiles(lengths()) == {}


def test_the_pull_of_length():
    """Differences -2, 2, 0, -4: mean -1, deviation √(20/3) of four, error √(20/3)/2 = 1.291, times 1.95996 = 2.530."""
    found = statistics.length_bias(lengths(1, 4, 3, 1), lengths(3, 2, 3, 5))
    assert (found["shorter"], found["longer"], found["equal"], found["difference"]) == (0.5, 0.25, 0.25, -1)
    assert found["low"] == pytest.approx(-3.530, abs=1e-3)
    assert found["high"] == pytest.approx(1.530, abs=1e-3)
    assert statistics.length_bias(lengths(), lengths()) == {}


def test_a_histogram_counts_every_answer_once():
    found = statistics.histogram(lengths(1, 5, 9, 1000), lengths(2, 2, 3, 4))
    assert sum(found["chosen"]) == sum(found["rejected"]) == 4
    assert len(found["edges"]) == len(found["chosen"]) + 1


def test_many_turns_are_counted_together():
    assert statistics.counted(np.array([1, 3, 9, 12, 1], np.uint16), 8) == {"1": 2, "3": 1, "more than 8": 2}
