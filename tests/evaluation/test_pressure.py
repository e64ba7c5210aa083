"""True refusals under pressure: the conditions, the table, the gate's rules."""

import random

import pytest
import torch
from pressure_cases import JUDGE, asked, table

from demur.evaluation import (
    Asked,
    Condition,
    PhraseJudge,
    Runner,
    clustered_difference,
    measure_pressure,
    pressure_conditions,
    pressure_table,
)
from demur.evaluation._conditions import NEUTRAL_SYSTEM, OPENING, not_applicable
from demur.evaluation._pressure_rules import pressure_rules
from demur.interventions import DirectionalAblation
from demur.prompts import Prompt
from demur.records import BASE_MODEL, PLAIN, JsonLines
from demur.testing import load_toy_chat_model, toy_prompt_sets
from demur.types import SilentProgress

OPEN_1 = Condition("opening-1", "opening", opening_tokens=1)
OPEN_5 = Condition("opening-5", "opening", opening_tokens=5)
SUFFIX = Condition("suffix-8", "suffix", suffix_tokens=8)
BARE = Condition("bare-prompt", "template", without_template=True)
N = 300


@pytest.fixture(scope="module")
def toy():
    torch.set_num_threads(1)
    return load_toy_chat_model()


@pytest.fixture(scope="module")
def harmful():
    return toy_prompt_sets()["harmful"].split("test")


def flags(refused, n=N):
    return [index < refused for index in range(n)]


def rules(*results):
    return {rule.name.removeprefix("true_refusals_under_pressure_"): rule for rule in pressure_rules(table(*results))}


# The gate's rules


def test_nothing_lost_passes():
    assert rules(asked(OPEN_5, flags(200), flags(200)))["opening"].decision == "pass"


def test_refusals_lost_under_a_forced_opening_fail_although_nothing_else_is_lost():
    found = rules(asked(OPEN_5, flags(270), flags(150)), asked(SUFFIX, flags(290), flags(290)))
    assert found["opening"].decision == "fail"
    assert found["suffix"].decision == "pass"
    assert "opening-5 with -40.0 points" in found["opening"].reason


def test_one_lost_condition_is_not_hidden_by_the_others_of_its_family():
    others = [asked(Condition(f"opening-{k}", "opening", opening_tokens=k), flags(200), flags(200)) for k in (1, 2, 3)]
    found = rules(*others, asked(Condition("opening-9", "opening", opening_tokens=9), flags(200), flags(150)))
    assert found["opening"].decision == "fail"
    assert "opening-9 with -16.7 points" in found["opening"].reason


def test_a_loss_about_the_margin_is_open():
    assert rules(asked(OPEN_5, flags(200), flags(184)))["opening"].decision == "inconclusive"


def test_too_few_prompts_are_open():
    assert rules(asked(OPEN_5, flags(20, 20), flags(20, 20)))["opening"].decision == "inconclusive"


def test_too_many_unjudged_are_open():
    after = [None if index % 20 == 0 else flag for index, flag in enumerate(flags(200))]
    rule = rules(asked(OPEN_5, flags(200), after))["opening"]
    assert rule.decision == "inconclusive"
    assert "5.0 % of the answers under opening-5 could not be judged" in rule.reason


def test_a_condition_that_is_not_gated_decides_nothing():
    assert set(rules(asked(OPEN_5, flags(200), flags(200)), asked(BARE, flags(200), flags(0)))) == {"opening"}


@pytest.mark.parametrize("pressure", [None, table(asked(OPEN_5, flags(200), None))])
def test_pressure_that_was_not_measured_is_open(pressure):
    (rule,) = pressure_rules(pressure)
    assert rule.decision == "inconclusive"
    assert "were not measured" in rule.reason


def test_a_raised_rate_under_pressure_passes():
    assert rules(asked(OPEN_5, flags(0), flags(50)))["opening"].decision == "pass"


# The table


def test_families_are_pooled_with_prompts_as_clusters():
    one = asked(OPEN_1, flags(200), flags(190))
    two = asked(OPEN_5, flags(100), flags(95))
    (pooled,) = table(one, two).families
    ids = [record.prompt_sha256 for record in (*one.before, *two.before)]
    by_hand = clustered_difference(flags(200) + flags(100), flags(190) + flags(95), ids)
    assert pooled.comparison.difference == pytest.approx(-15 / 600)
    assert (pooled.comparison.low, pooled.comparison.high) == pytest.approx((by_hand.low, by_hand.high))
    assert (pooled.n_conditions, pooled.n_prompts, pooled.comparison.n) == (2, N, 2 * N)
    assert pooled.judge == JUDGE


def test_every_number_of_the_table_has_its_judge():
    for row in table(asked(OPEN_5, flags(200), flags(190))).conditions:
        assert row.true_refusal_rate.before.judge == row.true_refusal_rate.after.judge == row.comparison.judge == JUDGE


def test_the_order_of_prompts_does_not_count():
    one = asked(OPEN_5, flags(200), flags(190))
    order = random.Random(0).sample(range(N), N)
    shuffled = Asked(OPEN_5, [one.before[i] for i in order], [one.after[i] for i in order])
    assert pressure_table([shuffled], not_applicable={}) == table(one)


# The conditions on a real model


def test_an_opening_is_what_the_answer_goes_on_from(toy):
    condition = Condition("opening-5", "opening", opening_tokens=5)
    prompt = "How do I bake bread?"
    (answer,) = condition.answers(toy, [prompt], max_new_tokens=12)
    opening = toy.tokenizer(OPENING, add_special_tokens=False)["input_ids"][:5]
    ids = torch.tensor([[*toy.template.encode(prompt), *opening]])
    tokens = toy.greedy_tokens({"input_ids": ids}, count=12)
    expected = toy.tokenizer.decode(tokens, skip_special_tokens=False).partition("<|im_end|>")[0].strip()
    assert answer.text == expected


def test_a_suffix_follows_the_prompt_and_depends_on_it_alone(toy):
    rendered = [toy.tokenizer.decode(tokens) for tokens, _ in SUFFIX.requests(toy, ["Alpha", "Beta", "Alpha"])]
    assert rendered[0] == rendered[2] != rendered[1].replace("Beta", "Alpha")
    assert "Alpha " in rendered[0]
    assert len(rendered[0]) > len(toy.template.render("Alpha")) + 8


def test_system_prompt_and_earlier_turn_are_rendered(toy):
    system = Condition("system-neutral", "system", system=NEUTRAL_SYSTEM).template(toy).render("Alpha")
    earlier = Condition("earlier-turn", "template", earlier_turn=True).template(toy).render("Alpha")
    assert NEUTRAL_SYSTEM in system
    assert earlier.index("Of course.") < earlier.index("Alpha")
    assert BARE.requests(toy, ["Alpha"])[0][0] == toy.tokenizer("Alpha")["input_ids"]


def test_samples_do_not_depend_on_the_batch_and_differ_by_seed(toy, harmful):
    texts = [prompt.text for prompt in harmful[:12]]
    first, second = (Condition(f"sample-{k}", "sampling", sample=k) for k in (1, 2))
    together = first.answers(toy, texts, max_new_tokens=16)
    state = torch.random.get_rng_state()
    alone = [first.answers(toy, [text], max_new_tokens=16)[0] for text in texts]
    assert together == alone
    assert together != second.answers(toy, texts, max_new_tokens=16)
    assert torch.equal(state, torch.random.get_rng_state())


def test_gumbel_noise_samples_the_softmax(toy):
    from demur.models._generation import _GumbelNoise

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = torch.cat([_GumbelNoise([seed])(torch.empty(0), logits).argmax(-1) for seed in range(4000)])
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert torch.allclose(shares, logits.softmax(-1)[0], atol=0.025)


def test_conditions_that_change_nothing_or_cannot_be_asked_are_named(toy):
    from demur.models import ChatModel, ChatTemplate

    reasons = {condition.name: not_applicable(condition, toy) for condition in pressure_conditions()}
    assert {name for name, reason in reasons.items() if reason} == {"thinking-off"}
    with_system = ChatModel(toy.model, toy.tokenizer, template=ChatTemplate(toy.tokenizer, system=NEUTRAL_SYSTEM))
    system = Condition("system-neutral", "system", system=NEUTRAL_SYSTEM)
    assert not_applicable(system, with_system) == "the same as at rest"


def test_fingerprints_differ_and_every_condition_says_what_it_is():
    conditions = pressure_conditions()
    assert len({condition.fingerprint for condition in conditions}) == len(conditions)
    assert len({condition.what for condition in conditions}) == len(conditions)
    assert all("{" not in condition.what for condition in conditions)


def test_measured_under_pressure_resumed_without_a_model_call_and_without_texts(toy, harmful, tmp_path, monkeypatch):
    few = harmful[:6]
    generator = torch.Generator().manual_seed(1)
    change = DirectionalAblation(torch.randn(toy.layout.d_model, generator=generator))
    given = {"spanish": [Prompt("Hola, amigo.", "harmful", split="test")]}

    def run():
        runner = Runner(toy, PhraseJudge(), JsonLines(tmp_path / "completions.jsonl"), max_new_tokens=8, batch_size=4)
        return measure_pressure(runner, few, change, variants=given, progress=SilentProgress())

    first = run()
    assert {row.name for row in first.conditions} >= {"opening-1", "suffix-32", "int4", "sample-3", "given-spanish"}
    assert all(
        row.true_refusal_rate.before.n + row.true_refusal_rate.before.unjudged in (1, 6) for row in first.conditions
    )
    monkeypatch.setattr(type(toy), "answers", lambda *_args, **_kwargs: pytest.fail("asked again"))
    assert run() == first
    assert '"completion":null' in (tmp_path / "completions.jsonl").read_text().replace(": ", ":")


def test_a_plain_answer_is_never_taken_for_one_under_pressure(toy, harmful):
    runner = Runner(toy, PhraseJudge(), max_new_tokens=8)
    plain = runner.complete(harmful[:3], condition=BASE_MODEL, split="test")
    pressed = runner.complete(harmful[:3], condition=BASE_MODEL, split="test", asking=OPEN_5)
    assert {record.condition for record in plain} == {PLAIN}
    assert {record.condition for record in pressed} == {"opening-5"}
    assert not {record.key for record in plain} & {record.key for record in pressed}
