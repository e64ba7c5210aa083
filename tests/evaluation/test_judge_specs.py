"""From `--judge` to a judge: every form of specification, and what is said of the others."""

from types import SimpleNamespace

import pytest

from demur.errors import InputError
from demur.evaluation import (
    FORMS,
    CachedJudge,
    ChatJudge,
    ClassifierJudge,
    Judgement,
    JudgeOptions,
    PairedJudges,
    PhraseJudge,
    judge_cost,
    judge_options,
    make_judge,
)
from demur.records import JsonLines


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """What would have been loaded as a classifier; the loading itself is tested with the classifiers."""
    calls = []

    class Loaded:
        judges_harm, judges_refusal, version = True, True, "1"

        def __init__(self, model):
            self.id = f"classifier:{model}"
            self.asked = 0

        def judge_batch(self, pairs):
            self.asked += len(pairs)
            return [Judgement("unjudged", 0.5, False, 0.25) for _ in pairs]

    def load(model, **settings):
        calls.append(SimpleNamespace(model=model, settings=settings, judge=Loaded(model)))
        return calls[-1].judge

    monkeypatch.setattr(ClassifierJudge, "load", load)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return calls


def test_phrase():
    assert isinstance(make_judge("phrase"), PhraseJudge)
    assert isinstance(make_judge(" phrase "), PhraseJudge)


@pytest.mark.parametrize(
    ("spec", "model", "server"),
    [
        ("chat:m", "m", "api.openai.com/v1"),
        ("chat:org/m-7b", "org/m-7b", "api.openai.com/v1"),
        ("chat:m@http://localhost:8000/v1", "m", "localhost:8000/v1"),
        ("chat:folder/m@main@https://a.example/x/v1", "folder/m@main", "a.example/x/v1"),
        ("chat:m@main", "m@main", "api.openai.com/v1"),
        ("chat:llama3:8b@http://localhost:11434/v1", "llama3:8b", "localhost:11434/v1"),
        ("chat:a+b", "a+b", "api.openai.com/v1"),
    ],
)
def test_chat(spec, model, server):
    judge = make_judge(spec)
    assert isinstance(judge, ChatJudge)
    assert (judge.model, judge.version.partition("@")[2]) == (model, server)


def test_a_chat_judge_gets_the_options():
    options = JudgeOptions(
        rubric="lenient", api_key_env="MINE", requests_per_minute=30.0, concurrency=3, max_retries=2, timeout=9.0,
        max_tokens=99, input_price=1.0, output_price=2.0,
    )  # fmt: skip
    judge = make_judge("chat:m@http://localhost/v1", options=options)
    assert judge == ChatJudge(
        "m", base_url="http://localhost/v1", rubric="lenient", api_key_env="MINE", requests_per_minute=30.0,
        concurrency=3, max_retries=2, timeout=9.0, max_tokens=99, input_price=1.0, output_price=2.0,
    )  # fmt: skip


def test_the_defaults_of_options_and_judge_are_the_same():
    assert make_judge("chat:m") == ChatJudge("m")


@pytest.mark.parametrize("form", [*FORMS])
def test_classifier_with_a_form(form, loaded):
    spec = f"classifier:{form}:org/m"
    if FORMS[form].judges_refusal:
        make_judge(spec, options=JudgeOptions(device="cpu", dtype="float32", batch_size=3))
    else:
        with pytest.raises(InputError, match=f"judges harm and not refusal, .*: write phrase\\+{spec} "):
            make_judge(spec)
        assert loaded == []  # said before anything large is loaded
        make_judge(f"phrase+{spec}", options=JudgeOptions(device="cpu", dtype="float32", batch_size=3))
    (call,) = loaded
    assert (call.model, call.settings) == (
        "org/m", {"form": form, "device": "cpu", "dtype": "float32", "batch_size": 3},
    )  # fmt: skip


def test_some_forms_judge_refusal_and_some_do_not():
    assert {form.judges_refusal for form in FORMS.values()} == {True, False}


@pytest.mark.parametrize("model", ["allenai/wildguard", "C:\\models\\wildguard"])
def test_classifier_whose_name_says_the_form(model, loaded):
    make_judge(f"classifier:{model}")
    assert (loaded[0].model, loaded[0].settings["form"]) == (model, None)


def test_a_folder_with_a_colon_is_a_model(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my:models" / "wildguard").mkdir(parents=True)
    make_judge("classifier:my:models/wildguard")
    make_judge("classifier:wildguard:my:models/wildguard")
    assert [(call.model, call.settings["form"]) for call in loaded] == [
        ("my:models/wildguard", None), ("my:models/wildguard", "wildguard"),
    ]  # fmt: skip


def test_a_pair(loaded):
    judge = make_judge("phrase+classifier:llama-guard-3:org/m")
    assert isinstance(judge, PairedJudges)
    assert isinstance(judge.refusal, PhraseJudge)
    assert judge.harm is loaded[0].judge
    chat = make_judge("chat:m@http://localhost/v1+classifier:llama-guard-3:org/a+b")
    assert (chat.refusal.model, chat.harm.id) == ("m", "classifier:org/a+b")
    assert judge_cost(chat) == chat.refusal.cost
    assert judge_cost(judge) is None
    assert judge_cost(make_judge("chat:m")).questions == 0


def test_a_cache_is_put_around_what_is_dear(loaded, tmp_path):
    store = JsonLines(tmp_path / "judgements.jsonl")
    assert isinstance(make_judge("phrase", cache=store), PhraseJudge)
    chat = make_judge("chat:m", cache=store)
    assert isinstance(chat, CachedJudge)
    assert judge_cost(chat).questions == 0
    pair = make_judge("phrase+classifier:llama-guard-3:org/m", cache=store)
    assert isinstance(pair.refusal, PhraseJudge)
    for _ in range(2):
        (judged,) = pair.judge_batch([("?", "I'm sorry, I can't help with that.")])
        assert (judged.verdict, judged.harm) == ("full_refusal", 0.25)
    assert loaded[0].judge.asked == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "'' names no judge. A judge is phrase; chat:MODEL"),
        ("phrases", "'phrases' names no judge"),
        ("chat", "'chat' names no judge"),
        ("chat:", "'chat:' names no judge"),
        ("classifier:", "'classifier:' names no judge"),
        ("phrase:en", "'phrase:en' names no judge"),
        ("phrase+nothing", r"'phrase\+nothing' names no judge. .*REFUSAL\+HARM, such as phrase\+classifier:MODEL"),
        ("judge:m", "FORM one of llama-guard-2, .*strongreject"),
        ("phrase+phrase", "phrase does not judge harm; after the . comes a classifier"),
        ("phrase+chat:m", "chat:m does not judge harm"),
        ("phrase+chat:m+classifier:x", "two parts at most"),
        ("classifier:lama-guard:org/m", "'lama-guard' is no form of classifier, .*the forms are llama-guard-2"),
        ("classifier:org/m", "give its form, one of"),
        ("chat:m@localhost:8000/v1", "begins with http:// or https://, such as chat:MODEL@http://localhost:8000/v1"),
        ("chat:m@10.0.0.1/v1", "begins with http://"),
    ],
)  # fmt: skip
def test_what_names_no_judge(spec, words, loaded):
    with pytest.raises(InputError, match=words):
        make_judge(spec)
    assert loaded == []


def test_options_from_text():
    base = JudgeOptions(rubric="lenient")
    texts = ["requests_per_minute=60", "concurrency=2", "api_key_env=A=B", "timeout=5", "input_price=0.5"]
    assert judge_options(texts, base=base) == JudgeOptions(
        rubric="lenient", requests_per_minute=60.0, concurrency=2, api_key_env="A=B", timeout=5.0, input_price=0.5
    )
    assert judge_options([]) == JudgeOptions()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed=3", "NAME one of device, dtype, batch_size, .*output_price; got 'speed=3'"),
        ("rubric=lenient", "NAME=VALUE with NAME one of"),
        ("concurrency", "NAME=VALUE with NAME one of"),
        ("concurrency=many", "the option concurrency of a judge is a number; got 'concurrency=many'"),
        ("concurrency=2.5", "is a number"),
        ("timeout=soon", "the option timeout of a judge is a number"),
    ],
)
def test_options_that_cannot_be_used(text, words):
    with pytest.raises(InputError, match=words):
        judge_options([text])
