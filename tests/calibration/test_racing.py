"""A race finds what measuring everything finds, and measures no value twice."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.calibration._racing import RUNNERS_UP, Limit, Race, Score, first_step

MOST = 18.43
value = st.floats(-18, 18).map(lambda number: round(number, 1)) | st.sampled_from([-2.0, 0.0, 2.0])
term = st.floats(0, 1).map(lambda number: round(number, 2))


def tables(number, prompts):
    return st.lists(st.lists(number, min_size=prompts, max_size=prompts).map(tuple), min_size=1, max_size=9)


def mean(values):
    return math.fsum(values) / len(values)


class Book:
    """Measures by looking up, and counts."""

    def __init__(self, tables):
        self.tables, self.asked = tables, Counter()

    def __call__(self, asks):
        for ask in filter(None, asks):
            assert set(ask.keys) <= set(ask.heat)
            self.asked.update((ask.kind, key, place) for key in ask.keys for place in ask.span)
        return [
            {key: self.tables[ask.kind][key][ask.span.start : ask.span.stop] for key in ask.keys} if ask else {}
            for ask in asks
        ]


def in_heats_of(size):
    return lambda _kind, keys: [keys[start : start + size] for start in range(0, len(keys), size)]


@given(st.data(), st.integers(1, 11), st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_the_winner_under_limits_is_that_of_measuring_everything(data, prompts, rows, size, lanes):
    score = data.draw(tables(value, prompts))
    n = len(score)
    kl = [tuple(data.draw(term) for _ in range(prompts)) for _ in range(n)]
    groups = [data.draw(st.integers(0, 2)) for _ in range(n)]
    limit = Limit(Score("kl", prompts, least=0.0), "kl", at_most=data.draw(term))
    book = Book({"score": dict(enumerate(score)), "kl": dict(enumerate(kl))})
    race = Race(book, rows, in_heats_of(size), lanes)
    lazy = data.draw(st.booleans())
    keys = list(range(n)) if lazy else race.filter(limit, range(n))
    found = race.lowest(
        Score("score", prompts, -MOST, MOST), keys, group=groups.__getitem__, limits=(limit,) if lazy else ()
    )
    expected = {}
    for group in set(groups):
        passing = [key for key in range(n) if groups[key] == group and mean(kl[key]) <= limit.at_most]
        if passing:
            expected[group] = min(passing, key=lambda key: mean(score[key]))
    assert found == expected
    assert max(book.asked.values(), default=1) == 1
    for key, name in race.rejected.items():
        assert name == "kl"
        assert mean(kl[key]) > limit.at_most
    for key in race.outscored:
        assert key not in found.values()
    race.complete_runners_up(Score("score", prompts, -MOST, MOST), keys, limits=(limit,))
    assert max(book.asked.values(), default=1) == 1
    if len(race.outscored) <= RUNNERS_UP:
        left = [race.of(Score("score", prompts), key) for key in race.outscored - set(race.rejected)]
        assert {len(values) for values in left} <= {0, prompts}


@given(st.data(), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_a_filter_keeps_exactly_what_the_whole_means_keep(data, prompts):
    values = data.draw(tables(value, prompts))
    least = data.draw(value)
    kept = Limit(Score("x", prompts, 0.0, 1.0), "share", at_least=data.draw(term), read=lambda one: float(one > 0))
    induce = Limit(Score("x", prompts, -MOST, MOST), "induce", at_least=least)
    for limit, passes in (
        (induce, lambda row: mean(row) >= least),
        (kept, lambda row: sum(one > 0 for one in row) / len(row) >= kept.at_least),
    ):
        race = Race(Book({"x": dict(enumerate(values))}), 8)
        assert race.filter(limit, range(len(values))) == [key for key, row in enumerate(values) if passes(row)]


@given(st.integers(1, 20), st.floats(-20, 20), st.booleans())
def test_until_some_prompt_no_values_reject_and_from_there_some_do(prompts, edge, upper):
    score = Score("score", prompts, -MOST, MOST)
    limit = Limit(score, "limit", at_most=edge) if upper else Limit(score, "limit", at_least=edge)
    worst = MOST if upper else -MOST
    undecided = limit.undecided
    assert 0 <= undecided < prompts
    assert not any(limit.fails((worst,) * measured) for measured in range(1, undecided + 1))
    assert limit.fails((worst,) * (undecided + 1)) or undecided == prompts - 1


@given(st.data(), st.integers(1, 11), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_how_many_heats_run_at_a_time_changes_nothing_that_is_measured(data, prompts, rows, size):
    tables_ = {name: dict(enumerate(data.draw(tables(value, prompts)))) for name in ("induce",)}
    n = len(tables_["induce"])
    tables_["score"] = {key: tuple(data.draw(value) for _ in range(prompts)) for key in range(n)}
    limit = Limit(Score("induce", prompts, -MOST, MOST), "induce", at_least=data.draw(value))
    races = [Race(Book(tables_), rows, in_heats_of(size), lanes) for lanes in (1, 2, 5)]
    for race in races:
        left = race.filter(limit, range(n))
        race.lowest(Score("score", prompts, -MOST, MOST), left, group=lambda key: key % 2)
    assert all(race.values == races[0].values for race in races)
    assert all(race.rejected == races[0].rejected for race in races)


def test_a_heat_ends_before_the_next_one_begins():
    heats = []

    def measure(asks):
        heats.extend(ask.heat for ask in asks)
        return [dict.fromkeys(ask.keys, (0.0,) * len(ask.span)) for ask in asks]

    Race(measure, 4, in_heats_of(2)).complete(Score("score", 8), "abcde")
    assert heats == [("a", "b")] * 4 + [("c", "d")] * 4 + [("e",)] * 2


@pytest.mark.parametrize(("rows", "spans"), [(32, [8, 2, 2, 2, 2]), (20, [5, 3, 2, 2, 2, 2]), (1, [1] * 16)])
def test_what_cannot_reject_yet_is_measured_together(rows, spans):
    """A mean of at least 0 of 16 prompts: eight at the least value could still be made up for."""
    asked = []

    def measure(asks):
        asked.extend(len(ask.span) for ask in asks)
        return [dict.fromkeys(ask.keys, (0.0,) * len(ask.span)) for ask in asks]

    limit = Limit(Score("score", 16, -1.0, 1.0), "limit", at_least=0.0)
    assert limit.undecided == 8
    assert Race(measure, rows).filter(limit, range(4)) == list(range(4))
    assert asked == spans


def test_what_is_hopeless_is_not_measured_to_the_end():
    prompts = 32
    book = Book({"kl": {"bad": (1.0,) * prompts, "good": (0.0,) * prompts}})
    race = Race(book, 4)
    limit = Limit(Score("kl", prompts, least=0.0), "kl", at_most=0.1)
    assert race.filter(limit, ["bad", "good"]) == ["good"]
    assert len(race.of(limit.score, "bad")) == first_step(prompts) == 4
    assert race.mean(limit.score, "bad") is None
    book = Book({"x": {"best": (-18.0,) * prompts, "worse": (9.0,) * prompts}})
    race = Race(book, 4)
    assert race.lowest(Score("x", prompts, -MOST, MOST), ["worse", "best"], group=lambda _: 0) == {0: "best"}
    assert len(race.of(Score("x", prompts), "worse")) == 4


def test_a_limit_is_not_measured_of_what_cannot_win():
    prompts = 8
    book = Book({"x": {"best": (-9.0,) * prompts, "worse": (9.0,) * prompts}, "kl": {"best": (0.0,) * prompts}})
    limit = Limit(Score("kl", prompts, least=0.0), "kl", at_most=0.1)
    found = Race(book, 64).lowest(
        Score("x", prompts, -MOST, MOST), ["worse", "best"], group=lambda _: 0, limits=[limit]
    )
    assert found == {0: "best"}


@pytest.mark.parametrize("where", [0, 7])
def test_a_value_that_is_no_number_removes_its_candidate(where):
    broken = tuple(math.nan if place == where else -9.0 for place in range(8))
    tables = {"x": {"broken": broken, "whole": (1.0,) * 8}}
    race = Race(Book(tables), 64)
    assert race.filter(Limit(Score("x", 8, -MOST, MOST), "induce", at_least=-20.0), ["broken", "whole"]) == ["whole"]
    assert race.rejected == {"broken": "nan"}
    race = Race(Book(tables), 2)
    assert race.lowest(Score("x", 8, -MOST, MOST), ["broken", "whole"], group=lambda _: 0) == {0: "whole"}
    assert race.rejected == {"broken": "nan"}


def test_equality_with_a_limit_is_kept_and_of_equal_scores_the_first_wins():
    limit = Limit(Score("kl", 3, least=0.0), "kl", at_most=0.25)
    assert Race(Book({"kl": {0: (0.25, 0.0, 0.5)}}), 1).filter(limit, [0]) == [0]
    assert Race(Book({"x": {0: (1.0,), 1: (0.0,), 2: (0.0,)}}), 9).lowest(
        Score("x", 1, -MOST, MOST), [0, 2, 1], group=lambda _: 0
    ) == {0: 2}


def test_what_was_dropped_can_be_completed():
    book = Book({"kl": {0: (1.0,) * 16}})
    race = Race(book, 2)
    limit = Limit(Score("kl", 16, least=0.0), "kl", at_most=0.0)
    assert race.filter(limit, [0]) == []
    race.complete(limit.score, [0])
    assert race.mean(limit.score, 0) == 1.0
    assert max(book.asked.values()) == 1
