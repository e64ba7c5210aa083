"""`demur suffixes`: given suffixes on the toy model, its record, its page, its errors."""

import json
from types import SimpleNamespace

import pytest
from cli_runs import call, error_of, prompt_files

from demur.records import SuffixAnalysis, read_record
from demur.testing import TOY_MODEL, load_toy_chat_model

FAST = ("--max-new-tokens", "12", "--batch-size", "64", "--n-prompts", "6")


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suffixes")
    options = prompt_files(folder)
    options = [*options[: options.index("--borderline")], *options[options.index("--borderline") + 2 :]]
    (folder / "suffixes.txt").write_text("thank you\n\nplease do it now\n")
    words = ("suffixes", TOY_MODEL, *options, "--out", folder / "out", *FAST, "--json")
    given = ("--suffix", "one more thing", "--suffixes", folder / "suffixes.txt")
    return SimpleNamespace(folder=folder, options=options, words=words, first=call(*words, *given))


def test_suffixes_of_both_options_are_measured(called):
    code, out, err = called.first
    assert code == 0
    record = read_record(called.folder / "out" / "suffixes.json", SuffixAnalysis)
    assert json.loads(out) == record.model_dump(mode="json", by_alias=True)
    assert [text.text for text in record.suffixes] == ["one more thing", "thank you", "please do it now"]
    assert {text.origin for text in record.suffixes} == {"given"}
    assert {group.n for group in record.groups} == {6}
    for group in record.groups:
        assert f"({group.refusal_rate.k}/{group.refusal_rate.n}), refusal score" in err


def test_the_page_has_the_three_plots_and_no_prompt(called):
    html = (called.folder / "out" / "suffixes.html").read_text()
    for name in ("suffix-layers", "suffix-parts", "suffix-attention"):
        assert f'id="{name}-chart"' in html
    assert "please do it now" in html
    for label in ("harmful", "harmless"):
        for line in (called.folder / f"{label}.jsonl").read_text().splitlines():
            assert json.loads(line)["prompt"] not in html


def test_a_command_without_a_suffix_says_what_to_type(called):
    error = error_of(call(*called.words))
    assert error["message"].startswith("give a suffix with --suffix or --suffixes; on the toy model --search finds one")


def test_a_file_without_a_suffix_is_refused(called, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert (
        f"{empty} holds no suffix; write one on each line."
        in error_of(call(*called.words, "--suffixes", empty))["message"]
    )
    missing = error_of(call(*called.words, "--suffixes", tmp_path / "none.txt"))
    assert "cannot read" in missing["message"]
    assert missing["exit_code"] == 2


def test_a_search_on_another_model_is_refused_before_anything_is_measured(called, tmp_path):
    chat = load_toy_chat_model()
    chat.model.lm_head.weight.data[0, 0] += 1.0
    chat.model.save_pretrained(tmp_path / "other")
    chat.tokenizer.save_pretrained(tmp_path / "other")
    words = ("suffixes", tmp_path / "other", *called.options, "--out", tmp_path / "out", *FAST, "--json", "--search")
    result = call(*words)
    assert result.code == 2
    assert (
        "demur searches suffixes for the toy model that ships with it and for no other" in error_of(result)["message"]
    )
    assert "finding refusal tokens" not in result.err
    assert not (tmp_path / "out").exists()


def test_an_audit_takes_suffixes_a_base_model_and_another_model(called, tmp_path):
    (tmp_path / "one.txt").write_text("thank you\n")
    words = ("audit", TOY_MODEL, *called.options, "--quick", "--only", "depth", "--n-test", "12", "--n-curve", "6")
    words = (*words, "--max-new-tokens", "12", "--out", tmp_path / "out", "--json")
    code, out, _ = call(*words, "--suffixes", tmp_path / "one.txt", "--base", TOY_MODEL, "--other", TOY_MODEL)
    assert code == 0
    record = json.loads(out)
    assert record["suffixes"]["suffixes"][0]["text"] == "thank you"
    assert record["base"]["chat"]["content_hash"] == record["base"]["base"]["content_hash"]
    assert record["transfer"]["cosine"] == pytest.approx(1.0)
    html = (tmp_path / "out" / "audit.html").read_text()
    for name in ("suffix-rates", "suffix-layers", "base", "transfer"):
        assert f'<section id="{name}"' in html
