"""What a condition makes of a model and of a prompt: an intervention, and the tokens that the model reads."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from demur.assurance._directions import Directions
from demur.assurance._suite_cases import Steering, SuiteCondition
from demur.directions import Direction
from demur.errors import InputError, ModelError
from demur.evaluation import Condition
from demur.interventions import ActivationAddition, Combined, DirectionalAblation, Intervention, RoundedWeights
from demur.models import ChatModel

_BITS = {"int8": 8, "int4": 4}


def intervention_of(condition: SuiteCondition, directions: Directions | None) -> Intervention | None:
    """The change to the model, to be applied at run time by hooks; None where there is none.

    Raises:
        InputError: a direction is needed that there is not.
    """
    parts: list[Intervention] = []
    if condition.quantised is not None:
        parts.append(RoundedWeights(_BITS[condition.quantised]))
    if condition.ablate:
        rows = [_direction(name, directions, condition.seed).vector for name in condition.ablate]
        parts.append(DirectionalAblation(torch.stack(rows)))
    for steering, sign in ((condition.add, 1), (condition.subtract, -1)):
        if steering is not None:
            direction = _direction(steering.direction, directions, condition.seed)
            parts.append(ActivationAddition(sign * steering.strength * direction.vector, direction.layer))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Combined(tuple(parts))


def _direction(name: str, directions: Directions | None, seed: int) -> Direction:
    if directions is None:
        raise AssertionError("a condition needs directions, and none were looked for")
    refusal = directions.refusal
    if name == "r":
        return refusal
    if name == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(refusal.vector.shape, generator=generator, dtype=torch.float64)
        return replace(refusal, vector=drawn / drawn.norm() * refusal.norm)
    if directions.false_refusal is None:
        raise InputError(
            f"w' is needed, and there is none ({directions.source}). Give --run with the folder of a calibration."
        )
    return directions.false_refusal


def tokens_under(condition: SuiteCondition, chat: ChatModel, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids that the model reads for each prompt."""
    view = _with_template(condition, chat)
    texts = [f"{prompt} {condition.suffix}" if condition.suffix else prompt for prompt in prompts]
    if condition.random_suffix:
        noise = Condition("suffix", "suffix", suffix_tokens=condition.random_suffix)
        return [tuple(tokens) for tokens, _ in noise.requests(view, texts)]
    return [tuple(tokens) for tokens in view.encode(texts)]


def not_applicable(condition: SuiteCondition, chat: ChatModel) -> str | None:
    """Why a model cannot be put under a condition; None where it can."""
    if condition.quantised is not None and chat.layout.packed is not None:
        return f"the weights are {chat.layout.packed} already"
    if condition.system and not chat.template.takes_system_role():
        return "the chat template takes no system prompt"
    options = _options(condition)
    unused = [name for name in replace(chat.template, options=options).unused_options() if name in options]
    if unused:
        return f"the chat template has no {' and no '.join(unused)}"
    try:
        _with_template(condition, chat).template.render("Hello.")
    except ModelError as error:
        return f"the chat template does not take it: {error}"
    return None


def _options(condition: SuiteCondition) -> dict[str, bool | int | str]:
    thinking = {} if condition.thinking is None else {"enable_thinking": condition.thinking}
    return {**condition.template, **thinking}


def _with_template(condition: SuiteCondition, chat: ChatModel) -> ChatModel:
    """The same model, rendering prompts as the condition wants; weights and layout are shared."""
    template = chat.template
    view = copy.copy(chat)
    view.template = replace(
        template,
        system=template.system if condition.system is None else condition.system,
        options={**template.options, **_options(condition)},
        response_prefix=template.response_prefix + condition.response_prefix,
    )
    return view


def in_words(condition: SuiteCondition) -> str:
    """The condition for a record. Texts are named by hash: a suffix or a system prompt may be an attack."""
    parts = []
    if condition.ablate:
        parts.append(f"{' and '.join(condition.ablate)} ablated")
    for steering, done in ((condition.add, "added"), (condition.subtract, "subtracted")):
        if steering is not None:
            parts.append(_steering(steering, done))
    if condition.quantised:
        parts.append(f"weights rounded to {condition.quantised}")
    for name, text in (
        ("system prompt", condition.system),
        ("answer begun", condition.response_prefix or None),
        ("suffix", condition.suffix or None),
    ):
        if text is not None:
            parts.append(f"{name} {hashlib.sha256(text.encode()).hexdigest()[:8]} ({len(text)} characters)")
    if condition.random_suffix:
        parts.append(f"{condition.random_suffix} random tokens after the prompt")
    parts += [f"{name}={value}" for name, value in _options(condition).items()]
    if condition.language:
        parts.append(f"language {condition.language}")
    return ", ".join(parts) or "as it is"


def _steering(steering: Steering, done: str) -> str:
    times = "" if steering.strength == 1 else f" {steering.strength:g} times"
    return f"{steering.direction} {done}{times}"
