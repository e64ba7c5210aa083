"""The runner: every completion once, whatever happens in between."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from demur.errors import InputError
from demur.evaluation import Judgement, Runner, contains_answer, is_refusal
from demur.models import Completion, Continuation, swapped_parameters
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
        default_factory=lambda: SimpleNamespace(
            system=None, options={}, response_prefix="", opens_thinking=lambda: False
        )
    )
    tokenizer: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(chat_template="{{ messages }}", get_added_vocab=dict)
    )
    module: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(1, 1, bias=False))
    room: int = 1000
    """Answers that fit into memory together."""
    failing: BaseException = field(default_factory=lambda: torch.OutOfMemoryError("CUDA out of memory."))

    def encode(self, prompts):
        return [list(prompt.encode()) for prompt in prompts]

    def generate(self, prompts, *, max_new_tokens):
        return [
            each[0]
            for each in self.answers_to(
                self.encode(prompts), [[Continuation()]] * len(prompts), max_new_tokens=max_new_tokens
            )
        ]

    def answers_to(self, sequences, continuations, *, max_new_tokens, settled=None):
        prompts = [bytes(sequence).decode() for sequence in sequences]
        if sum(map(len, continuations)) > self.room:
            raise self.failing
        self.asked.append(tuple(prompts))
        folded = [name for name, weight in FOLDED.items() if torch.equal(self.module.weight, weight)]
        self.inside.append((*self.active, *(f"folded {name}" for name in folded)))
        return [
            [
                self._answer(prompt, way, max_new_tokens, settled and settled[row][number])
                for number, way in enumerate(ways)
            ]
            for row, (prompt, ways) in enumerate(zip(prompts, continuations, strict=True))
        ]

    @staticmethod
    def _answer(prompt, way, max_new_tokens, settled):
        text = f"Blue is the answer to {prompt}" + "".join(f" after {token}" for token in way.opening)
        if settled and settled(text[:4]):
            return Completion(text[:4], 1, ended=False, settled=True)
        return Completion(text, max_new_tokens, ended=True)

    @property
    def prompts_asked(self):
        return [prompt for batch in self.asked for prompt in batch]


FOLDED = {"a": torch.full((1, 1), 7.0), "b": torch.full((1, 1), 8.0), "w": torch.full((1, 1), 9.0)}


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

    @contextmanager
    def folded_into(self, chat):
        TIMES_FOLDED.append(self.fingerprint)
        with swapped_parameters(chat.module, {"weight": FOLDED[self.fingerprint]}):
            yield


TIMES_FOLDED: list[str] = []


class SettlingJudge(FakeJudge):
    """Knows after one word."""

    def settled(self, _prompt, completion_so_far):
        return completion_so_far == "Blue"


@dataclass(frozen=True)
class Opening:
    """A way of asking whose answers go on from the prompt; `reads` is put before it."""

    opening: tuple[int, ...]
    reads: str = ""

    @property
    def name(self):
        return f"opening {self.opening}"

    @property
    def fingerprint(self):
        return f"{self.name} {self.reads}"

    def requests(self, chat, prompts):
        return [(tokens, Continuation(self.opening)) for tokens in chat.encode([self.reads + each for each in prompts])]

    def answers(self, chat, prompts, *, max_new_tokens):
        requests = self.requests(chat, prompts)
        given = chat.answers_to(
            [one for one, _ in requests], [[way] for _, way in requests], max_new_tokens=max_new_tokens
        )
        return [answer for (answer,) in given]


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


def with_template(**changes):
    values = {"system": None, "options": {}, "response_prefix": "", "opens_thinking": lambda: False, **changes}
    return FakeChat(template=SimpleNamespace(**values))


def with_system(text, **options):
    return with_template(system=text, options=options)


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
    "a response prefix": lambda: key(Runner(with_template(response_prefix="So"), FakeJudge())),
    "until settled": lambda: key(Runner(FakeChat(), SettlingJudge()), until_settled=True),
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
    assert key(until_settled=True) == key()  # this judge never knows before the end


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
    before = chat.module.weight
    with pytest.raises(KeyboardInterrupt):
        run(Runner(chat, FakeJudge(fails_in=1)), intervention=FakeIntervention("w"))
    assert chat.module.weight is before


def test_an_intervention_is_folded_once_and_one_at_a_time_is_kept():
    chat = FakeChat()
    runner = Runner(chat, FakeJudge(), batch_size=6)
    TIMES_FOLDED.clear()
    for number, fingerprint in enumerate("aaba"):
        run(runner, PROMPTS[number : number + 1], intervention=FakeIntervention(fingerprint))
        run(runner, PROMPTS[number : number + 1])
    assert TIMES_FOLDED == ["a", "b", "a"]
    assert [inside for inside in chat.inside if inside] == [("folded a",), ("folded a",), ("folded b",), ("folded a",)]


# Several ways of asking at once, and answers that stop ---------------------------------------------------------------


def test_ways_of_asking_together_give_the_records_of_one_by_one(tmp_path):
    ways = [Opening((1,)), Opening((1, 2)), Opening(())]
    one, two = JsonLines(tmp_path / "one.jsonl"), JsonLines(tmp_path / "two.jsonl")
    alone = Runner(FakeChat(), FakeJudge(), one, batch_size=6)
    expected = [run(alone, asking=way) for way in ways]
    chat = FakeChat()
    together = Runner(chat, FakeJudge(), two, batch_size=6)
    assert together.complete_together(PROMPTS, ways, condition=BASE_MODEL, split="test") == expected
    assert [len(batch) for batch in chat.asked] == [2, 2, 2, 2, 2, 1]  # never more answers at once than the batch size
    assert sorted(one.path.read_text().splitlines()) == sorted(two.path.read_text().splitlines())
    assert len({record.key for records in expected for record in records}) == 3 * len(PROMPTS)


@pytest.mark.parametrize("killed_in", [2, 5, 9])
def test_a_killed_run_of_several_ways_resumes_to_the_same_bytes(tmp_path, killed_in):
    ways = [Opening((1,)), Opening((1, 2))]

    def all_of(judge, store):
        return Runner(FakeChat(), judge, store, batch_size=4).complete_together(
            PROMPTS, ways, condition=BASE_MODEL, split="test"
        )

    whole, torn = JsonLines(tmp_path / "whole.jsonl"), JsonLines(tmp_path / "torn.jsonl")
    expected = all_of(FakeJudge(), whole)
    with pytest.raises(KeyboardInterrupt):
        all_of(FakeJudge(fails_in=killed_in), torn)
    assert all_of(FakeJudge(), torn) == expected
    assert torn.path.read_bytes() == whole.path.read_bytes()


def test_ways_that_read_differently_cannot_be_asked_together():
    with pytest.raises(InputError, match="must render each prompt alike"):
        Runner(FakeChat(), FakeJudge()).complete_together(
            PROMPTS, [Opening(()), Opening((), reads="So: ")], condition=BASE_MODEL, split="test"
        )


def test_a_settled_answer_stops_and_says_so():
    stopped = run(Runner(FakeChat(), SettlingJudge()), until_settled=True)
    whole = run(Runner(FakeChat(), SettlingJudge()))
    assert {(record.settled, record.ended, record.n_tokens) for record in stopped} == {(True, False, 1)}
    assert {(record.settled, record.ended) for record in whole} == {(False, True)}
    assert [record.verdict for record in stopped] == [record.verdict for record in whole]


@pytest.mark.parametrize(
    "chat",
    [
        FakeChat(tokenizer=SimpleNamespace(chat_template="", get_added_vocab=lambda: {"</think>": 5})),
        FakeChat(tokenizer=SimpleNamespace(chat_template="... [/THINK] ...", get_added_vocab=dict)),
        FakeChat(tokenizer=SimpleNamespace(chat_template="", get_added_vocab=lambda: {"<|channel|>": 5})),
        with_template(opens_thinking=lambda: True),
    ],
    ids=["token", "template", "channels", "opened"],
)
def test_a_model_that_may_still_be_thinking_is_not_stopped(chat):
    assert not any(record.settled for record in run(Runner(chat, SettlingJudge()), until_settled=True))


# Memory --------------------------------------------------------------------------------------------------------------


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_for_the_rest_of_the_run_and_says_so(tmp_path, error):
    notes = []
    progress = SimpleNamespace(start=lambda *_: None, advance=lambda *_: None, note=notes.append)
    one, two = JsonLines(tmp_path / "one.jsonl"), JsonLines(tmp_path / "two.jsonl")
    expected = run(Runner(FakeChat(), FakeJudge(), one, batch_size=8))
    chat = FakeChat(room=3, failing=error)
    assert run(Runner(chat, FakeJudge(), two, batch_size=8, progress=progress)) == expected
    assert [len(batch) for batch in chat.asked] == [2, 2, 2, 2, 2, 1]
    assert notes == ["out of memory; now 4 rows at a time", "out of memory; now 2 rows at a time"]
    assert one.path.read_bytes() == two.path.read_bytes()


def test_one_answer_that_does_not_fit_is_an_error_and_so_is_any_other():
    with pytest.raises(MemoryError):
        run(Runner(FakeChat(room=0, failing=MemoryError()), FakeJudge(), batch_size=8))
    with pytest.raises(RuntimeError, match="shapes"):
        run(Runner(FakeChat(room=4, failing=RuntimeError("shapes do not match")), FakeJudge(), batch_size=8))


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
    records = run(runner, intervention=FakeIntervention("a"), record=False)
    assert [record.prompt for record in records] == TEXTS
    assert not store.path.exists()
    run(runner, intervention=FakeIntervention("a"), record=False)
    assert len(chat.asked) == 4  # not even in memory


def test_a_known_answer_is_looked_for():
    prompts = [replace(PROMPTS[0], answer="blue"), replace(PROMPTS[1], answer="red"), PROMPTS[2]]
    assert [r.answer_found for r in run(Runner(FakeChat(), FakeJudge()), prompts)] == [True, False, None]


def test_progress_counts_every_prompt_once(tmp_path):
    steps = []
    progress = SimpleNamespace(start=lambda *_: None, advance=steps.append, note=lambda _: None)
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
