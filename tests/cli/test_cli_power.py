"""`demur power`: plain words, JSON, bad input."""

import json

import pytest
from cli_runs import call, error_of

from demur.evaluation import power_plan


def test_it_says_how_many_prompts_are_needed():
    called = call("power")
    assert called.code == 0
    assert "true refusals kept (margin 2 points): 189 harmful test prompts, if 0 % are lost" in called.out
    assert "false refusals down by 5 points: 228 borderline test prompts, if 1 % are newly refused" in called.out
    assert "it should hold at least 419 harmful prompts and 501 borderline ones" in called.out
    assert called.err == ""
    row = next(line for line in called.out.splitlines() if line.startswith("250 "))
    assert [cell.strip() for cell in row.split("│")] == ["250", "100%", "84%", "+- 6.2 points"]


def test_json_is_the_plan():
    called = call(
        "power", "--margin", "0.01", "--lost", "0.002", "--gained", "0.003", "--detect", "0.1", "--flip-back", "0.03",
        "--n", "700", "--power", "0.9", "--json",
    )  # fmt: skip
    plan = power_plan(margin=0.01, lost=0.002, gained=0.003, detect=0.1, flip_back=0.03, n=700, power=0.9)
    assert json.loads(called.out) == plan.model_dump(mode="json", by_alias=True)
    assert "margin 1 point)" in called.err
    assert "For a chance of 90 % each" in called.err


@pytest.mark.parametrize(
    ("lost", "why"), [("0.02", "a model that loses as much as the margin"), ("0.0199", "the loss is too near")]
)
def test_what_no_number_can_show(lost, why):
    called = call("power", "--lost", lost)
    assert called.code == 0
    assert f"no number of prompts shows it, as {why}" in called.out
    assert "it should hold at least 501 borderline ones" in called.out


@pytest.mark.parametrize(
    ("words", "message"), [(["--power", "1"], "such as 0.8; got 1.0"), (["--detect", "0"], "got detect 0.0")]
)
def test_bad_input(words, message):
    called = call("power", *words, "--json")
    assert called.code == 2
    assert message in error_of(called)["message"]
