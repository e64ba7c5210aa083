"""What a cache of judgements holds, and what judging by a server cost."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.types import Verdict


class JudgementRecord(Record):
    """One line of a cache of judgements. It holds no text: what was judged may be an answer to a harmful prompt."""

    key: str
    """sha256 of the judge's id and version, the prompt and the completion."""
    verdict: Verdict
    score: float
    degenerate: bool
    harm: float | None = None


class JudgeCost(Record):
    """What a judge that asks a server has used since it was made. Judgements that came from a cache cost nothing."""

    schema_: Literal["demur.judge_cost/1"] = Field(default="demur.judge_cost/1", alias="schema")
    questions: int
    """Answers that were put to the server."""
    requests: int
    """HTTP requests that were sent for them."""
    retries: int
    """Requests beyond the first for a question."""
    input_tokens: int
    """As the server counts them; replies without a count are in `uncounted`."""
    output_tokens: int
    uncounted: int
    """Replies that do not say their tokens: with any, tokens and money are lower bounds."""
    money: float | None
    """In the currency of the prices; null where no prices were given."""
