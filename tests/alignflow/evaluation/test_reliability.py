"""Statistics of a reward model's reliability."""

import math

from alignflow.evaluation import reliability
from alignflow.evaluation.reliability import Bucket, Point
from tests.close import FLOAT64, close


def test_a_tie_is_not_the_right_order():
    assert reliability.accuracy([1.0, 0.0, -1.0, 2.0]) == 0.5


def test_wilson_by_hand():
    """8 of 10, z = 1.959964: (0.8 + 0.192073 ± 1.959964·√(0.016 + 0.0096036)) / 1.384146."""
    low, high = reliability.wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_wilson_stays_inside_at_the_ends():
    """0 of 10: the upper end is (z²/10) / (1 + z²/10) = 0.384146 / 1.384146."""
    low, high = reliability.wilson(0, 10)
    assert (round(low, 12), round(high, 4)) == (0.0, 0.2775)
    assert round(reliability.wilson(10, 10)[1], 12) == 1.0


def test_buckets_are_equally_full_and_sorted_by_their_value():
    values = [8.0, 1, 7, 2, 6, 3, 5, 4]
    margins = [1.0, -1, 1, 1, -1, 1, -1, 1]
    assert reliability.buckets(values, margins, count=4) == [
        Bucket(1.0, 2.0, 2, 0.5),
        Bucket(3.0, 4.0, 2, 1.0),
        Bucket(5.0, 6.0, 2, 0.0),
        Bucket(7.0, 8.0, 2, 1.0),
    ]


def test_equal_values_stay_in_one_bucket():
    assert reliability.buckets([2, 2, 2, 5], [1.0, 1, -1, -1], count=2) == [Bucket(2, 5, 4, 0.5)]
    assert reliability.buckets([2, 2, 5, 5, 5], [1.0, 1, -1, 1, 1], count=2) == [
        Bucket(2, 2, 2, 1.0),
        Bucket(5, 5, 3, 2 / 3),
    ]


def test_the_calibration_curve_by_hand():
    """Margins ± log 3 give 3/4 to the preferred answer, of which three in four labels agree; 0 gives 1/2, by half."""
    curve = reliability.calibration_curve([math.log(3), -math.log(3), math.log(3), 0.0, math.log(3)])
    assert [point.pairs for point in curve] == [1, 4]
    close([curve[0].probability, curve[0].observed], [0.5, 0.5], FLOAT64)
    close([curve[1].probability, curve[1].observed], [0.75, 0.75], FLOAT64)


def test_certainty_falls_into_the_last_bin():
    assert reliability.calibration_curve([1000.0, -1000.0, 50.0]) == [Point(1.0, 2 / 3, 3)]


def test_calibration_by_hand():
    """Four pairs of probability 3/4, all right: a gap of 1/4. One pair in five far off: |0.9 − 0.4|·1/5 = 0.1."""
    close(reliability.calibration_error(reliability.calibration_curve([math.log(3)] * 4)), 0.25, FLOAT64)
    close(reliability.calibration_error([Point(0.75, 0.75, 4), Point(0.9, 0.4, 1)]), 0.1, FLOAT64)


def test_no_confidence_is_perfectly_calibrated():
    close(reliability.calibration_error(reliability.calibration_curve([0.0] * 10)), 0.0, FLOAT64)


def test_a_correlation_with_what_never_varies_is_unknown():
    close(reliability.correlation([1, 2, 3], [6, 4, 2]), -1.0, FLOAT64)
    assert reliability.correlation([1, 2, 3], [5, 5, 5]) is None


def test_the_shorter_answer_wins_as_often_as_counted():
    """Shorter, equal (by half), longer: 1.5 of 3."""
    assert reliability.shorter_wins([3, 5, 4], [5, 5, 2]) == 0.5


def test_common_errors_by_hand():
    """Of 10 pairs both are wrong on 2, one alone on 1 each, so each is wrong on 3: by chance 3 * 3 / 10 = 0.9 together.

    phi = (2 * 6 - 1 * 1) / sqrt(3 * 7 * 3 * 7) = 11 / 21. A tie is an error.
    """
    found = reliability.common_errors([-1.0, 0.0, -2.0, 1.0, *[1.0] * 6], [-3.0, -1.0, 1.0, -1.0, *[2.0] * 6])
    assert (found.pairs, found.both_wrong, found.first_wrong, found.second_wrong) == (10, 2, 1, 1)
    assert found.expected == 0.9
    assert found.phi is not None
    close(found.phi, 11 / 21, FLOAT64)


def test_a_model_that_is_never_wrong_has_no_common_error():
    found = reliability.common_errors([1.0, 1.0], [1.0, -1.0])
    assert (found.both_wrong, found.expected, found.phi) == (0, 0.0, None)
