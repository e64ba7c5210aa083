"""The same prompt twice, within a set and across sets; harmful texts never show."""

import pytest

from demur.errors import PromptError
from demur.prompts import Prompt, PromptSet, check_disjoint, load_prompts

SECRET = "an unspeakable wish"


def test_repeats_name_rows_and_text(write, refusal):
    message = refusal(write("a.jsonl", '"bake  bread"\n"boil rice"\n" bake bread\\n"\n'))
    assert "1 prompt repeated in the harmless set: line 1 and line 3 ('bake bread')" in message
    assert "Keep one row of each" in message


def test_repeats_of_a_harmful_set_show_a_hash(write, refusal):
    message = refusal(write("a.csv", f"prompt\n{SECRET}\n{SECRET}\n"), "harmful")
    assert "unspeakable" not in message
    assert f"line 2 and line 3 (sha256 {Prompt(SECRET, 'harmful').sha256[:12]})" in message


def test_many_repeats_are_counted_and_long_texts_cut(write, refusal):
    message = refusal(write("a.txt", "".join(f"{n} {'x' * 100}\n" * 2 for n in range(5))), "borderline")
    assert "5 prompts repeated in the borderline set" in message
    assert "line 1 and line 2 ('0 xxx" in message
    assert "...'" in message
    assert "; and 2 more" in message
    assert "x" * 50 not in message


def a_set(label, *texts):
    prompts = tuple(Prompt(text, label, where=f"line {n}") for n, text in enumerate(texts, start=1))
    return PromptSet(label, f"{label}.txt", prompts)


def refused(*sets):
    with pytest.raises(PromptError) as caught:
        check_disjoint(sets)
    return str(caught.value)


def test_disjoint_sets_pass():
    check_disjoint([])
    check_disjoint([a_set("harmful", "a", "b"), a_set("harmless", "c"), a_set("borderline", "ab")])


def test_shared_prompt_names_both_sets():
    message = refused(a_set("harmful", "x"), a_set("harmless", "one", "two"), a_set("borderline", " two "))
    assert "1 prompt shared by the harmless set and the borderline set" in message
    assert "line 2 of harmless.txt and line 1 of borderline.txt ('two')" in message
    assert "Keep each prompt in one set only" in message


@pytest.mark.parametrize("order", [("harmful", "harmless"), ("harmless", "harmful")])
def test_shared_prompt_of_a_harmful_set_shows_a_hash(order):
    message = refused(*(a_set(label, SECRET) for label in order))
    assert "unspeakable" not in message
    assert f"sha256 {Prompt(SECRET, 'harmful').sha256[:12]}" in message


def test_prompts_made_by_hand_have_no_row():
    made = PromptSet("harmless", "made here", (Prompt("two", "harmless"),))
    assert "a prompt of made here and line 1 of borderline.txt" in refused(made, a_set("borderline", "two"))


def test_the_same_file_for_two_labels(write):
    path = write("a.txt", "one\ntwo\n")
    message = refused(load_prompts(path, label="harmless"), load_prompts(path, label="borderline"))
    assert "2 prompts shared by the harmless set and the borderline set" in message
