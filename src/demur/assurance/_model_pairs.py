"""Two models of one shape: where the refusal direction appears in a base model, and what one model's does in another.

Arditi et al. project a base model's activations on the chat model's direction (in an appendix); here the base model's
own difference in means and the separation of held-out prompts are measured too. Whether a direction
transfers is asked of behaviour: ablated and added in the other model, beside that model's own and a random one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from demur.activations import mean_activations
from demur.assurance._bootstrap import bootstrap_means
from demur.assurance._directions import Directions, directions_of
from demur.calibration import judge_identity, provenance
from demur.directions import cosine, difference_in_means
from demur.errors import InputError
from demur.evaluation import (
    Judge,
    PhraseJudge,
    Runner,
    is_refusal,
    paired_comparison,
    refusal_rate,
    separation,
)
from demur.interventions import ActivationAddition, DirectionalAblation, Intervention
from demur.models import ChatModel, length_sorted_batches, reading_inputs
from demur.prompts import Prompt, PromptSet
from demur.records import (
    BaseComparison,
    BasePlace,
    CompletionRecord,
    ModelAtPlace,
    PairedComparison,
    PromptSetIdentity,
    Separation,
    Transfer,
    TransferRow,
    TransferState,
)
from demur.types import Progress, PromptLabel, SilentProgress, Split

APPEARS_ABOVE = 0.8
"""Lower end of the AUROC from which a direction counts as there."""
_LABELS: tuple[PromptLabel, PromptLabel] = ("harmful", "harmless")


@dataclass(frozen=True)
class PairSettings:
    """Settings of both comparisons."""

    n_train: int = 128
    """Most train prompts of each set behind a difference in means."""
    n_test: int = 128
    """Most test prompts of each set."""
    max_new_tokens: int = 128
    batch_size: int = 32
    seed: int = 0
    """Of bootstrap intervals and of the random direction."""

    def __post_init__(self) -> None:
        for name in ("n_train", "n_test", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is a number of at least 1; got {getattr(self, name)}.")


def compare_base(
    chat: ChatModel,
    base: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    directions: Directions,
    *,
    settings: PairSettings | None = None,
    progress: Progress | None = None,
) -> BaseComparison:
    """Where along the layers the refusal direction appears, in a chat model and in the base model that it comes from.

    Args:
        chat: the chat model.
        base: its base model, as of `load_base_model`, so that both read the same tokens.
        prompts: harmful and harmless prompts with splits: differences in means are fitted on train, all else is test.
        directions: the chat model's.
        settings: of the comparison.
        progress: is told what is being done.

    Raises:
        InputError: the models have other shapes, or render a prompt differently.
    """
    settings, progress = settings or PairSettings(), progress or SilentProgress()
    _require_same_shape(chat, base)
    if chat.encode(["Hello."]) != base.encode(["Hello."]):
        raise InputError(
            f"{base.name} renders prompts other than {chat.name}; load it with load_base_model(id, chat), so that both "
            "read the same tokens."
        )
    texts = {split: _texts(prompts, split, settings) for split in ("train", "test")}
    train, test = texts["train"], texts["test"]
    positions = tuple(range(-len(chat.template.post_instruction_tokens()), 0))
    total = 2 * sum(len(each) for both in texts.values() for each in both.values())
    progress.start("reading both models", total)
    own, read = [], []
    for model in (chat, base):
        own.append(_means(model, train, len(positions), settings, progress))
        read.append(_project(model, test, directions.refusal.unit, own[-1], settings, progress))
    places = []
    for row, position in enumerate(positions):
        for layer in range(chat.n_layers):
            place = (row, layer)
            one, two = own[0][place], own[1][place]
            places.append(
                BasePlace(
                    layer=layer,
                    position=position,
                    chat=_at_place(read[0], place, settings.seed),
                    base=_at_place(read[1], place, settings.seed),
                    cosine=cosine(one, two),
                    r_with_chat=cosine(directions.refusal.vector, one),
                    r_with_base=cosine(directions.refusal.vector, two),
                )
            )
    at_r = [each for each in places if each.position == directions.refusal.position]
    return BaseComparison(
        chat=chat.identity,
        base=base.identity,
        prompts=_identities(prompts),
        n_fit={label: len(train[label]) for label in _LABELS},
        n_test={label: len(test[label]) for label in _LABELS},
        source=directions.source,
        layer=directions.refusal.layer,
        position=directions.refusal.position,
        positions=positions,
        position_texts=chat.template.post_instruction_texts(),
        appears_above=APPEARS_ABOVE,
        chat_appears=_first(at_r, [each.chat for each in at_r]),
        base_appears=_first(at_r, [each.base for each in at_r]),
        places=tuple(places),
        provenance=provenance(chat, seed=settings.seed),
    )


def transfer(
    source: ChatModel,
    target: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    directions: Directions,
    *,
    target_directions: Directions | None = None,
    settings: PairSettings | None = None,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Ablate and add one model's refusal direction in another model of the same shape, beside that model's own.

    All of it is done in memory by hooks; no answers are kept.

    Args:
        source: the model whose direction is tried.
        target: the model in which it is tried.
        prompts: harmful and harmless prompts with splits.
        directions: the source's.
        target_directions: the target's own; None finds them.
        settings: of the comparison.
        judge: of the answers; by default the phrase judge.
        progress: is told what is being done.

    Raises:
        InputError: the models have other shapes.
        SelectionError: the target has no direction that passes the filters.
        ModelError: the target does not refuse, or refuses everything.
    """
    settings, judge, progress = settings or PairSettings(), judge or PhraseJudge(), progress or SilentProgress()
    _require_same_shape(source, target)
    own = target_directions or directions_of(target, prompts, progress=progress)
    runner = Runner(
        target,
        judge,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        progress=progress,
    )
    r, its = directions.refusal, own.refusal
    noise = torch.randn(len(r.vector), generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float64)
    noise *= its.norm / noise.norm()
    states: dict[TransferState, tuple[Tensor, int]] = {
        "other's direction": (r.vector, r.layer),
        "own direction": (its.vector, its.layer),
        "random direction": (noise, its.layer),
    }
    progress.start("answering in the other model", 2 * (1 + len(states)) * settings.n_test)
    asking = partial(_answers, runner, prompts, settings)
    rest = {label: asking(label, None) for label in _LABELS}
    rows = [TransferRow(state="at rest", ablated=refusal_rate(rest["harmful"]), added=refusal_rate(rest["harmless"]))]
    for state, (vector, layer) in states.items():
        ablated = asking("harmful", DirectionalAblation(vector))
        added = asking("harmless", ActivationAddition(vector, layer))
        rows.append(
            TransferRow(
                state=state,
                ablated=refusal_rate(ablated),
                ablated_change=_change(rest["harmful"], ablated, judge),
                added=refusal_rate(added),
                added_change=_change(rest["harmless"], added, judge),
            )
        )
    means = _means(target, _texts(prompts, "train", settings), -r.position, settings, progress)
    left = [row.ablated.rate or 0.0 for row in rows]
    removed, by_own = left[0] - left[1], left[0] - left[2]
    return Transfer(
        source_model=source.identity,
        target_model=target.identity,
        prompts=_identities(prompts),
        judge=judge_identity(judge),
        layer=r.layer,
        position=r.position,
        own_layer=its.layer,
        own_position=its.position,
        cosine=cosine(r.vector, its.vector),
        cosine_at_place=cosine(r.vector, means[0, r.layer]),
        rows=tuple(rows),
        share_of_own=removed / by_own if by_own > 0 else None,
        provenance=provenance(target, seed=settings.seed),
    )


def _require_same_shape(one: ChatModel, two: ChatModel) -> None:
    shapes = [(model.n_layers, model.layout.d_model) for model in (one, two)]
    if shapes[0] != shapes[1]:
        (blocks, width), (others, other) = shapes
        raise InputError(
            f"{one.name} has {blocks} blocks of width {width} and {two.name} {others} of width {other}; a direction "
            "has a meaning in models of one shape only. Give another version of the same model."
        )


def _identities(prompts: Mapping[PromptLabel, PromptSet]) -> dict[PromptLabel, PromptSetIdentity]:
    return {label: prompts[label].identity() for label in _LABELS}


def _prompts(prompts: PromptSet, split: Split, settings: PairSettings) -> tuple[Prompt, ...]:
    most = settings.n_train if split == "train" else settings.n_test
    chosen = sorted(prompts.split(split), key=lambda prompt: prompt.sha256)[:most]
    if not chosen:
        raise InputError(f"there are no {prompts.label} prompts in the split {split}; give more of them.")
    return tuple(chosen)


def _texts(
    prompts: Mapping[PromptLabel, PromptSet], split: Split, settings: PairSettings
) -> dict[PromptLabel, list[str]]:
    return {label: [prompt.text for prompt in _prompts(prompts[label], split, settings)] for label in _LABELS}


def _answers(
    runner: Runner,
    prompts: Mapping[PromptLabel, PromptSet],
    settings: PairSettings,
    label: PromptLabel,
    intervention: Intervention | None,
) -> list[CompletionRecord]:
    return runner.complete(
        _prompts(prompts[label], "test", settings),
        condition="transfer",
        split="test",
        intervention=intervention,
        folded=False,
        keep_text=False,
        record=False,
        until_settled=True,
    )


def _change(before: Sequence[CompletionRecord], after: Sequence[CompletionRecord], judge: Judge) -> PairedComparison:
    compared = paired_comparison([is_refusal(each) for each in before], [is_refusal(each) for each in after])
    return compared.model_copy(update={"judge": judge_identity(judge)})


# Both models over layers and positions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Projected:
    """One model's test prompts at every place, by label, each [prompt, position, layer]."""

    along_r: dict[PromptLabel, Tensor]
    along_own: dict[PromptLabel, Tensor]
    sizes: dict[PromptLabel, Tensor]


def _means(
    chat: ChatModel,
    texts: Mapping[PromptLabel, Sequence[str]],
    n_positions: int,
    settings: PairSettings,
    progress: Progress,
) -> Tensor:
    """The difference in means, [position, layer, d_model]."""
    found = [
        mean_activations(chat, texts[label], n_positions=n_positions, batch_size=settings.batch_size, progress=progress)
        for label in _LABELS
    ]
    return difference_in_means(*found)


def _project(
    chat: ChatModel,
    texts: Mapping[PromptLabel, Sequence[str]],
    unit: Tensor,
    own: Tensor,
    settings: PairSettings,
    progress: Progress,
) -> _Projected:
    """Projections on the unit refusal direction and on the model's own, without keeping any stream."""
    units = own / own.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    result = _Projected({}, {}, {})
    for label in _LABELS:
        encoded = chat.encode(texts[label])
        shape = (len(encoded), *own.shape[:2])
        along_r, along_own, sizes = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        for indices in length_sorted_batches([len(tokens) for tokens in encoded], settings.batch_size):

            def read(layer: int, stream: Tensor, indices: list[int] = indices) -> None:
                rows = stream[:, -own.shape[0] :].to("cpu", torch.float64)
                along_r[indices, :, layer] = rows @ unit  # noqa: B023 (read within the loop's turn)
                along_own[indices, :, layer] = (rows * units[:, layer]).sum(-1)  # noqa: B023
                sizes[indices, :, layer] = rows.norm(dim=-1)  # noqa: B023

            readers = {path: partial(read, layer) for layer, path in enumerate(chat.layout.blocks)}
            with reading_inputs(chat.module, readers):
                chat.run(chat.batch([encoded[index] for index in indices]))
            progress.advance(len(indices))
        result.along_r[label], result.along_own[label], result.sizes[label] = along_r, along_own, sizes
    return result


def _at_place(read: _Projected, place: tuple[int, int], seed: int) -> ModelAtPlace:
    row, layer = place

    def of(values: dict[PromptLabel, Tensor]) -> tuple[Tensor, Tensor]:
        return values["harmful"][:, row, layer], values["harmless"][:, row, layer]

    tiny = torch.finfo(torch.float64).tiny
    cosines = [
        bootstrap_means((along / size.clamp_min(tiny))[:, None], seed=seed)[0]
        for along, size in zip(of(read.along_r), of(read.sizes), strict=True)
    ]
    return ModelAtPlace(
        harmful_cosine=cosines[0],
        harmless_cosine=cosines[1],
        along_r=_separated(*of(read.along_r)),
        along_own=_separated(*of(read.along_own)),
    )


def _separated(harmful: Tensor, harmless: Tensor) -> Separation:
    area = separation(harmful.tolist(), harmless.tolist())
    gap = float(harmful.mean() - harmless.mean())
    spread = float(((harmful.var(correction=0) + harmless.var(correction=0)) / 2).sqrt())
    return Separation(
        auroc=area.auroc, low=area.low, high=area.high, d_prime=gap / spread if spread > 0 else None, gap=gap
    )


def _first(places: Sequence[BasePlace], models: Sequence[ModelAtPlace]) -> int | None:
    """The first layer at which the direction separates harmful from harmless prompts."""
    return next(
        (place.layer for place, model in zip(places, models, strict=True) if model.along_r.low > APPEARS_ABOVE), None
    )
