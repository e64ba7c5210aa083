"""The runner: every completion once, whatever happens in between."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from demur.evaluation import Judgement, Runner, contains_answer, is_refusal
from demur.models import Completion
from demur.prompts import Prompt
from demur.records import BASE_MODEL, CompletionRecord, JsonLines, JudgeIdentity

TEXTS = [f"Please {'very ' * (number % 5)}kindly do {number}" for number in range(11)]
PROMPTS = [Prompt(text, "borderline", split="test") for text in TEXTS]


@dataclass
class FakeChat:
    """Answers with its prompt; remembers what it was asked, and inside which interventions."""

    asked: list[tuple[str, ...]] = field(default_factory=list)
    inside: list[tuple[str, ...]] = field(default_factory=list)
    active: list[str] = field(default_factory=list)
    identity: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(content_hash="weights"))
    layout: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(packed=None))
    template: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(system=None, options={}, response_prefix="")
    )

    def encode(self, prompts):
        return [list(prompt.encode()) for prompt in prompts]

    def generate(self, prompts, *, max_new_tokens):
        self.asked.append(tuple(prompts))
        self.inside.append(tuple(self.active))
        return [Completion(f"Blue is the answer to {prompt}", max_new_tokens, ended=True) for prompt in prompts]

    @property
    def prompts_asked(self):
        return [prompt for batch in self.asked for prompt in batch]


@dataclass
class FakeJudge:
    """Refusal where the prompt has an even number; raises in a given call."""

    id: str = "fake"
    version: str = "1"
    fails_in: int | None = None
    calls: int = 0

    def judge_batch(self, pairs):
        self.calls += 1
        if self.calls == self.fails_in:
            raise KeyboardInterrupt
        return [
            Judgement("full_refusal" if int(prompt.split()[-1]) % 2 == 0 else "full_compliance", 0.25, degenerate=False)
            for prompt, _ in pairs
        ]


@dataclass(frozen=True)
class FakeIntervention:
    fingerprint: str

    @contextmanager
    def _open(self, chat, how):
        chat.active.append(f"{how} {self.fingerprint}")
        try:
            yield
        finally:
            chat.active.pop()

    def applied_to(self, chat):
        return self._open(chat, "applied")

    def folded_into(self, chat):
        return self._open(chat, "folded")


def run(runner, prompts=PROMPTS, **more):
    return runner.complete(prompts, **{"condition": BASE_MODEL, "split": "test", **more})


def test_answers_come_in_the_order_of_the_prompts():
    records = run(Runner(FakeChat(), FakeJudge(), batch_size=3, max_new_tokens=7))
    assert [record.prompt for record in records] == TEXTS
    assert [record.prompt_sha256 for record in records] == [prompt.sha256 for prompt in PROMPTS]
    assert records[4] == CompletionRecord(
        key=records[4].key,
        label="borderline",
        split="test",
        prompt_sha256=PROMPTS[4].sha256,
        prompt=TEXTS[4],
        intervention="none",
        completion=f"Blue is the answer to {TEXTS[4]}",
        n_tokens=7,
        ended=True,
        verdict="full_refusal",
        judge=JudgeIdentity(id="fake", version="1"),
        score=0.25,
        degenerate=False,
        answer_found=None,
    )


def test_each_completion_is_computed_once(tmp_path):
    chat, store = FakeChat(), JsonLines(tmp_path / "c.jsonl")
    runner = Runner(chat, FakeJudge(), store, batch_size=4)
    first = run(runner)
    assert [len(batch) for batch in chat.asked] == [4, 4, 3]
    assert run(runner) == first
    assert run(Runner(chat, FakeJudge(), store, batch_size=4)) == first  # a later process
    assert run(runner, PROMPTS[3:6]) == first[3:6]
    assert len(chat.asked) == 3
    assert store.read(CompletionRecord) == sorted(first, key=lambda r: chat.prompts_asked.index(r.prompt))


def test_longest_prompts_go_first():
    chat = FakeChat()
    run(Runner(chat, FakeJudge(), batch_size=4))
    lengths = [len(prompt) for prompt in chat.prompts_asked]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_resumed_store_is_the_uninterrupted_one_byte_for_byte(tmp_path, killed_in):
    whole, torn = JsonLines(tmp_path / "whole.jsonl"), JsonLines(tmp_path / "torn.jsonl")
    expected = run(Runner(FakeChat(), FakeJudge(), whole, batch_size=4))
    chat = FakeChat()
    with pytest.raises(KeyboardInterrupt):
        run(Runner(chat, FakeJudge(fails_in=killed_in), torn, batch_size=4))
    assert len(torn.read(CompletionRecord)) == 4 * (killed_in - 1)
    resumed = FakeChat()
    assert run(Runner(resumed, FakeJudge(), torn, batch_size=4)) == expected
    assert torn.path.read_bytes() == whole.path.read_bytes()
    assert chat.asked[:killed_in] + resumed.asked[1:] == [*chat.asked, *resumed.asked[1:]]
    assert resumed.asked[0] == chat.asked[killed_in - 1]


def test_a_batch_that_lost_its_last_line_is_computed_as_the_same_batch(tmp_path):
    """Answers in half precision depend on what they are batched with, so a resumed batch is whole again."""
    store = JsonLines(tmp_path / "c.jsonl")
    chat = FakeChat()
    run(Runner(chat, FakeJudge(), store, batch_size=4))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-30])
    resumed = FakeChat()
    run(Runner(resumed, FakeJudge(), store, batch_size=4))
    assert resumed.asked == [chat.asked[-1]]
    assert store.path.read_bytes() == whole


# Cache keys ---------------------------------------------------------------------------------------------------------


def key(runner=None, prompt=PROMPTS[0], **more):
    return run(runner or Runner(FakeChat(), FakeJudge()), [prompt], **more)[0].key


def with_system(text, **options):
    return FakeChat(template=SimpleNamespace(system=text, options=options, response_prefix=""))


KEYS = {
    "plain": lambda: key(),
    "folded": lambda: key(intervention=FakeIntervention("a")),
    "applied": lambda: key(intervention=FakeIntervention("a"), folded=False),
    "another intervention": lambda: key(intervention=FakeIntervention("b")),
    "another prompt": lambda: key(prompt=PROMPTS[1]),
    "an answer": lambda: key(prompt=replace(PROMPTS[0], answer="blue")),
    "another answer": lambda: key(prompt=replace(PROMPTS[0], answer="red")),
    "more tokens": lambda: key(Runner(FakeChat(), FakeJudge(), max_new_tokens=129)),
    "another batch size": lambda: key(Runner(FakeChat(), FakeJudge(), batch_size=63)),
    "a newer judge": lambda: key(Runner(FakeChat(), FakeJudge(version="2"))),
    "another judge": lambda: key(Runner(FakeChat(), FakeJudge(id="other"))),
    "a system prompt": lambda: key(Runner(with_system("Be brief."), FakeJudge())),
    "an empty system prompt": lambda: key(Runner(with_system(""), FakeJudge())),
    "a template option": lambda: key(Runner(with_system(None, enable_thinking=False), FakeJudge())),
    "a response prefix": lambda: key(
        Runner(FakeChat(template=SimpleNamespace(system=None, options={}, response_prefix="So")), FakeJudge())
    ),
    "other weights": lambda: key(Runner(FakeChat(identity=SimpleNamespace(content_hash="w2")), FakeJudge())),
}


def test_everything_that_a_completion_depends_on_is_in_its_key():
    keys = {name: make() for name, make in KEYS.items()}
    assert len(set(keys.values())) == len(keys)
    assert keys == {name: make() for name, make in KEYS.items()}
    assert all(len(each) == 64 for each in keys.values())


def test_what_a_completion_does_not_depend_on_is_not_in_its_key():
    same = Prompt(f"  {TEXTS[0]} ", "harmful", split="train", where="line 9")
    assert key(prompt=same) == key()
    assert key(condition="another name", split="validation") == key()


# Interventions, texts, attacks --------------------------------------------------------------------------------------


def test_the_intervention_is_in_place_while_answers_are_generated_and_only_then():
    chat = FakeChat()
    runner = Runner(chat, FakeJudge(), batch_size=6)
    run(runner, intervention=FakeIntervention("w"), condition="operating_point")
    run(runner, intervention=FakeIntervention("w"), folded=False)
    run(runner)
    assert chat.inside == [("folded w",)] * 2 + [("applied w",)] * 2 + [()] * 2
    assert chat.active == []


def test_the_intervention_is_taken_back_after_an_error():
    chat = FakeChat()
    with pytest.raises(KeyboardInterrupt):
        run(Runner(chat, FakeJudge(fails_in=1)), intervention=FakeIntervention("w"))
    assert chat.active == []


def test_texts_of_harmful_answers_are_not_kept_where_a_condition_is_only_searched(tmp_path):
    store = JsonLines(tmp_path / "c.jsonl")
    prompts = [Prompt("Do 1", "harmful"), Prompt("Do 2", "borderline"), Prompt("Do 3", "harmless")]
    harmful, *others = run(Runner(FakeChat(), FakeJudge(), store), prompts, keep_text=False)
    assert harmful.completion is None
    assert all(record.completion for record in others)
    assert (harmful.verdict, harmful.n_tokens) == ("full_compliance", 128)
    assert "answer to Do 1" not in store.path.read_text()
    assert run(Runner(FakeChat(), FakeJudge()), prompts)[0].completion == "Blue is the answer to Do 1"


def test_measurements_of_an_attack_leave_nothing_behind(tmp_path):
    chat, store = FakeChat(), JsonLines(tmp_path / "c.jsonl")
    runner = Runner(chat, FakeJudge(), store, batch_size=6)
    records = run(runner, intervention=FakeIntervention("r"), record=False)
    assert [record.prompt for record in records] == TEXTS
    assert not store.path.exists()
    run(runner, intervention=FakeIntervention("r"), record=False)
    assert len(chat.asked) == 4  # not even in memory


def test_a_known_answer_is_looked_for():
    prompts = [replace(PROMPTS[0], answer="blue"), replace(PROMPTS[1], answer="red"), PROMPTS[2]]
    assert [r.answer_found for r in run(Runner(FakeChat(), FakeJudge()), prompts)] == [True, False, None]


def test_progress_counts_every_prompt_once(tmp_path):
    steps = []
    progress = SimpleNamespace(start=lambda *_: None, advance=steps.append)
    store = JsonLines(tmp_path / "c.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(Runner(FakeChat(), FakeJudge(fails_in=2), store, batch_size=4))
    run(Runner(FakeChat(), FakeJudge(), store, batch_size=4, progress=progress))
    assert (steps[0], sum(steps)) == (4, len(PROMPTS))


def test_a_damaged_store_is_an_error_and_not_a_fresh_start(tmp_path):
    store = JsonLines(tmp_path / "c.jsonl")
    store.path.write_text(json.dumps({"key": "x"}) + "\n")
    with pytest.raises(ValueError, match="line 1 is not a CompletionRecord"):
        Runner(FakeChat(), FakeJudge(), store)


@pytest.mark.parametrize(
    ("verdict", "refused"),
    [("full_refusal", True), ("partial_refusal", True), ("full_compliance", False), ("unjudged", None)],
)
def test_refused_is_fully_or_partly(verdict, refused):
    record = run(Runner(FakeChat(), FakeJudge()), PROMPTS[:1])[0]
    assert is_refusal(record.model_copy(update={"verdict": verdict})) is refused


@pytest.mark.parametrize(
    ("completion", "answer", "found"),
    [
        ("The answer is 42.", "42", True),
        ("The answer is 420.", "42", False),
        ("It is 1,042.", "42", False),
        ("PARIS, of course", "Paris", True),
        ("Parisian", "Paris", False),
        ("It is New\n York!", "new york", True),
        ("It is new. york", "New York", True),
        ("York is new", "New York", False),
        ("", "x", False),
        ("Straße", "STRASSE", True),
        ("**blue**", "blue", True),
    ],
)
def test_an_answer_is_found_as_whole_words(completion, answer, found):
    assert contains_answer(completion, answer) is found
