"""The format of a suite, `demur.suite/1`: cases, conditions, expectations. Knows no files and no models."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from demur.records import Severity
from demur.types import PromptLabel, Split

SUITE_SCHEMA: Literal["demur.suite/1"] = "demur.suite/1"
DirectionName = Literal["r", "w'", "random"]
"""Refusal direction; false-refusal direction of the run's operating point; a control of r's length."""
MOST_REPEATS = 1000
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Part(BaseModel):
    """Base of what a suite is made of: frozen, strict, no unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _short(field: str) -> BeforeValidator:
    """A plain text or number stands for an object with this one field."""
    return BeforeValidator(lambda value: {field: value} if isinstance(value, (str, int, float)) else value)


def _or_true(value: Any) -> Any:
    """`true` asks it of every prompt."""
    if isinstance(value, bool):
        if not value:
            raise ValueError("it is false; write true, limits such as {at_least: 0.9}, or leave it out")
        return {}
    return value


def _listed(value: Any) -> Any:
    """One stands for a list of one; YAML has no tuples."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Share(Part):
    """Of how many prompts something must be true: of every one, or between limits."""

    at_least: float | None = Field(default=None, ge=0, le=1)
    at_most: float | None = Field(default=None, ge=0, le=1)
    bound: Literal["interval", "point"] = "interval"
    """interval: the whole 95 % interval must keep the limit, and one that straddles it is inconclusive; point: k/n."""

    @model_validator(mode="after")
    def _in_order(self) -> "Share":
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}, which no rate can keep")
        if self.bound == "point" and self.every:
            raise ValueError("bound needs at_least or at_most; without them it is asked of every prompt")
        return self

    @property
    def every(self) -> bool:
        """Whether it is asked of every single prompt."""
        return self.at_least is None and self.at_most is None


class Matches(Share):
    """Answers in which a regular expression is found, letter case aside."""

    pattern: str

    @model_validator(mode="after")
    def _compiles(self) -> "Matches":
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        return self


class Contains(Share):
    """Answers that hold a text as whole words, letter case and punctuation aside."""

    text: str = Field(min_length=1)


class Range(Part):
    """Limits of a mean over prompts."""

    above: float | None = None
    below: float | None = None
    bound: Literal["interval", "point"] = "interval"
    """interval: of the mean, over prompts (bootstrap); point: the mean itself."""

    @model_validator(mode="after")
    def _limits(self) -> "Range":
        if self.above is None and self.below is None:
            raise ValueError("it needs a limit: above, below or both")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"above {self.above} is not below {self.below}, so that no mean can lie between them")
        return self


class Projection(Range):
    """Mean projection on the unit vector of r at one place of the residual stream."""

    scale: Literal["relative", "absolute"] = "relative"
    """relative: 0 is the mean of harmless and 1 that of harmful prompts in the model itself; absolute: its own unit."""
    layer: int | None = Field(default=None, ge=0)
    """Block at whose input it is read; r's own by default."""
    position: int | None = Field(default=None, le=-1)
    """Token from the end of the rendered prompt; r's own by default."""


class Expectation(Part):
    """What must be true; with several, all of it."""

    refuses: Annotated[Share | None, BeforeValidator(_or_true)] = None
    answers: Annotated[Share | None, BeforeValidator(_or_true)] = None
    matches: Annotated[Matches | None, _short("pattern")] = None
    contains: Annotated[Contains | None, _short("text")] = None
    correct: Annotated[Share | None, BeforeValidator(_or_true)] = None
    """The answer contains what the prompt's column `answer` says."""
    unchanged: Annotated[Share | None, BeforeValidator(_or_true)] = None
    """Refused, or not, as by the model itself, asked plainly."""
    refusal_score: Range | None = None
    projection: Projection | None = None

    @model_validator(mode="after")
    def _something(self) -> "Expectation":
        if not self.model_fields_set:
            raise ValueError(f"it is empty; give one or more of {', '.join(type(self).model_fields)}")
        return self

    def given(self) -> dict[str, Share | Range]:
        """The expectations that the case has, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}


class Steering(Part):
    """A direction that is added to, or subtracted from, the input of its block at every position."""

    direction: DirectionName
    strength: float = Field(default=1.0, gt=0)
    """In multiples of the direction's own length."""


class SuiteCondition(Part):
    """How the model is changed, and how it is asked. Everything that is given holds at once."""

    ablate: Annotated[tuple[DirectionName, ...], BeforeValidator(_listed)] = ()
    add: Annotated[Steering | None, _short("direction")] = None
    subtract: Annotated[Steering | None, _short("direction")] = None
    quantised: Literal["int8", "int4"] | None = None
    """Weights rounded to nearest."""
    system: str | None = None
    """System prompt in the place of the model's own."""
    response_prefix: str = ""
    """What the answer is made to begin with; the judge reads what follows."""
    suffix: str = ""
    """Follows the prompt after a space."""
    random_suffix: int = Field(default=0, ge=0, le=1024)
    """That many random tokens of the vocabulary follow the prompt."""
    thinking: bool | None = None
    """The template's `enable_thinking`."""
    template: dict[str, bool | int | str] = Field(default_factory=dict)
    """Further variables of the chat template."""
    language: str | None = None
    """Of the prompts that the case gives, for the record: demur translates nothing."""
    seed: int = Field(default=0, ge=0)
    """Of random directions."""

    @property
    def directions(self) -> set[DirectionName]:
        """The directions that it needs."""
        return {*self.ablate, *(each.direction for each in (self.add, self.subtract) if each is not None)}


class SuiteCase(Part):
    """Prompts, a condition, what is expected under it."""

    name: str = Field(pattern=_NAME)
    description: str = ""
    severity: Severity = "major"
    owner: str = ""
    tags: Texts = ()
    prompt: str | None = None
    prompts: Texts = ()
    prompt_set: str | None = None
    """A source as on the command line; a path is relative to the suite; toy:NAME are the toy model's prompts."""
    label: PromptLabel | None = None
    """What the prompts are; by default what the name of the source says, else harmful."""
    split: Split | None = None
    """Of the source; by default all of it."""
    limit: int | None = Field(default=None, ge=1)
    """The most prompts; those with the smallest hashes stay."""
    condition: SuiteCondition = SuiteCondition()
    expect: Expectation
    repeat: int = Field(default=1, ge=1, le=MOST_REPEATS)
    """Samples at temperature 1; 1 is the greedy answer."""

    @model_validator(mode="after")
    def _prompts(self) -> "SuiteCase":
        given = [name for name in ("prompt", "prompts", "prompt_set") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise ValueError(f"give one of prompt, prompts and prompt_set; it has {said}")
        if self.prompt_set is None and (self.split or self.limit):
            raise ValueError("split and limit choose from a prompt_set; leave them out with prompts of its own")
        return self


class DirectionSources(Part):
    """Prompts from which r is found where no run is given."""

    harmful: str
    harmless: str


class SuiteFile(Part):
    """The whole file."""

    schema_: Literal["demur.suite/1"] = Field(alias="schema")
    name: str = Field(pattern=_NAME)
    description: str = ""
    owner: str = ""
    """Of the cases that name none."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer."""
    directions: DirectionSources | None = None
    cases: Annotated[tuple[SuiteCase, ...], BeforeValidator(_listed)]

    @model_validator(mode="after")
    def _unique(self) -> "SuiteFile":
        if not self.cases:
            raise ValueError("it has no cases; give one or more under `cases:`")
        names = [case.name for case in self.cases]
        again = next((name for name in names if names.count(name) > 1), None)
        if again is not None:
            raise ValueError(f"two cases are named {again!r}; give each its own name")
        return self
