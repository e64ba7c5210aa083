"""From what a person writes after `--judge` to a judge."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from demur.errors import InputError
from demur.evaluation._cached_judge import CachedJudge
from demur.evaluation._chat_judge import ChatJudge
from demur.evaluation._classifier_judge import ClassifierJudge, PairedJudges
from demur.evaluation._judge import Judge
from demur.evaluation._judge_formats import FORMS, find_format
from demur.evaluation._phrase_judge import PhraseJudge
from demur.records import JsonLines, JudgeCost

_POSSIBLE = (
    "phrase; chat:MODEL or chat:MODEL@BASE_URL; classifier:MODEL or classifier:FORM:MODEL, with FORM one of "
    f"{', '.join(FORMS)}; or REFUSAL+HARM, such as phrase+classifier:MODEL"
)
_PLUS = re.compile(r"\+(?=phrase$|phrase\+|chat:|classifier:)")
_CHAT = re.compile(r"(?P<model>.+?)(?:@(?P<url>https?://.*))?", re.DOTALL)


@dataclass(frozen=True)
class JudgeOptions:
    """What is not in the specification of a judge. Each judge reads what concerns it."""

    rubric: str = "strict"
    """Of a chat judge: `strict` or `lenient`."""
    device: str = "auto"
    """Of a classifier, like the next two."""
    dtype: str = "auto"
    batch_size: int = 8
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of a chat judge; the rest is of chat judges too."""
    requests_per_minute: float | None = None
    concurrency: int = 8
    max_retries: int = 6
    timeout: float = 60.0
    max_tokens: int = 256
    input_price: float | None = None
    """Money per million tokens."""
    output_price: float | None = None


_CHAT_OPTIONS = (
    *("rubric", "api_key_env", "requests_per_minute", "concurrency", "max_retries", "timeout", "max_tokens"),
    *("input_price", "output_price"),
)


def make_judge(spec: str, *, options: JudgeOptions | None = None, cache: JsonLines | None = None) -> Judge:
    """The judge that a specification names.

    Args:
        spec: `phrase`, `chat:MODEL[@BASE_URL]`, `classifier:[FORM:]MODEL`, or `A+B`, where A judges refusal and B harm.
        options: settings of the judges.
        cache: keeps the judgements of chat judges and classifiers, so that nothing is asked twice.

    Raises:
        InputError: the specification names no judge, or none that judges refusal.
    """
    options = options or JudgeOptions()
    parts = _PLUS.split(spec.strip())
    if len(parts) > 2:
        raise InputError(f"a judge has two parts at most, REFUSAL+HARM; got {spec!r}. {_possible()}")
    if len(parts) == 2 and not parts[1].startswith("classifier:"):
        raise InputError(
            f"{parts[1]} does not judge harm; after the + comes a classifier, such as phrase+classifier:MODEL."
        )
    if not _judges_refusal(parts[0]):  # before anything large is loaded
        raise InputError(
            f"{parts[0]} judges harm and not refusal, which is needed here: write phrase+{parts[0]} to judge refusal "
            "by phrases and harm by the classifier."
        )
    judges = [_single(part, options, cache) for part in parts]
    if len(judges) == 1:
        return judges[0]
    return PairedJudges(refusal=judges[0], harm=judges[1])


def judge_cost(judge: Judge) -> JudgeCost | None:
    """What a judge, or the one of a pair that judges refusal, has used of a server; None where it asks none."""
    for one in (judge, getattr(judge, "refusal", None)):
        cost = getattr(one, "cost", None)
        if isinstance(cost, JudgeCost):
            return cost
    return None


def judge_options(settings: Sequence[str], *, base: JudgeOptions | None = None) -> JudgeOptions:
    """Options from NAME=VALUE texts, such as `requests_per_minute=60`; all but the rubric can be set so.

    Raises:
        InputError: a text is no NAME=VALUE, the name is unknown, or the value does not fit.
    """
    base = base or JudgeOptions()
    known = {field.name: field.default for field in fields(JudgeOptions) if field.name != "rubric"}
    return replace(base, **dict(_option(text, known) for text in settings))


def _option(text: str, known: Mapping[str, object]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in known:
        raise InputError(f"an option of a judge is NAME=VALUE with NAME one of {', '.join(known)}; got {text!r}.")
    default = known[name]
    if isinstance(default, str):
        return name, value
    try:
        return name, int(value) if isinstance(default, int) else float(value)
    except ValueError as error:
        raise InputError(f"the option {name} of a judge is a number; got {text!r}.") from error


def _judges_refusal(part: str) -> bool:
    kind, _, rest = part.partition(":")
    return kind != "classifier" or not rest or find_format(*_form_and_model(rest)).judges_refusal


def _single(spec: str, options: JudgeOptions, cache: JsonLines | None) -> Judge:
    if spec == "phrase":
        return PhraseJudge()
    kind, _, rest = spec.partition(":")
    make = {"chat": _chat, "classifier": _classifier}.get(kind)
    if make is None or not rest:
        raise InputError(f"{spec!r} names no judge. {_possible()}")
    judge = make(rest, options)
    return judge if cache is None else CachedJudge(judge, cache)


def _chat(rest: str, options: JudgeOptions) -> Judge:
    found = _CHAT.fullmatch(rest)
    assert found is not None
    model, url = found["model"], found["url"]
    after = model.rpartition("@")
    if url is None and after[1] and re.search("[:/]", after[2]):  # else the prompts would go to another server
        raise InputError(
            f"the address in chat:{rest} begins with http:// or https://, such as chat:MODEL@http://localhost:8000/v1."
        )
    return ChatJudge(model, base_url=url, **{name: getattr(options, name) for name in _CHAT_OPTIONS})


def _classifier(rest: str, options: JudgeOptions) -> Judge:
    form, model = _form_and_model(rest)
    judge: Judge = ClassifierJudge.load(
        model, form=form, device=options.device, dtype=options.dtype, batch_size=options.batch_size
    )
    return judge


def _form_and_model(rest: str) -> tuple[str | None, str]:
    """A model may be a path with a colon in it; hub ids have none."""
    first, _, model = rest.partition(":")
    if first in FORMS and model:
        return first, model
    if model and not Path(rest).exists() and len(first) > 1:  # one letter is a drive
        raise InputError(
            f"{first!r} is no form of classifier, and {rest!r} is no folder; the forms are {', '.join(FORMS)}."
        )
    return None, rest


def _possible() -> str:
    return f"A judge is {_POSSIBLE}."
