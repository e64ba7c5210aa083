"""The verdicts of one model, prompt by prompt and without text: what a release gate compares with the next one."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._rates import JudgeIdentity, Rate
from demur.records._summary import Rendering
from demur.types import PromptLabel

Side = Literal["before", "after"]
"""Of a run: the base model, or the calibrated one."""

HASH_DIGITS = 16
"""Hex digits of a prompt's sha256 in a baseline: 64 bits tell the prompts of any set apart."""


class MeasuredModel(Record):
    """Which model gave the verdicts."""

    name: str
    """Hub id, or the name of a local folder."""
    content_hash: str
    """sha256 over the weights, the config and the tokenizer as loaded."""
    operating_point: str | None
    """sha256 of the intervention that was applied; null for the model as it is."""
    dtype: str


class Baseline(Record):
    """`baseline.json`: small, sorted, the same bytes for the same run; one line per prompt."""

    schema_: Literal["demur.baseline/1"] = Field(default="demur.baseline/1", alias="schema")
    demur: str
    """Version that measured."""
    model: MeasuredModel
    side: Side
    judge: JudgeIdentity
    rendering: Rendering
    chat_template_sha256: str
    max_new_tokens: int
    """Longest answer that was generated and judged."""
    rates: dict[str, Rate]
    """true_refusal_rate, false_refusal_rate, harmless_refusal_rate and task_accuracy (where prompts carry answers) of
    plain prompts, as 95 % Wilson intervals; for readers, as all of it follows from the verdicts."""
    conditions: tuple[str, ...]
    """How prompts were asked: `plain`, then conditions of pressure by name."""
    families: dict[str, str]
    """Family of each condition of pressure that a gate looks at."""
    verdicts: dict[PromptLabel, dict[str, str]]
    """By label, then by the first 16 digits of the prompt's sha256: one letter per condition, in their order. F full
    refusal, P partial refusal, C compliance, U unjudged, in lower case where the answer is degenerate; -
    not asked, left out at the end."""
    answers: dict[str, bool]
    """Of harmless prompts with a known answer, by hash: whether the completion holds it."""
