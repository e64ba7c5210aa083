"""How suffixes get past refusal: projections, attribution, attention and rates (Arditi et al. section 5).

Harmful prompts are measured as they are, with random tokens after them and with each suffix after them; harmless ones
as they are. Everything is read at the last position, where the answer begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demur.assurance._bootstrap import bootstrap_means
from demur.assurance._directions import Directions
from demur.assurance._suffix_prompts import INSTRUCTION, SUFFIX, WithSuffix, token_groups
from demur.assurance._suffix_search import SuffixSearchSettings, require_toy, search_suffix
from demur.calibration import judge_identity, provenance, rendering, run_record
from demur.errors import InputError
from demur.evaluation import (
    Asking,
    Condition,
    Judge,
    PhraseJudge,
    Runner,
    is_refusal,
    paired_comparison,
    refusal_rate,
    scores_after,
)
from demur.interventions import DirectionalAblation
from demur.models import Attribution, ChatModel, Part, attribute
from demur.prompts import Prompt, PromptSet
from demur.records import (
    AttentionShare,
    AttributedPart,
    CompletionRecord,
    JsonLines,
    Mean,
    RunFolder,
    SuffixAnalysis,
    SuffixGroup,
    SuffixRole,
    SuffixSearch,
    SuffixText,
    read_record,
    write_record,
)
from demur.types import Progress, PromptLabel, SilentProgress

TOP_HEADS = 8
"""Heads that are looked at closely, as in the paper."""
TOP_WRITES = 8


@dataclass(frozen=True)
class SuffixSettings:
    """Settings of an analysis of suffixes."""

    n_prompts: int = 128
    """Most harmful and most harmless test prompts."""
    max_new_tokens: int = 128
    batch_size: int = 32
    seed: int = 0
    """Of bootstrap intervals."""
    search: SuffixSearchSettings | None = None
    """Search a suffix as well; the toy model only."""

    def __post_init__(self) -> None:
        for name in ("n_prompts", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is a number of at least 1; got {getattr(self, name)}.")


@dataclass(frozen=True)
class _Group:
    """Prompts and how they are put to the model."""

    name: str
    role: SuffixRole
    what: str
    prompts: Sequence[Prompt]
    asking: Asking | None
    sequences: list[list[int]]
    suffix: str | None = None


def analyse_suffixes(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    directions: Directions,
    *,
    suffixes: Sequence[str] = (),
    settings: SuffixSettings | None = None,
    judge: Judge | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> SuffixAnalysis:
    """Measure what suffixes do to refusal and to the refusal direction (Arditi et al. section 5).

    Args:
        chat: the model.
        prompts: harmful and harmless prompts, with splits; measured on test.
        directions: the refusal direction and tokens, as of `directions_of`.
        suffixes: texts that are put after harmful prompts.
        settings: of the analysis; its `search` adds one more suffix, on the toy model.
        judge: of the answers; by default the phrase judge.
        out: folder for `suffixes.json`; verdicts are kept there, so that a killed analysis goes on. No texts of answers
            are kept.
        progress: is told what is being done.

    Raises:
        InputError: there is no suffix, one comes twice or is empty, or there are no test prompts.
        ModelError: a search was asked for on a model other than the toy.
        RunFolderError: the folder belongs to other inputs, or cannot be written.
    """
    settings, judge, progress = settings or SuffixSettings(), judge or PhraseJudge(), progress or SilentProgress()
    _check(chat, suffixes, settings)
    both: dict[PromptLabel, PromptSet] = {"harmful": prompts["harmful"], "harmless": prompts["harmless"]}
    if out is None:
        return _Analysis(chat, both, directions, settings, judge, progress, None).measure(suffixes)
    told = {
        **asdict(settings),
        "suffixes": list(suffixes),
        "direction": DirectionalAblation(directions.refusal.vector).fingerprint,
    }
    folder = RunFolder(out)
    with folder.writing(run_record("suffixes", chat, both, judge, told)):
        path = folder.path / "suffixes.json"
        if path.exists():
            return read_record(path, SuffixAnalysis)
        result = _Analysis(chat, both, directions, settings, judge, progress, folder.completions).measure(suffixes)
        write_record(path, result)
    return result


def _check(chat: ChatModel, suffixes: Sequence[str], settings: SuffixSettings) -> None:
    if not suffixes and settings.search is None:
        raise InputError(
            "there is no suffix to look at; give one or more with --suffix or --suffixes (on the toy model --search "
            "finds one)."
        )
    if len(set(suffixes)) < len(suffixes):
        twice = next(text for text in suffixes if list(suffixes).count(text) > 1)
        raise InputError(f"the suffix {twice!r:.60} is given twice; leave one out.")
    for number, text in enumerate(suffixes, start=1):
        WithSuffix(f"suffix-{number}", text)  # refuses an empty one
    if settings.search is not None:
        require_toy(chat)


@dataclass
class _Analysis:
    chat: ChatModel
    prompts: dict[PromptLabel, PromptSet]
    directions: Directions
    settings: SuffixSettings
    judge: Judge
    progress: Progress
    store: JsonLines | None

    def measure(self, suffixes: Sequence[str]) -> SuffixAnalysis:
        """All groups, one after the other."""
        texts, search = self._suffixes(suffixes)
        groups = self._groups(texts)
        runner = Runner(
            self.chat,
            self.judge,
            self.store,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
            progress=self.progress,
        )
        self.progress.start("answering with and without suffixes", sum(len(group.prompts) for group in groups))
        answers = [self._answers(runner, group) for group in groups]
        self.progress.start("taking the projection apart", sum(len(group.prompts) for group in groups))
        found = [self._attributed(group) for group in groups]
        first = found[0]
        heads, writes = _top(first)
        return SuffixAnalysis(
            model=self.chat.identity,
            prompts={label: each.identity() for label, each in self.prompts.items()},
            judge=judge_identity(self.judge),
            rendering=rendering(self.chat),
            source=self.directions.source,
            layer=self.directions.refusal.layer,
            position=self.directions.refusal.position,
            suffixes=texts,
            search=search,
            groups=tuple(
                self._record(group, answers[index], found[index], answers[0], heads, writes)
                for index, group in enumerate(groups)
            ),
            parts=tuple(_part(part) for part in first.parts),
            top_heads=heads,
            writes=writes,
            unexplained=max(each.unexplained for each in found),
            whole=first.whole,
            attention_read=first.attention is not None,
            provenance=provenance(self.chat, seed=self.settings.seed),
        )

    def _split(self, label: PromptLabel) -> tuple[Prompt, ...]:
        chosen = sorted(self.prompts[label].split("test"), key=lambda prompt: prompt.sha256)[: self.settings.n_prompts]
        if not chosen:
            raise InputError(f"there are no {label} test prompts; give more prompts, or name their splits.")
        return tuple(chosen)

    def _suffixes(self, given: Sequence[str]) -> tuple[tuple[SuffixText, ...], SuffixSearch | None]:
        search, found = None, []
        if self.settings.search is not None:
            train = sorted(self.prompts["harmful"].split("train"), key=lambda prompt: prompt.sha256)
            text, search = search_suffix(
                self.chat,
                [prompt.text for prompt in train],
                self.directions.tokens,
                settings=self.settings.search,
                progress=self.progress,
            )
            found = [text]
        probe = self._split("harmful")[0].text
        texts = []
        for number, text in enumerate((*given, *found), start=1):
            name = f"suffix-{number}"
            plain, longer = self.chat.encode([probe, WithSuffix(name, text).after(probe)])
            origin: Any = "given" if number <= len(given) else "searched"
            texts.append(SuffixText(name=name, text=text, origin=origin, n_tokens=max(1, len(longer) - len(plain))))
        return tuple(texts), search

    def _groups(self, texts: Sequence[SuffixText]) -> list[_Group]:
        harmful, harmless = self._split("harmful"), self._split("harmless")
        groups = [self._group("harmful", "harmful", "harmful prompts as they are", harmful, None)]
        for number, text in enumerate(texts, start=1):
            # The name says what the condition is; the length makes it another one.
            control = Condition(f"suffix-{text.n_tokens}", "suffix", suffix_tokens=text.n_tokens)
            words = f"harmful prompts, {text.n_tokens} random tokens after each"
            groups.append(self._group(f"random-{number}", "random", words, harmful, control, text.name))
            words = f"harmful prompts, {text.name} after each"
            groups.append(self._group(text.name, "suffix", words, harmful, WithSuffix(text.name, text.text), text.name))
        groups.append(self._group("harmless", "harmless", "harmless prompts as they are", harmless, None))
        return groups

    def _group(
        self,
        name: str,
        role: SuffixRole,
        what: str,
        prompts: Sequence[Prompt],
        asking: Condition | WithSuffix | None,
        suffix: str | None = None,
    ) -> _Group:
        texts = [prompt.text for prompt in prompts]
        requests = None if asking is None else asking.requests(self.chat, texts)
        sequences = self.chat.encode(texts) if requests is None else [tokens for tokens, _ in requests]
        return _Group(name, role, what, prompts, asking, sequences, suffix)

    def _answers(self, runner: Runner, group: _Group) -> list[CompletionRecord]:
        return runner.complete(
            group.prompts,
            condition=group.name,
            split="test",
            asking=group.asking,
            keep_text=False,
            until_settled=True,
        )

    def _attributed(self, group: _Group) -> Attribution:
        plain = self.chat.encode([prompt.text for prompt in group.prompts])
        return attribute(
            self.chat,
            group.sequences,
            self.directions.refusal.vector,
            groups=[token_groups(self.chat, *pair) for pair in zip(plain, group.sequences, strict=True)],
            batch_size=self.settings.batch_size,
            advance=self.progress.advance,
        )

    def _means(self, values: Tensor) -> tuple[Mean, ...]:
        return bootstrap_means(values, seed=self.settings.seed)

    def _record(
        self,
        group: _Group,
        answers: Sequence[CompletionRecord],
        found: Attribution,
        plain: Sequence[CompletionRecord],
        heads: Sequence[int],
        writes: Sequence[int],
    ) -> SuffixGroup:
        scores = scores_after(self.chat, group.sequences, self.directions.tokens, batch_size=self.settings.batch_size)
        compared = None
        if group.suffix is not None:
            compared = paired_comparison([is_refusal(each) for each in plain], [is_refusal(each) for each in answers])
            compared = compared.model_copy(update={"judge": judge_identity(self.judge)})
        return SuffixGroup(
            name=group.name,
            role=group.role,
            what=group.what,
            n=len(group.prompts),
            suffix=group.suffix,
            refusal_rate=refusal_rate(answers),
            comparison=compared,
            refusal_score=self._means(scores[:, None])[0],
            projection=self._means(found.projections),
            cosine=self._means(found.cosines),
            parts=tuple(found.values.mean(0).tolist()),
            top_heads=self._means(found.values[:, list(heads)]),
            writes=self._means(found.values[:, list(writes)]),
            attention=self._attention(found, heads),
        )

    def _attention(self, found: Attribution, heads: Sequence[int]) -> tuple[AttentionShare, ...]:
        if found.attention is None:
            return ()
        rows = {place: row for row, place in enumerate(found.heads)}
        shares = []
        for index in heads:
            block, head = found.parts[index].block or 0, found.parts[index].head or 0
            mass = torch.zeros(len(found.attention), 3, dtype=torch.float64)  # a plain prompt has no suffix group
            mass[:, : found.attention.shape[-1]] = found.attention[:, rows[block, head]]
            means = self._means(mass)
            shares.append(AttentionShare(block=block, head=head, instruction=means[INSTRUCTION], suffix=means[SUFFIX]))
        return tuple(shares)


def _top(found: Attribution) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The heads that add most to the projection of plain harmful prompts, and the writes that weigh most in it."""
    means = found.values.mean(0).tolist()
    heads = [index for index, part in enumerate(found.parts) if part.kind == "head"]
    writes = [index for index, part in enumerate(found.parts) if part.kind == "write"]
    heads.sort(key=lambda index: -means[index])
    writes.sort(key=lambda index: -abs(means[index]))
    return tuple(heads[:TOP_HEADS]), tuple(sorted(writes[:TOP_WRITES]))


def _part(part: Part) -> AttributedPart:
    return AttributedPart(kind=part.kind, block=part.block, module=part.module, head=part.head)
