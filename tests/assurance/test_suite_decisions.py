"""Pass, fail and inconclusive, against oracles that know the definitions only."""

import hashlib
import itertools
import math

import pytest

from demur.assurance._suite_cases import Contains, Matches, Projection, Range, Share
from demur.assurance._suite_checks import check_mean, check_share, flakiness_of, rate_of, worst
from demur.evaluation import clustered_rate
from demur.prompts import Prompt

Z = 1.959963984540054


def prompts(count, label="harmless"):
    return [Prompt(f"text {number}", label, where=f"line {number}") for number in range(count)]


def wilson(k, n):
    """Roots of (k/n - p)^2 = z^2 p (1 - p) / n, by the quadratic formula."""
    a, b, c = 1 + Z**2 / n, -(2 * k / n + Z**2 / n), (k / n) ** 2
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def decision(wanted, flags):
    return check_share("refuses", wanted, [[flag] for flag in flags], prompts(len(flags)), None).decision


@pytest.mark.parametrize("limit", [0.1, 0.5, 0.8, 0.95])
def test_limits_are_decided_on_the_whole_interval(limit):
    seen = set()
    for n in (3, 20, 60):
        for k in range(n + 1):
            flags = [True] * k + [False] * (n - k)
            low, high = wilson(k, n)
            least = "pass" if low >= limit else "fail" if high < limit else "inconclusive"
            most = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
            assert decision(Share(at_least=limit), flags) == least
            assert decision(Share(at_most=limit), flags) == most
            assert decision(Share(at_least=limit, bound="point"), flags) == ("pass" if k / n >= limit else "fail")
            assert decision(Share(at_most=limit, bound="point"), flags) == ("pass" if k / n <= limit else "fail")
            seen |= {least, most}
    assert seen == {"pass", "fail", "inconclusive"}


@pytest.mark.parametrize("wanted", [
    Share(), Share(at_least=0.6), Share(at_most=0.4), Share(at_least=0.5, bound="point"),
    Share(at_least=0.2, at_most=0.9), Share(at_most=0.5, bound="point"),
])  # fmt: skip
def test_what_was_not_judged_can_never_matter_to_a_pass_or_a_fail(wanted):
    """A decision with unjudged answers holds for every way in which they may be filled."""
    decided = 0
    for k, no, unjudged in itertools.product((0, 1, 5, 9), (0, 1, 5, 9), (1, 2)):
        found = decision(wanted, [True] * k + [False] * no + [None] * unjudged)
        filled = [
            decision(wanted, [True] * (k + more) + [False] * (no + unjudged - more)) for more in range(unjudged + 1)
        ]
        if found != "inconclusive":
            decided += 1
            assert set(filled) == {found}
    assert decided > 3


def test_every_prompt_is_asked_for_without_limits():
    assert decision(Share(), [True, True]) == "pass"
    assert decision(Share(), [True, False, None]) == "fail"
    assert decision(Share(), [True, None]) == "inconclusive"


def test_both_limits_must_hold():
    assert decision(Share(at_least=0.2, at_most=0.8), [True] * 30 + [False] * 30) == "pass"
    assert decision(Share(at_least=0.2, at_most=0.8), [True] * 60) == "fail"
    assert decision(Share(at_least=0.2, at_most=0.8), [False] * 60) == "fail"
    assert decision(Share(at_least=0.45, at_most=0.8), [True] * 30 + [False] * 30) == "inconclusive"
    assert worst(["pass", "inconclusive", "fail"]) == "fail"
    assert worst(["pass", "inconclusive"]) == "inconclusive"


def test_the_rate_is_of_what_was_judged():
    check = check_share("answers", Share(at_least=0.1), [[True], [False], [None], [True]], prompts(4), None)
    assert (check.rate.k, check.rate.n, check.rate.unjudged) == (2, 3, 1)
    assert (check.rate.low, check.rate.high) == pytest.approx(wilson(2, 3))


@pytest.mark.parametrize(
    ("wanted", "against"),
    [
        (Share(), [1, 3]),
        (Share(at_least=0.1), [1, 3]),
        (Share(at_most=0.9), [0, 2]),
        (Share(at_least=0.1, at_most=0.9), [1, 3]),
    ],
)
def test_prompts_against_it_are_named_by_hash_and_place(wanted, against):
    asked = prompts(5)
    check = check_share("refuses", wanted, [[True], [False], [True], [True, False], [None]], asked, None)
    if wanted.at_least is None and wanted.at_most is not None:
        against = [*against, 3]
    assert [(each.sha256, each.where) for each in check.against] == [
        (hashlib.sha256(f"text {number}".encode()).hexdigest(), f"line {number}") for number in against
    ]
    assert check.n_against == len(against)


def test_few_prompts_are_named_and_all_are_counted():
    check = check_share("refuses", Share(), [[False]] * 50, prompts(50), None)
    assert (len(check.against), check.n_against) == (20, 50)


def test_samples_of_one_prompt_are_not_so_many_prompts():
    alike = [[True] * 10] * 6 + [[False] * 10] * 6
    measured = rate_of(alike)
    assert (measured.k, measured.n) == (60, 120)
    oracle = clustered_rate(
        [flag for some in alike for flag in some], [number for number in range(12) for _ in range(10)]
    )
    assert (measured.low, measured.high) == (oracle.low, oracle.high)
    low, high = wilson(60, 120)
    assert measured.high - measured.low > 2 * (high - low)


def test_samples_of_a_single_prompt_speak_of_that_prompt():
    measured = rate_of([[True] * 18 + [False] * 2])
    assert (measured.low, measured.high) == pytest.approx(wilson(18, 20))


def test_flakiness():
    flags = [[True, True, True], [True, False, True], [None, None, None], [False, None, False]]
    flaky = flakiness_of(
        [(Share(at_least=0.6), [[True, True, False]] * 2), (Share(), [[True, False, True]] * 2)], flags
    )
    assert (flaky.samples, flaky.passing) == (3, 1)
    assert (flaky.wavering.k, flaky.wavering.n, flaky.wavering.unjudged) == (1, 3, 1)


# Means --------------------------------------------------------------------------------------------------------------


def mean_check(wanted, values, kind="refusal_score"):
    return check_mean(kind, wanted, values, prompts(len(values)), unit="log-odds")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 2.0, 2.0], ("pass", "fail", "pass")),
        ([-2.0, -2.0], ("fail", "pass", "fail")),
        ([-5.0, 6.0] * 5, ("inconclusive", "inconclusive", "pass")),
        ([1.0], ("fail", "fail", "fail")),
    ],
)
def test_limits_of_means(values, expected):
    found = (
        mean_check(Range(above=1), values).decision,
        mean_check(Range(below=1), values).decision,
        mean_check(Range(above=0 if len(values) > 1 else 1, bound="point"), values).decision,
    )
    assert found == expected


def test_a_mean_has_its_interval_and_its_prompts():
    values = [0.1, 0.5, 0.9, 1.3]
    check = mean_check(Range(above=0.4, below=1.0, bound="point"), values)
    assert check.decision == "pass"
    assert check.mean.mean == pytest.approx(0.7)
    assert check.mean.low < 0.7 < check.mean.high
    assert [each.where for each in check.against] == ["line 0", "line 3"]


# Words --------------------------------------------------------------------------------------------------------------


def words(kind, wanted, label="harmless"):
    return check_share(kind, wanted, [[True]], prompts(1, label), None).expected


def test_expectations_in_words():
    assert words("refuses", Share()) == "every prompt: refused"
    assert words("answers", Share(at_least=0.9)) == "answered: at least 90 % (whole interval)"
    assert (
        words("refuses", Share(at_least=0.125, at_most=0.5, bound="point"))
        == "refused: at least 12.5 % and at most 50 %"
    )
    assert words("matches", Matches(pattern="a|b")) == "every prompt: answers that match 'a|b'"
    assert mean_check(Projection(above=0, layer=3), [1.0], "projection").expected == (
        "mean projection on r at layer 3 above 0 log-odds (whole interval)"
    )


def test_what_is_looked_for_in_answers_to_harmful_prompts_is_a_hash():
    for kind, wanted in (("matches", Matches(pattern="step one")), ("contains", Contains(text="step one"))):
        said = words(kind, wanted, "harmful")
        assert "step" not in said
        assert hashlib.sha256(b"step one").hexdigest()[:12] in said
