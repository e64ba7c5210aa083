"""A cache for any judge: what it has judged once is not put to it again, whatever ends the process."""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing

from demur.evaluation._judge import Judge, Judgement
from demur.records import JsonLines, JudgeCost, JudgementRecord, canonical_json


class CachedJudge:
    """Wraps a judge. Judgements are appended to `store` as they come; hashes stand for the texts.

    A judge with `judge_stream` (a generator of (index, judgement)) is kept answer by answer; any other, batch by batch.

    Args:
        judge: gives the judgements that are not in the store yet; `id` and `version` are its own.
        store: where judgements are kept; several judges may share one file.
        batch_size: answers put to a judge without `judge_stream` at a time.

    Raises:
        RunFolderError: the store cannot be read.
    """

    def __init__(self, judge: Judge, store: JsonLines, *, batch_size: int = 64) -> None:
        self._judge = judge
        self._store = store
        self._batch_size = batch_size
        self._known = {record.key: record for record in store.read(JudgementRecord)}

    @property
    def id(self) -> str:
        """Of the judge inside."""
        return self._judge.id

    @property
    def version(self) -> str:
        """Of the judge inside."""
        return self._judge.version

    @property
    def judges_refusal(self) -> bool:
        """Whether the judge inside judges refusal."""
        return bool(getattr(self._judge, "judges_refusal", True))

    @property
    def judges_harm(self) -> bool:
        """Whether the judge inside judges harm."""
        return bool(getattr(self._judge, "judges_harm", False))

    @property
    def cost(self) -> JudgeCost | None:
        """Of the judge inside; None where it counts none."""
        cost: JudgeCost | None = getattr(self._judge, "cost", None)
        return cost

    def judge_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement]:
        """Judge (prompt, completion) pairs; one judgement for each, in their order."""
        keys = [self._key(*pair) for pair in pairs]
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        names = list(missing)
        with closing(self._judged(list(missing.values()))) as groups:  # so that a failed write ends the asking
            for judged in groups:
                self._keep([_record(names[index], judgement) for index, judgement in judged])
        return [_judgement(self._known[key]) for key in keys]

    def _judged(self, pairs: Sequence[tuple[str, str]]) -> Generator[list[tuple[int, Judgement]], None, None]:
        """(index, judgement) in groups that are kept together."""
        stream = getattr(self._judge, "judge_stream", None)
        if stream is not None:
            with closing(stream(pairs)) as answers:
                for one in answers:
                    yield [one]
            return
        for start in range(0, len(pairs), self._batch_size):
            batch = pairs[start : start + self._batch_size]
            yield list(enumerate(self._judge.judge_batch(batch), start=start))

    def _keep(self, records: Iterable[JudgementRecord]) -> None:
        fresh = list(records)
        self._store.append(fresh)
        self._known.update((record.key, record) for record in fresh)

    def _key(self, prompt: str, completion: str) -> str:
        parts = [self.id, self.version, prompt, completion]
        # A completion may hold half a surrogate pair, which has no UTF-8.
        return hashlib.sha256(canonical_json(parts).encode(errors="surrogatepass")).hexdigest()


def _record(key: str, judged: Judgement) -> JudgementRecord:
    return JudgementRecord(
        key=key, verdict=judged.verdict, score=judged.score, degenerate=judged.degenerate, harm=judged.harm
    )


def _judgement(record: JudgementRecord) -> Judgement:
    return Judgement(verdict=record.verdict, score=record.score, degenerate=record.degenerate, harm=record.harm)
