"""What a targeted suite found: one result for each case. No text of any prompt or answer."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._identity import ModelIdentity
from demur.records._rates import JudgeIdentity, Mean, Rate
from demur.records._summary import Provenance
from demur.types import Decision, PromptLabel, Verdict

Severity = Literal["blocker", "major", "minor"]
"""How bad it is if a case fails."""

Outcome = Literal["passed", "failed", "inconclusive", "skipped", "error"]
"""skipped: the model cannot be put under the condition; error: the case could not be run."""


class SuiteAnswer(Record):
    """One line of `answers.jsonl`: the judgement of one answer, without its text."""

    key: str
    """sha256 of model state, tokens, seed, judge and settings."""
    verdict: Verdict
    degenerate: bool
    texts: dict[str, bool] = Field(default_factory=dict)
    """Whether the answer matches or contains what a case asks for, by the sha256 of that."""
    right: bool | None = None
    """Whether it contains the prompt's expected answer; null where the prompt has none."""


class SuitePrompt(Record):
    """A prompt against a case, by its hash."""

    sha256: str
    where: str
    """Line or row of its source, or its number in the suite."""


class SuiteCheck(Record):
    """One expectation of a case and what was measured."""

    kind: Literal["refuses", "answers", "matches", "contains", "correct", "unchanged", "refusal_score", "projection"]
    expected: str
    """In words."""
    decision: Decision
    at_least: float | None = None
    """Lower limit: of a rate a share, else in the unit of the mean. null where there is none."""
    at_most: float | None = None
    """Upper limit."""
    rate: Rate | None = None
    """Of the prompts of which it is true; with a case that is repeated, of the answers."""
    mean: Mean | None = None
    """Of a refusal score (log-odds) or a projection."""
    unit: str = ""
    """Of the mean."""
    against: tuple[SuitePrompt, ...] = ()
    """Prompts of which it is not true; at most 20."""
    n_against: int = 0
    """How many there are."""


class Flakiness(Record):
    """How far sampled answers to the same prompts agree."""

    samples: int
    """Answers to each prompt."""
    wavering: Rate
    """Prompts that were refused in some samples and answered in others, of those judged."""
    passing: int
    """Samples that alone would have passed."""


class SuiteCaseResult(Record):
    """One case."""

    name: str
    description: str = ""
    severity: Severity
    owner: str = ""
    tags: tuple[str, ...] = ()
    condition: str
    """In words."""
    label: PromptLabel
    n_prompts: int
    repeat: int
    """1: greedy answers; else samples at temperature 1."""
    outcome: Outcome
    checks: tuple[SuiteCheck, ...] = ()
    flakiness: Flakiness | None = None
    """null where nothing was sampled."""
    message: str = ""
    """Why the case was skipped or could not be run."""


class SuiteCost(Record):
    """What the run cost."""

    states: int
    """Model states: the model itself, and the model under each intervention."""
    generate_calls: int
    """Batches of answers."""
    answers: int
    """Answers that were generated."""
    reused: int
    """Answers that were in the folder already."""
    wanted: int
    """Answers that the cases look at; what is wanted by several cases is generated once."""
    score_passes: int
    """Batches that were read for refusal scores and projections."""


class SuiteRecord(Record):
    """`suite.json`: a run of a targeted suite."""

    schema_: Literal["demur.suite_result/1"] = Field(default="demur.suite_result/1", alias="schema")
    suite: str
    """Its name."""
    description: str = ""
    source: str
    """File name, or the name of a shipped suite."""
    suite_sha256: str
    """Of its cases."""
    model: ModelIdentity
    judge: JudgeIdentity
    directions: str | None
    """Where the directions come from; null where no case needs any."""
    n_cases: int
    """Cases of the suite."""
    cases: tuple[SuiteCaseResult, ...]
    """Those that were selected and run, in the order of the suite."""
    stopped: bool = False
    """Whether `--fail-fast` left out cases."""
    decision: Decision
    """fail: a case failed or could not be run; inconclusive: none failed, and one is inconclusive or none was run."""
    cost: SuiteCost
    provenance: Provenance
