"""Bootstrap of the selection: equal to calling the rule on every resample, and right on planted scores."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from demur.calibration import ScoreRow, false_refusal_stability, refusal_stability, select_refusal_direction
from demur.errors import InputError, SelectionError
from demur.records import ScoreRecord

LAYERS = 10


def record(kind, place, values, strength=None):
    values = [None if math.isnan(value) else float(value) for value in values]
    return ScoreRecord(kind=kind, lambda_=strength, position=place[0], layer=place[1], values=values)


def drawn(prompts, resamples, seed):
    """The draws, as documented: a multinomial for each set in its order, from one generator."""
    generator = np.random.default_rng(seed)
    return {label: generator.multinomial(n, np.full(n, 1 / n), size=resamples) for label, n in prompts.items()}


# The refusal direction ----------------------------------------------------------------------------------------------


def refusal_scores(seed=0, harmful=12, harmless=9):
    generator = np.random.default_rng(seed)
    places = [(position, layer) for position in (-3, -2, -1) for layer in range(LAYERS)]
    return {
        "bypass": {place: generator.normal(-2, 3, harmful) for place in places},
        "induce": {place: generator.normal(1, 2, harmless) for place in places},
        "kl": {place: generator.exponential(0.08, harmless) for place in places},
    }


def records_of(scores, strength=None):
    return [record(kind, place, values, strength) for kind, found in scores.items() for place, values in found.items()]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_rule_on_every_resample(seed):
    scores, resamples = refusal_scores(seed), 150
    del scores["bypass"][-2, 3]  # rejected early
    scores["induce"][-1, 4][2] = math.nan
    found = refusal_stability(records_of(scores), n_layers=LAYERS, resamples=resamples, seed=5)
    draws = drawn({"harmful": 12, "harmless": 9}, resamples, 5)

    def choose(harmful, harmless):
        rows = [
            ScoreRow(
                *place,
                bypass=np.repeat(scores["bypass"][place], harmful).mean(),
                induce=(np.repeat(scores["induce"][place], harmless).mean() if place != (-1, 4) else math.nan),
                kl=np.repeat(scores["kl"][place], harmless).mean(),
            )
            for place in scores["bypass"]
        ]
        try:
            chosen = select_refusal_direction(rows, n_layers=LAYERS).selected
        except SelectionError:
            return None
        return chosen.position, chosen.layer

    winners = [choose(*pair) for pair in zip(draws["harmful"], draws["harmless"], strict=True)]
    base = choose(np.ones(12, dtype=int), np.ones(9, dtype=int))
    assert (found.position, found.layer) == base
    assert found.wins == winners.count(base) > 0
    assert found.none_passed == winners.count(None)
    for other in found.others:
        assert other.wins == winners.count((other.position, other.layer)) > 0
    counted = sorted((winners.count(place) for place in set(winners) - {base, None}), reverse=True)
    assert [other.wins for other in found.others] == counted[:5]
    full = {place: values.mean() for place, values in scores["bypass"].items()}
    regrets = [max(full[place] - full[base], 0) for place in winners if place is not None]
    assert found.expected_regret == pytest.approx(np.mean(regrets))
    assert (found.n_candidates, found.n_unscored) == (30, 2)
    assert found.n_prompts == {"harmful": 12, "harmless": 9}
    assert (found.kind, found.resamples, found.seed) == ("refusal_direction", resamples, 5)


def planted(bypass, *, induce=1.0, kl=0.01):
    """Candidates at position -1, one per layer, with these bypass scores per prompt."""
    places = [(-1, layer) for layer in range(len(bypass))]
    return {
        "bypass": dict(zip(places, map(np.array, bypass), strict=True)),
        "induce": {place: np.full(4, induce) for place in places},
        "kl": {place: np.full(4, kl) for place in places},
    }


def test_a_clear_winner_always_wins():
    found = refusal_stability(records_of(planted([[-5.0, -4.0], [-1.0, 0.0], [0.0, 1.0]])), n_layers=LAYERS)
    assert (found.layer, found.wins, found.resamples, found.others) == (0, 2000, 2000, ())
    assert (found.none_passed, found.expected_regret) == (0, 0)


def test_two_equals_share_the_wins_and_the_regret_is_exact():
    """Two prompts that vote against each other: all of one, both, all of the other, with chances 1/4, 1/2, 1/4."""
    found = refusal_stability(records_of(planted([[-5.0, -1.0], [-1.0, -4.0]])), n_layers=LAYERS)
    assert found.layer == 0
    assert found.wins / 2000 == pytest.approx(0.75, abs=0.04)
    assert [(other.layer, other.wins) for other in found.others] == [(1, 2000 - found.wins)]
    assert found.expected_regret == pytest.approx((1 - found.wins / 2000) * 0.5)


def test_equal_scores_go_to_the_first_in_scan_order():
    scores = planted([[-1.0, -2.0]] * 3)
    for kind, found in scores.items():
        scores[kind] = {(-2, 7): found[-1, 0], **found}
    found = refusal_stability(records_of(scores)[::-1], n_layers=LAYERS)
    assert (found.position, found.layer, found.wins) == (-2, 7, 2000)


def test_filters_are_resampled_too():
    scores = planted([[-5.0] * 4, [-1.0] * 4])
    scores["kl"][-1, 0] = np.array([0.0, 0.0, 0.0, 0.39])
    found = refusal_stability(records_of(scores), n_layers=LAYERS)
    assert found.layer == 0
    # One prompt carries the KL: drawn once it is just below the limit, twice above. P(at most once) of 4 draws.
    assert found.wins / 2000 == pytest.approx(0.75**4 + 4 * 0.25 * 0.75**3, abs=0.04)
    assert found.none_passed == 0
    alone = {kind: {(-1, 0): values[-1, 0]} for kind, values in scores.items()}
    assert refusal_stability(records_of(alone), n_layers=LAYERS).none_passed == 2000 - found.wins


def test_late_layers_missing_and_broken_scores_never_win():
    scores = planted([[0.0, 0.1], [-9.0, -9.0], [-9.0, -9.0], [-9.0, -9.0]])
    del scores["induce"][-1, 1]
    scores["kl"][-1, 2][0] = math.nan
    found = refusal_stability(records_of(scores), n_layers=3, layer_fraction=1.0)
    assert (found.layer, found.wins, found.n_unscored) == (0, 2000, 2)


def test_the_last_of_two_records_counts():
    scores = records_of(planted([[0.0, 0.0], [1.0, 1.0]]))
    found = refusal_stability([*scores, record("bypass", (-1, 1), [-3.0, -3.0])], n_layers=LAYERS)
    assert found.layer == 1


# The false-refusal direction ----------------------------------------------------------------------------------------


def false_refusal_scores(generator, places):
    return {
        "w_kl": {place: generator.exponential(0.12, 10) for place in places},
        "w_harmful": {place: generator.normal(3, 1.6, 20) for place in places},
        "w_borderline": {place: generator.normal(0, 2, 15) for place in places},
    }


def loses(before, after, margin):
    """A net loss of refusal probability: estimated at the margin or beyond it, and Student's interval excludes none."""
    change = after - before
    half = student.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
    return change.mean() <= -margin and change.mean() + half < 0


def test_the_false_refusal_rule_on_every_resample():
    generator = np.random.default_rng(2)
    places = [(position, layer) for position in (-2, -1) for layer in range(8)]
    scores = false_refusal_scores(generator, places)
    scores["w_kl"][-1, 0] = np.zeros(10)  # a zero vector
    scores["w_borderline"][-1, 0] = np.full(15, -9.0)
    del scores["w_borderline"][-2, 5], scores["w_harmful"][-2, 6], scores["w_borderline"][-2, 6]
    resamples = 150
    noise = false_refusal_scores(generator, places)
    before = generator.uniform(0.5, 1.0, 20)

    def probability(score):
        return 1 / (1 + math.exp(-(score - 1.2)))

    scores["w_harmful"] = {place: values - 1.6 for place, values in scores["w_harmful"].items()}
    found = false_refusal_stability(
        [*records_of(scores, 0.7), *records_of(noise, 0.8)],
        strength=0.7, kl_limit=0.15, margin=0.1, before=before.tolist(), probability=probability,
        resamples=resamples, seed=9,
    )  # fmt: skip
    draws = drawn({"harmful": 20, "harmless": 10, "borderline": 15}, resamples, 9)

    def choose(harmful, harmless, borderline):
        kept = [
            (np.repeat(scores["w_borderline"][place], borderline).mean(), place)
            for place in sorted(scores["w_borderline"], key=lambda place: (place[1], place[0]))
            if scores["w_kl"][place].any()
            and np.repeat(scores["w_kl"][place], harmless).mean() <= 0.15
            and not loses(
                np.repeat(before, harmful),
                np.repeat([probability(score) for score in scores["w_harmful"][place]], harmful),
                0.1,
            )
        ]
        return min(kept)[1] if kept else None

    winners = [choose(*three) for three in zip(draws["harmful"], draws["harmless"], draws["borderline"], strict=True)]
    base = choose(*(np.ones(n, dtype=int) for n in (20, 10, 15)))
    assert (found.position, found.layer) == base
    assert found.wins == winners.count(base) > 0
    assert found.none_passed == winners.count(None)
    assert len(found.others) > 1
    for other in found.others:
        assert other.wins == winners.count((other.position, other.layer))
    assert (found.lambda_, found.n_candidates, found.n_unscored) == (0.7, 16, 2)
    unlimited = false_refusal_stability(records_of(scores, 0.7), strength=0.7, kl_limit=0.15, margin=0.1, seed=9)
    assert (unlimited.position, unlimited.layer) != base  # the limit on true refusals decided something


def test_a_score_that_is_no_number_is_no_refusal_that_was_kept():
    scores = {
        "w_kl": {(-1, 0): [0.01] * 4, (-1, 1): [0.01] * 4},
        "w_harmful": {(-1, 0): [1.0, 1.0, 1.0, math.nan], (-1, 1): [1.0] * 4},
        "w_borderline": {(-1, 0): [-2.0] * 4, (-1, 1): [0.0] * 4},
    }
    options = {"strength": 1.0, "kl_limit": 0.1, "margin": 0.02}
    limited = false_refusal_stability(records_of(scores, 1.0), **options, before=[1.0] * 4)
    unlimited = false_refusal_stability(records_of(scores, 1.0), **options)
    assert (limited.layer, limited.n_unscored) == (1, 1)
    assert (unlimited.layer, unlimited.n_unscored) == (0, 0)


def test_refusals_that_are_lost_count_by_their_net_change():
    """A gain of one prompt pays for the loss of another; a loss of nearly all is one."""
    places = [(-1, 0), (-1, 1), (-1, 2)]
    scores = {
        "w_kl": {place: [0.01] * 4 for place in places},
        "w_harmful": {
            (-1, 0): ([-1.0] * 9 + [1.0]) * 2,
            (-1, 1): ([1.0] * 4 + [-1.0] * 2 + [1.0] * 2 + [-1.0] * 2) * 2,
            (-1, 2): ([1.0] * 6 + [-1.0] * 4) * 2,
        },
        "w_borderline": {(-1, 0): [-3.0] * 4, (-1, 1): [-2.0] * 4, (-1, 2): [-1.0] * 4},
    }
    options = {"strength": 1.0, "kl_limit": 0.1, "margin": 0.02}
    free = false_refusal_stability(records_of(scores, 1.0), **options)
    limited = false_refusal_stability(records_of(scores, 1.0), **options, before=([1.0] * 6 + [0.0] * 4) * 2)
    assert (free.layer, limited.layer) == (0, 1)
    assert 0 < limited.wins < limited.resamples
    assert limited.n_prompts["harmful"] == 20


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "no bypass and no induce and no kl scores; give the scores.jsonl"),
        (records_of(planted([[0.0, 0.0]])), {"resamples": 0}, "got 0"),
        (records_of(planted([[0.0, 0.0]])), {"kl_limit": 0.001}, "no candidate passes the filters"),
        (records_of(planted([[0.0, 0.0], [0.0]])), {}, r"bypass scores are of \[1, 2\] prompts"),
        (records_of(planted([[]])), {}, r"bypass scores are of \[0\] prompts"),
        (
            [*records_of(planted([[0.0, 0.0]])), record("induce", (-1, 0), [1.0] * 5)],
            {},
            "differ in number: {'kl': 4, 'induce': 5}",
        ),
    ],
)
def test_bad_input_is_refused(scores, options, message):
    with pytest.raises(InputError, match=message):
        refusal_stability(scores, n_layers=LAYERS, **options)


def test_a_lambda_without_scores_is_named():
    with pytest.raises(InputError, match=r"no w_borderline scores at lambda 0\.7"):
        false_refusal_stability([], strength=0.7, kl_limit=0.1, margin=0.02)


def test_it_loads_no_torch():
    import subprocess
    import sys

    code = "import sys; from demur.calibration import refusal_stability; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
