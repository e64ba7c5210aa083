"""The selection rule of Arditi et al.: equal to the published code, with errors that teach."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.calibration._selection import ScoreRow, read_score_table, select_refusal_direction
from demur.errors import InputError, SelectionError

GOOD = ScoreRow(position=-1, layer=3, bypass=-5.0, induce=2.0, kl=0.05)

# Few distinct values on purpose: ties, and values exactly at a limit, are where implementations differ.
SCORES = st.sampled_from([-9.0, -2.5, 0.0, 1.0, 4.0, math.nan]) | st.floats(-10, 10)
KLS = st.sampled_from([0.0, 0.05, 0.1, 0.1000001, 3.0, math.nan]) | st.floats(0, 1)


@st.composite
def score_tables(draw: st.DrawFn) -> tuple[int, list[ScoreRow]]:
    n_layers = draw(st.integers(1, 12))
    places = draw(st.sets(st.tuples(st.integers(-4, -1), st.integers(0, n_layers - 1)), min_size=1, max_size=30))
    rows = [ScoreRow(p, layer, draw(SCORES), draw(SCORES), draw(KLS)) for p, layer in sorted(places)]
    return n_layers, draw(st.permutations(rows))


@dataclass
class OracleRow:
    row: ScoreRow
    score: float


def published_rule(rows: list[ScoreRow], n_layers: int, kl: float, induce: float, prune: float) -> list[ScoreRow]:
    """The published procedure in its own order: loop over the scan, skip, append, sort by the bypass score."""
    kept = []
    for row in sorted(rows, key=lambda r: (r.position, r.layer)):
        if math.isnan(row.bypass) or math.isnan(row.induce) or math.isnan(row.kl):
            continue
        if row.layer >= int(n_layers * (1.0 - prune)):
            continue
        if row.kl > kl:
            continue
        if row.induce < induce:
            continue
        kept.append(OracleRow(row=row, score=-row.bypass))
    kept.sort(key=lambda entry: entry.score, reverse=True)
    return [entry.row for entry in kept]


@given(score_tables())
def test_equals_the_published_rule(table):
    n_layers, rows = table
    expected = published_rule(rows, n_layers, 0.1, 0.0, 0.2)
    if not expected:
        with pytest.raises(SelectionError):
            select_refusal_direction(rows, n_layers=n_layers)
        return
    found = select_refusal_direction(rows, n_layers=n_layers)
    assert (found.selected.position, found.selected.layer) == (expected[0].position, expected[0].layer)
    assert found.survivors == len(expected)
    assert [c for c in found.candidates if c.selected] == [found.selected]
    assert len(found.candidates) == len(rows)
    places = [(c.position, c.layer) for c in found.candidates]
    assert places == sorted(places)
    surviving = {(r.position, r.layer) for r in expected}
    assert {(c.position, c.layer) for c in found.candidates if not c.rejected_by} == surviving


@given(score_tables())
def test_what_the_error_suggests_works(table):
    n_layers, rows = table
    try:
        select_refusal_direction(rows, n_layers=n_layers)
    except SelectionError as error:
        message = str(error)
    else:
        return
    if "finite" in message:
        assert all(math.isnan(r.bypass) or math.isnan(r.induce) or math.isnan(r.kl) for r in rows)
        return
    options = {name.replace("-", "_"): float(value) for name, value in re.findall(r"--([a-z-]+) (\S+)", message)}
    select_refusal_direction(rows, n_layers=n_layers, **options)  # does not raise


@pytest.mark.parametrize(
    ("change", "limits"),
    [
        ({"kl": 0.1}, {}),
        ({"induce": 0.0}, {}),
        ({"layer": 7}, {}),
        ({"kl": 0.2}, {"kl_limit": 0.2}),
        ({"induce": -1.0}, {"induce_minimum": -1.0}),
        ({"layer": 9}, {"layer_fraction": 1.0}),
    ],
)
def test_a_score_equal_to_its_limit_is_kept(change, limits):
    row = ScoreRow(**{**vars(GOOD), **change})
    assert select_refusal_direction([row], n_layers=10, **limits).selected.layer == row.layer


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"kl": 0.1001}, ("kl",)), ({"induce": -1e-9}, ("induce",)), ({"layer": 8}, ("layer",)),
     ({"layer": 9, "kl": 1.0, "induce": -3.0}, ("layer", "kl", "induce"))],
)  # fmt: skip
def test_a_rejected_candidate_says_why_and_is_never_selected(change, reason):
    tempting = ScoreRow(**{**vars(GOOD), "position": -2, "bypass": -50.0, **change})
    found = select_refusal_direction([GOOD, tempting], n_layers=10)
    assert found.candidates[0].rejected_by == reason
    assert (found.selected.position, found.survivors) == (-1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("score", ["bypass", "induce", "kl"])
def test_a_score_that_is_no_finite_number_is_set_apart(score, bad):
    broken = ScoreRow(**{**vars(GOOD), "position": -3, score: bad})
    found = select_refusal_direction([broken, GOOD], n_layers=10)
    assert [c.position for c in found.candidates] == [-3, -1]
    assert found.candidates[0].rejected_by == ("nan",)
    assert getattr(found.candidates[0], f"{score}_score") is None


def test_equal_scores_take_the_first_in_scan_order():
    rows = [ScoreRow(p, layer, -5.0, 1.0, 0.01) for p in (-1, -2) for layer in (4, 2)]
    found = select_refusal_direction(rows, n_layers=10)
    assert (found.selected.position, found.selected.layer) == (-2, 2)


@pytest.mark.parametrize(("n_layers", "last"), [(18, 13), (24, 18), (32, 24), (40, 31), (80, 63)])
def test_the_layer_cut_is_the_one_of_the_published_code(n_layers, last):
    rows = [ScoreRow(-1, layer, float(-layer), 1.0, 0.01) for layer in range(n_layers)]
    assert select_refusal_direction(rows, n_layers=n_layers).selected.layer == last


def test_the_input_is_left_as_it_was():
    rows = [GOOD, ScoreRow(-2, 1, -7.0, 1.0, 0.0)]
    before = list(rows)
    select_refusal_direction(rows, n_layers=10)
    assert rows == before


# Nothing survives ---------------------------------------------------------------------------------------------------


def test_the_error_shows_the_nearest_candidates_and_a_way_out():
    rows = [
        ScoreRow(-1, 3, -9.0, 2.0, 0.115),  # the nearest: one filter, by little
        ScoreRow(-1, 4, -9.5, 2.0, 0.9),
        ScoreRow(-1, 9, -9.0, -4.0, 2.0),
        ScoreRow(-1, 5, math.nan, 1.0, 0.0),
        *(ScoreRow(-2, layer, 1.0, -8.0, 5.0) for layer in range(8)),
    ]
    with pytest.raises(SelectionError) as caught:
        select_refusal_direction(rows, n_layers=10)
    message = str(caught.value)
    lines = message.splitlines()
    assert lines[0] == (
        "none of the 12 candidate directions passed the filters (removed by: nan 1, layer 1, kl 11, induce 9; "
        "they overlap)."
    )
    assert "layers below 8, a KL up to 0.1 and an induce score from 0" in lines[1]
    shown = [line for line in lines if "removed by" in line and line.startswith("  ")]
    assert len(shown) == 5
    assert shown[0] == "  position -1, layer 3: bypass -9.000, induce 2.000, KL 0.1150 -> removed by kl"
    assert "With --kl-limit 0.12 the first" in message


def test_a_candidate_that_does_nothing_is_not_called_near():
    zero = ScoreRow(-2, 0, 2.0, -6.5, 0.0)  # layer 0: the same template token everywhere, so no direction at all
    with pytest.raises(SelectionError) as caught:
        select_refusal_direction([zero, ScoreRow(-1, 3, -4.0, 1.0, 0.2)], n_layers=10)
    assert "--kl-limit 0.2 " in str(caught.value)


def test_all_nan_names_the_precision():
    with pytest.raises(SelectionError, match="--dtype bfloat16"):
        select_refusal_direction([ScoreRow(-1, 0, math.nan, math.nan, math.nan)], n_layers=4)


@pytest.mark.parametrize(
    ("rows", "n_layers", "message"),
    [
        ([], 4, "no candidate to select from"),
        ([GOOD, GOOD], 4, r"\(position -1, layer 3\) is in the table 2 times"),
        ([GOOD], 3, r"layer 3\) is not of this model, which has the layers 0 to 2"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(rows, n_layers, message):
    with pytest.raises(InputError, match=message):
        select_refusal_direction(rows, n_layers=n_layers)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"layer_fraction": 0.0}, "layer_fraction"),
        ({"layer_fraction": 80.0}, r"such as 0\.8; got 80\.0"),
        ({"kl_limit": -0.1}, "kl_limit"),
        ({"kl_limit": math.nan}, "kl_limit"),
        ({"induce_minimum": math.nan}, "induce_minimum"),
    ],
)
def test_limits_out_of_range_are_refused(limits, message):
    with pytest.raises(InputError, match=message):
        select_refusal_direction([GOOD], n_layers=10, **limits)


def test_a_limit_of_zero_works():
    assert select_refusal_direction([ScoreRow(-1, 1, 0.0, 0.0, 0.0)], n_layers=4, kl_limit=0.0).survivors == 1
    with pytest.raises(SelectionError, match="removed by kl"):
        select_refusal_direction([GOOD], n_layers=10, kl_limit=0.0)


# Tables on disk -----------------------------------------------------------------------------------------------------

ROW = {"position": -1, "layer": 3, "bypass_score": -5.0, "induce_score": 2.0, "kl_score": 0.05}


def write(folder: Path, table: object) -> Path:
    path = folder / "scores.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_our_names_and_the_published_ones_read_the_same(tmp_path):
    theirs = {"position": -1, "layer": 3, "refusal_score": -5.0, "steering_score": 2.0, "kl_div_score": 0.05}
    ours = read_score_table(write(tmp_path, {"n_layers": 10, "candidates": [ROW]}))
    assert ours.rows == (GOOD,)
    assert ours == read_score_table(write(tmp_path, {"n_layers": 10, "candidates": [theirs], "model": "m"}))
    assert ours == read_score_table(write(tmp_path, {"n_layers": 10, "refusal": [ROW], "positions": [-1]}))


@pytest.mark.parametrize("value", ["NaN", "null"])
def test_a_missing_number_is_read_as_nan(tmp_path, value):
    text = json.dumps({"n_layers": 10, "candidates": [ROW]}).replace("-5.0", value)
    (row,) = read_score_table(write(tmp_path, text)).rows
    assert math.isnan(row.bypass)
    assert not row.is_finite


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in ROW.items() if name != key}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "no JSON file"),
        ([], 'object with "n_layers" and "candidates"'),
        ({"candidates": [ROW]}, 'has no "n_layers"; its keys are candidates'),
        ({"n_layers": 0, "candidates": [ROW]}, "at least 1; got 0"),
        ({"n_layers": True, "candidates": [ROW]}, "must be a whole number; got True"),
        ({"n_layers": 10}, 'needs a list "candidates"'),
        ({"n_layers": 10, "candidates": {}}, 'needs a list "candidates"'),
        ({"n_layers": 10, "candidates": [ROW, 7]}, "candidate 2: must be an object"),
        ({"n_layers": 10, "candidates": [without("layer")]}, 'candidate 1: has no "layer"'),
        ({"n_layers": 10, "candidates": [ROW | {"position": 0}]}, '"position" counts from the end'),
        ({"n_layers": 10, "candidates": [ROW | {"layer": 1.5}]}, '"layer" must be a whole number; got 1.5'),
        ({"n_layers": 10, "candidates": [ROW | {"kl_score": "0.1"}]}, "\"kl_score\" must be a number; got '0.1'"),
        ({"n_layers": 10, "candidates": [without("kl_score")]}, 'has neither "kl_score" nor "kl_div_score"'),
        ({"n_layers": 10, "candidates": [ROW | {"kl_div_score": 1}]}, 'has both "kl_score" and "kl_div_score"'),
        ({"n_layers": 10, "candidates": [ROW, ROW]}, "is in the table 2 times"),
        ({"n_layers": 3, "candidates": [ROW]}, "layers 0 to 2"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, table, message):
    path = write(tmp_path, table)
    with pytest.raises(InputError) as caught:
        read_score_table(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read the score table"):
        read_score_table(tmp_path / "absent.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no JSON file"):
        read_score_table(binary)


def test_reproduces_published_choices():
    """Real tables with the choice published for them: `model.json` files with an additional `selected` {pos, layer}."""
    folder = os.environ.get("DEMUR_SCORE_TABLES")
    if not folder:
        pytest.skip("DEMUR_SCORE_TABLES is not set to a folder of published score tables")
    paths = sorted(Path(folder).glob("*.json"))
    assert paths
    survivors = {"gemma-2b-it": 13, "meta-llama-3-8b-instruct": 25, "qwen-1_8b-chat": 12}
    for path in paths:
        table = read_score_table(path)
        published = json.loads(path.read_text())["selected"]
        found = select_refusal_direction(table.rows, n_layers=table.n_layers)
        assert (found.selected.position, found.selected.layer) == (published["pos"], published["layer"])
        assert found.survivors == survivors.get(path.stem, found.survivors)
