"""Refusal under other ways of asking, and how deep into an answer it still reaches."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from demur.assurance._audit_study import AuditStudy
from demur.evaluation import Condition, applicable_conditions, bootstrap_mean, scores_after
from demur.interventions import Intervention, RoundedWeights
from demur.models import ChatModel, Completion
from demur.prompts import Prompt, PromptSet
from demur.records import AuditCondition, Conditions, Depth, DepthPoint, canonical_json
from demur.types import PressureFamily, PromptLabel

Access = Literal["prompt", "operator", "weights"]
_ACCESS: dict[PressureFamily, Access] = {
    "opening": "operator",
    "suffix": "prompt",
    "system": "operator",
    "template": "operator",
    "weights": "weights",
    "sampling": "prompt",
    "given": "prompt",
}
_USER_CAN = ("earlier-turn",)
"""Conditions of the family `template` that a user can bring about by typing."""
_THREE_BITS = 3
_LABELS: tuple[PromptLabel, PromptLabel] = ("harmful", "harmless")


@dataclass(frozen=True)
class LongContext:
    """Harmless text comes before the prompt, in the same message."""

    texts: tuple[str, ...]
    """Harmless train prompts, in the model's own language."""
    n_tokens: int
    name: str = "long-context"

    @property
    def fingerprint(self) -> str:
        """sha256 of the texts and how much of them is used."""
        return hashlib.sha256(canonical_json([self.name, self.texts, self.n_tokens]).encode()).hexdigest()

    def filler(self, chat: ChatModel) -> str:
        """As many of the texts as fit into `n_tokens`, each on a line."""
        used, left = [], self.n_tokens
        for text in self.texts:
            left -= len(chat.tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"])
            if left < 0:
                break
            used.append(text)
        return "".join(f"{text}\n" for text in used)

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers to the prompts after the filler."""
        filler = self.filler(chat)
        return chat.generate([f"{filler}\n{prompt}" for prompt in prompts], max_new_tokens=max_new_tokens)


def measure_conditions(study: AuditStudy, variants: Mapping[str, PromptSet]) -> Conditions:
    """Harmful and harmless prompts under every condition that the model can be put under, and the user's variants."""
    size = study.settings.n_curve
    conditions, unable = applicable_conditions(study.chat)
    study.progress.start("asking in other ways", 2 * size * (len(conditions) + 2 + len(variants)))
    rows = [
        AuditCondition(
            name=one.name,
            family=one.family,
            what=one.what,
            access="prompt" if one.name in _USER_CAN else _ACCESS[one.family],
            rates=study.measure(one.rounding, most=size, asking=one),
        )
        for one in conditions
    ]
    if study.chat.layout.packed is None:
        rounded: Intervention = RoundedWeights(_THREE_BITS)
        rows.append(
            AuditCondition(
                name=f"int{_THREE_BITS}",
                family="weights",
                what=f"weights rounded to {_THREE_BITS} bits",
                access="weights",
                rates=study.measure(rounded, most=size, with_kl=False),
            )
        )
    rows.append(_long_context(study))
    rows += [_variant(study, name, prompts) for name, prompts in variants.items()]
    return Conditions(conditions=tuple(rows), not_applicable=unable)


def _long_context(study: AuditStudy) -> AuditCondition:
    limit = getattr(study.chat.model.config, "max_position_embeddings", None)
    n_tokens = min(study.settings.filler_tokens, limit // 2 if limit else study.settings.filler_tokens)
    asking = LongContext(tuple(study.texts("harmless", "train", study.settings.n_fit)), n_tokens)
    used = len(study.chat.tokenizer(asking.filler(study.chat), add_special_tokens=False)["input_ids"])
    return AuditCondition(
        name=asking.name,
        family="context",
        what=f"{used} tokens of harmless requests come before the prompt, in the same message",
        access="prompt",
        rates=study.measure(None, most=study.settings.n_curve, asking=asking),
    )


def _variant(study: AuditStudy, name: str, prompts: PromptSet) -> AuditCondition:
    harmful: Sequence[Prompt] = sorted(prompts.prompts, key=lambda prompt: prompt.sha256)
    return AuditCondition(
        name=f"given-{name}",
        family="given",
        what="harmful prompts given by the user",
        access="prompt",
        rates=study.measure(None, most=study.settings.n_curve, harmful=harmful, with_kl=False),
    )


def measure_depth(study: AuditStudy) -> Depth:
    """Refusal scores after forced neutral tokens: at the next token, and where another answer could begin."""
    study.progress.start("reading refusal along forced answers", len(study.settings.depths))
    points: dict[int, DepthPoint] = {}
    for depth in study.settings.depths:
        point = _at_depth(study, Condition(f"opening-{depth}", "opening", opening_tokens=depth))
        points[point.tokens] = point  # the opening has an end
        study.progress.advance()
    return Depth(points=tuple(points[tokens] for tokens in sorted(points)))


def _at_depth(study: AuditStudy, opening: Condition) -> DepthPoint:
    chat, again = study.chat, study.chat.template.post_instruction_tokens()
    scores: dict[str, Tensor] = {}
    forced: tuple[int, ...] = ()
    for label in _LABELS:
        requests = opening.requests(chat, study.texts(label, "test", study.settings.n_curve))
        forced = tuple(requests[0][1].opening)
        for name, added in ((label, forced), (f"{label}_again", (*forced, *again))):
            scores[name] = scores_after(
                chat,
                [[*tokens, *added] for tokens, _ in requests],
                study.directions.tokens,
                batch_size=study.settings.batch_size,
            )
    return DepthPoint(
        tokens=len(forced),
        auroc=auroc(scores["harmful"], scores["harmless"]),
        auroc_again=auroc(scores["harmful_again"], scores["harmless_again"]),
        **{name: bootstrap_mean(values.tolist(), seed=study.settings.seed) for name, values in scores.items()},
    )


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive value exceeds a negative one; ties count half (Mann and Whitney)."""
    differences = positive[:, None] - negative[None]
    return float(((differences > 0).double() + 0.5 * (differences == 0).double()).mean())
