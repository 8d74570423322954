import math

import numpy as np
import pytest

from rltemp.errors import BadInputError
from rltemp.experiments.statistics import (
    detectable,
    holm,
    interquartile_mean,
    mean_and_error,
    paired_difference,
    seeds_needed,
)


def test_the_standard_error_is_the_sample_deviation_over_root_n():
    # deviations -3, 0, 3: variance 18 / 2 = 9, error 3 / sqrt(3)
    mean, error = mean_and_error([90.0, 93.0, 96.0])
    assert (mean, error) == (93.0, pytest.approx(math.sqrt(3)))
    assert mean_and_error([0.5]) == (0.5, pytest.approx(math.nan, nan_ok=True)), "one value has no error"


def test_few_pairs_get_students_t():
    # differences {1, 2}: mean 1.5, standard error 1/2, and t of one degree of freedom is 12.706 at 97.5 %
    pair = paired_difference([3.0, 5.0], [2.0, 3.0])
    assert (pair.mean, pair.low, pair.high) == pytest.approx((1.5, 1.5 - 6.353, 1.5 + 6.353), abs=1e-3)


def test_the_test_counts_the_ways_to_set_signs_that_are_as_far_from_zero():
    # 1 + 2 + 4: of the 8 sums only +-7 are as far; of 1, 2 and -4 (sum -1) all but +-1 are farther: 8 of 8
    assert paired_difference([1, 2, 4], [0, 0, 0]).p == pytest.approx(2 / 8)
    assert paired_difference([1, 2, -4], [0, 0, 0]).p == pytest.approx(8 / 8)
    assert paired_difference([3.0] * 20, [2.0] * 20).p < 0.001
    assert paired_difference([0.3] * 20, [0.1 + 0.2] * 20).p == 1.0, "dust is no difference"
    assert math.isnan(paired_difference([1.0], [0.0]).p)


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls():
    # sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and no less than the one before
    assert holm([0.5, 0.02, 0.01, 0.03]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([0.04, math.nan, 0.01])
    assert (corrected[0], corrected[2]) == (0.04, 0.02)
    assert math.isnan(corrected[1])
    assert holm([]) == []


def test_what_could_have_been_shown_is_what_power_tables_say():
    # Cohen (1988), paired, two-sided 5 %, power 80 %: effect sizes 0.2, 0.5 and 0.8 need 199, 34 and 15 pairs
    assert [seeds_needed(1.0, effect) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]
    for effect, pairs in ((0.2, 199), (0.5, 34), (0.8, 15)):
        assert detectable(1.0, pairs) <= effect < detectable(1.0, pairs - 1)
    assert detectable(3.0, 34) == pytest.approx(3 * detectable(1.0, 34))
    assert detectable(1.0, 34, tests=10) > detectable(1.0, 34)
    assert seeds_needed(1.0, 0.5, tests=10) > 34
    assert math.isnan(detectable(1.0, 1))
    assert seeds_needed(0.0, 0.1) == 2


def test_the_middle_half_of_all_values_leaves_outliers_out():
    mean, low, high = interquartile_mean([[0, 1, 2, 3], [-90, 1, 2, 90]])
    assert mean == 1.5
    assert -90 < low < mean < high < 90
    # Tasks a point apart and without deviation: resampling over all of them would have a wide interval.
    assert interquartile_mean([[1.0] * 8, [2.0] * 8]) == (1.5, 1.5, 1.5)
    assert interquartile_mean([[1.0], [2.0]]) == pytest.approx((1.5, math.nan, math.nan), nan_ok=True)


def test_intervals_of_equal_tiny_and_single_differences():
    pair = paired_difference([1.0, 1.0], [2.0, 2.0])
    assert (pair.mean, pair.low, pair.high, pair.n) == (-1.0, -1.0, -1.0, 2), "the sign is first minus second"
    first, second = np.array([0.3, 0.2, 0.5]), np.array([0.2, 0.1, 0.4])
    assert len(set((first - second).tolist())) > 1
    equal = paired_difference(first, second)
    assert equal.low == equal.mean == equal.high == pytest.approx(0.1), "in spite of the last bit"
    tiny = paired_difference([1e-6, 3e-6, 2e-6] * 3, [0.0] * 9)
    assert tiny.low < tiny.mean < tiny.high
    single = paired_difference([0.75], [0.5])
    assert (single.mean, single.n, math.isnan(single.low), math.isnan(single.high)) == (0.25, 1, True, True)


def test_what_the_seeds_do_to_both_methods_cancels():
    seeds = np.linspace(80.0, 99.0, 40)
    small = np.tile([0.4, 0.6], 20)
    pair = paired_difference(seeds + small, seeds)
    # deviation 0.1013, error 0.0160, so +-0.0314; the seeds themselves spread over 19 points
    assert pair.mean == pytest.approx(0.5)
    assert (pair.low, pair.high) == pytest.approx((0.4686, 0.5314), abs=0.004)


def test_the_interval_is_the_same_again_and_wider_with_more_confidence():
    a, b = np.random.default_rng(5).normal(size=(2, 30))
    assert paired_difference(a, b) == paired_difference(a, b)
    narrow, wide = paired_difference(a, b, confidence=0.8), paired_difference(a, b, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_skewed_difference_has_a_longer_side_where_its_tail_is():
    differences = np.append(np.zeros(63), 1.0)
    pair = paired_difference(differences, np.zeros(64))
    assert pair.high - pair.mean > 2 * (pair.mean - pair.low)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan], [math.inf, 1.0], 3.0])
def test_anything_but_a_row_of_finite_numbers_is_refused(values):
    with pytest.raises(BadInputError, match=r"needed: one finite value a seed"):
        mean_and_error(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_what_does_not_pair_up_and_a_confidence_out_of_range_are_refused(confidence):
    with pytest.raises(BadInputError, match="got 2 and 3 values"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(BadInputError, match="confidence must be between 0 and 1"):
        paired_difference([1, 2], [1, 1], confidence)


def test_an_astronomical_deviation_needs_as_many_pairs_as_the_normal_does():
    few, many = seeds_needed(1e3, 0.1), seeds_needed(1e18, 0.1)
    assert many == pytest.approx(few * 1e30, rel=1e-6)
    assert paired_difference([1e18, 0, 3, 4], [0, 1, 2, 9]).n == 4
