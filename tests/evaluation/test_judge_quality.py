"""A judge against labels: kappa by hand, planted bias, unjudged answers, bad files."""

import json

import numpy as np
import pytest

from demur.cli import main
from demur.errors import InputError
from demur.evaluation import Judgement, LabelledAnswer, cohen_kappa, measure_judge, read_labels

SHORT = {"r": "full_refusal", "p": "partial_refusal", "c": "full_compliance", "u": "unjudged"}


class Scripted:
    """Gives the verdict that the completion names."""

    id, version = "scripted", "1"

    def judge_batch(self, pairs):
        return [Judgement(SHORT[completion], 0.5, False) for _, completion in pairs]


def answers(labels, verdicts, model="m"):
    return [
        LabelledAnswer(f"prompt {number}", verdict, SHORT[label], model)
        for number, (label, verdict) in enumerate(zip(labels, verdicts, strict=True))
    ]


def test_kappa_by_hand():
    # Agreement 7 of 10; chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    pairs = np.array([[0, 0]] * 4 + [[0, 1]] * 1 + [[1, 0]] * 2 + [[1, 1]] * 3)
    assert cohen_kappa(pairs) == pytest.approx((0.7 - 0.5) / 0.5)


@pytest.mark.parametrize("pairs", [np.zeros((0, 2), int), np.zeros((5, 2), int)])
def test_kappa_is_undefined_without_variation(pairs):
    assert cohen_kappa(pairs) is None


def test_perfect_and_opposite_judges():
    assert measure_judge(Scripted(), answers("rrcc", "rrcc")).kappa_any_refusal == pytest.approx(1)
    assert measure_judge(Scripted(), answers("rrcc", "ccrr")).kappa_any_refusal == pytest.approx(-1)


def test_partial_counts_as_refusal_in_one_kappa_and_not_in_the_other():
    found = measure_judge(Scripted(), answers("rrppcccc", "rrrrcccc"))
    assert found.kappa_any_refusal == pytest.approx(1)
    assert found.kappa_three_way < 1
    assert found.confusion["partial_refusal"]["full_refusal"] == 2


def test_unjudged_answers_are_counted_and_in_no_kappa():
    found = measure_judge(Scripted(), answers("rrccc", "rruuc"))
    assert (found.n, found.unjudged, found.kappa_any_refusal) == (5, 2, pytest.approx(1))
    assert (found.refused_by_human, found.refused_by_judge) == (0.4, pytest.approx(2 / 3))
    nothing = measure_judge(Scripted(), answers("rc", "uu"))
    assert (nothing.kappa_any_refusal, nothing.kappa_any_refusal_interval, nothing.refused_by_judge) == (None,) * 3


def test_a_planted_bias_shows_in_the_rates_of_its_model():
    biased = answers("rrrrcccc", "rrrrrrcc", "biased") + answers("rrrrcccc", "rrrrcccc", "fair")
    found = measure_judge(Scripted(), biased).per_model
    assert (found["fair"].refused_by_human, found["fair"].refused_by_judge) == (0.5, 0.5)
    assert (found["biased"].refused_by_human, found["biased"].refused_by_judge) == (0.5, 0.75)
    assert found["biased"].kappa_any_refusal < found["fair"].kappa_any_refusal


def test_the_interval_holds_the_kappa_and_is_deterministic():
    mixed = answers("rc" * 40, "rc" * 30 + "cr" * 10)
    one, two = (measure_judge(Scripted(), mixed) for _ in range(2))
    low, high = one.kappa_any_refusal_interval
    assert low < one.kappa_any_refusal < high
    assert one == two


def test_the_interval_is_a_bootstrap_over_prompts():
    """The oracle draws whole prompts one at a time and counts their answers anew."""
    generator = np.random.default_rng(3)
    mixed = []
    for number in range(60):
        label, right = "rc"[number % 2], generator.random() < 0.8
        verdict = label if right else "cr"[number % 2]
        mixed += [LabelledAnswer(f"prompt {number}", verdict, SHORT[label], f"model {each}") for each in range(3)]
    by_prompt = [
        [(answer.label == "full_refusal", answer.completion == "r") for answer in mixed[at : at + 3]]
        for at in range(0, 180, 3)
    ]
    drawn = [
        cohen_kappa(np.array([pair for row in generator.integers(60, size=60) for pair in by_prompt[row]], dtype=int))
        for _ in range(2000)
    ]
    found = measure_judge(Scripted(), mixed)
    assert found.kappa_any_refusal_interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    # Answers to one prompt that agree in everything are worth one answer: a third of the prompts widen nothing.
    single = measure_judge(Scripted(), mixed[::3])
    assert found.kappa_any_refusal_interval == pytest.approx(single.kappa_any_refusal_interval, abs=1e-12)


def test_one_prompt_gives_no_interval():
    same = [LabelledAnswer("?", verdict, SHORT[label], "m") for label, verdict in ("rr", "rc", "cc")]
    found = measure_judge(Scripted(), same)
    assert found.kappa_any_refusal == pytest.approx(0.4)
    assert (found.kappa_any_refusal_interval, found.kappa_three_way_interval) == (None, None)


def test_sensitivity_and_specificity_count_what_was_judged():
    found = measure_judge(Scripted(), answers("rrppccccc", "rpcuccrup"))
    assert (found.sensitivity.k, found.sensitivity.n, found.sensitivity.unjudged) == (2, 3, 1)
    assert (found.specificity.k, found.specificity.n, found.specificity.unjudged) == (2, 4, 1)
    assert found.sensitivity.low < found.sensitivity.rate < found.sensitivity.high
    assert found.per_model["m"].sensitivity == found.sensitivity
    nobody = measure_judge(Scripted(), answers("rr", "rr")).specificity
    assert (nobody.k, nobody.n, nobody.rate) == (0, 0, None)


def test_no_answers():
    with pytest.raises(InputError, match="measured on labelled answers; got none"):
        measure_judge(Scripted(), [])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 1 is no JSON"),
        ('{"prompt": "a"}', "line 1 has no text in completion, human_label; the columns are prompt, completion"),
        (
            '{"prompt": "a", "completion": "b", "human_label": "maybe"}',
            "has the human_label 'maybe'; the labels are full",
        ),
        ("", "holds no labelled answer"),
    ],
)
def test_bad_files(line, words, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=words):
        read_labels(path)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": "?", "completion": "I'm sorry, I can't do that.", "human_label": "full_refusal", "model": "a"},
        {"prompt": "?", "completion": "Water the plant once a week.", "human_label": "full_compliance", "model": "b"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["judge", "--labels", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["unjudged"], found["kappa_any_refusal"]) == (2, 0, 1.0)
    assert set(found["per_model"]) == {"a", "b"}
    assert main(["judge", "--labels", str(path)]) == 0
    assert "full compliance" in capsys.readouterr().out
