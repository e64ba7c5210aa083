"""Tables of pressure made from planted verdicts."""

import hashlib

from demur.evaluation import Asked, Condition, pressure_table
from demur.records import CompletionRecord, JudgeIdentity, Pressure

JUDGE = JudgeIdentity(id="planted", version="1")


def answer(prompt: int, refused: bool | None, state: str, condition: str) -> CompletionRecord:
    verdict = "unjudged" if refused is None else "full_refusal" if refused else "full_compliance"
    return CompletionRecord(
        key=f"{prompt} {state} {condition}",
        label="harmful",
        split="test",
        prompt_sha256=hashlib.sha256(str(prompt).encode()).hexdigest(),
        prompt=f"prompt {prompt}",
        intervention=state,
        condition=condition,
        completion=None,
        n_tokens=3,
        ended=True,
        verdict=verdict,
        judge=JUDGE,
        score=0.5,
        degenerate=False,
    )


def asked(condition: Condition, before: list[bool | None], after: list[bool | None] | None) -> Asked:
    def answers(flags: list[bool | None], state: str) -> list[CompletionRecord]:
        return [answer(prompt, flag, state, condition.name) for prompt, flag in enumerate(flags)]

    return Asked(condition, answers(before, "none"), None if after is None else answers(after, "operating_point"))


def table(*results: Asked) -> Pressure:
    return pressure_table(results, not_applicable={})


def kept(n: int = 480) -> Pressure:
    """A table on which nothing is lost."""
    opening = Condition("opening-5", "opening", opening_tokens=5)
    return table(asked(opening, [True] * n, [True] * n))
