"""A search for a suffix that lowers the refusal score, for the toy model only.

Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043) with the refusal score of Arditi et al. as its loss: at
each step the gradient by the one-hot tokens proposes replacements of single tokens, some of them are tried, and the
best one stays. It is here so that the analysis of suffixes has one to look at; demur ships no attack on real models,
and the search refuses them.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from demur.assurance._suffix_prompts import WithSuffix, template_ends
from demur.errors import InputError, ModelError
from demur.models import ChatModel
from demur.records import SuffixSearch, SuffixSearchStep
from demur.types import Progress, SilentProgress

TOY_WEIGHTS = "44bcfe90147101c773e061d1e9cd0771d27004ab1738d43dfd4053ff9cd91b26"
"""sha256 of the weights of the toy model that ships with demur, as float32."""
TINY = 100_000
"""Models with fewer parameters are for tests of plumbing: none of them can hold a conversation."""


@dataclass(frozen=True)
class SuffixSearchSettings:
    """How long and how wide the search is."""

    n_tokens: int = 12
    """Length of the suffix."""
    n_prompts: int = 12
    """Harmful train prompts whose mean score is lowered."""
    steps: int = 16
    candidates: int = 32
    """Suffixes that are tried at each step."""
    best_tokens: int = 32
    """Replacements that are considered at each place, by gradient."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value < 1:
                raise InputError(f"{name} of a suffix search is a number of at least 1; got {value}.")


def search_suffix(
    chat: ChatModel,
    prompts: Sequence[str],
    refusal_tokens: Sequence[int],
    *,
    settings: SuffixSearchSettings | None = None,
    progress: Progress | None = None,
) -> tuple[str, SuffixSearch]:
    """Find a suffix that lowers the mean refusal score of the prompts that it is searched on.

    Args:
        chat: the toy model that ships with demur, or a tiny random one of `demur.testing`.
        prompts: harmful train prompts; the first `n_prompts` are used.
        refusal_tokens: ids of the tokens with which the model begins refusals.
        settings: of the search.
        progress: is told what is being done.

    Returns:
        The suffix, and how it was found.

    Raises:
        ModelError: the model is another one.
        InputError: there are no prompts.
    """
    require_toy(chat)
    settings, progress = settings or SuffixSearchSettings(), progress or SilentProgress()
    if not prompts:
        raise InputError("a suffix is searched on harmful train prompts, of which there are none.")
    search = _Search(chat, list(prompts)[: settings.n_prompts], list(refusal_tokens), settings)
    progress.start("searching a suffix", settings.steps)
    curve = [SuffixSearchStep(step=0, score=search.score)]
    for step in range(1, settings.steps + 1):
        search.step()
        curve.append(SuffixSearchStep(step=step, score=search.score))
        progress.note(f"refusal score {search.score:+.1f}")
        progress.advance()
    return search.text, SuffixSearch(
        n_prompts=len(search.prompts),
        n_tokens=len(search.suffix),
        steps=settings.steps,
        candidates=settings.candidates,
        seed=settings.seed,
        curve=tuple(curve),
    )


def require_toy(chat: ChatModel) -> None:
    """Refuse every model that could be of use to an attacker.

    Raises:
        ModelError: the model is neither the toy that ships with demur nor tiny.
    """
    if sum(parameter.numel() for parameter in chat.module.parameters()) < TINY or weights_hash(chat) == TOY_WEIGHTS:
        return
    raise ModelError(
        f"{chat.name}: demur searches suffixes for the toy model that ships with it and for no other, since a suffix "
        "that was found is an attack. Give suffixes that you have with --suffix or --suffixes."
    )


def weights_hash(chat: ChatModel) -> str:
    """sha256 of all weights as float32, by name; other than a content hash the same under every transformers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(chat.module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Search:
    """One search: the suffix so far, the prompts around it, and its score."""

    def __init__(self, chat: ChatModel, prompts: list[str], tokens: list[int], settings: SuffixSearchSettings) -> None:
        self.chat = chat
        self.prompts = prompts
        self.tokens = torch.tensor(tokens, device=chat.device)
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.tail = template_ends(chat)[1]
        self.embedding = chat.model.get_input_embeddings()
        special = set(chat.tokenizer.all_special_ids)
        texts = [str(chat.tokenizer.decode([token])) for token in range(len(chat.tokenizer))]
        self.allowed = [
            token for token, text in enumerate(texts) if token not in special and text.strip() and text.isprintable()
        ]
        rows = self.embedding.weight.shape[0]
        self.forbidden = sorted(set(range(rows)) - set(self.allowed))
        self.suffix = self._first()
        self.heads = [self._head(prompt) for prompt in prompts]
        self.score = float(self._scores([self.suffix])[0])

    @property
    def text(self) -> str:
        """The suffix as text, as it stands after a space."""
        return self._text(self.suffix).removeprefix(" ")

    def step(self) -> None:
        """Try replacements of single tokens, and take the best one where it lowers the score."""
        gradient = self._gradient()
        gradient[:, self.forbidden] = torch.inf
        best = gradient.topk(self.settings.best_tokens, largest=False).indices.tolist()
        tried = {tuple(self.suffix)}
        candidates = []
        for _ in range(20 * self.settings.candidates):  # many do not survive their own text
            place = self.random.randrange(len(self.suffix))
            candidate = list(self.suffix)
            candidate[place] = self.random.choice(best[place])
            if tuple(candidate) not in tried and self._reads_back(candidate):
                candidates.append(candidate)
            tried.add(tuple(candidate))
            if len(candidates) == self.settings.candidates:
                break
        if not candidates:
            return
        scores = self._scores(candidates)
        if float(scores.min()) < self.score:
            self.suffix, self.score = candidates[int(scores.argmin())], float(scores.min())

    def _first(self) -> list[int]:
        """Random tokens whose text is read back as the same tokens."""
        for _ in range(1000):
            drawn = [self.random.choice(self.allowed) for _ in range(self.settings.n_tokens)]
            if self._reads_back(drawn):
                return drawn
        raise ModelError(f"{self.chat.name}: no random suffix of {self.settings.n_tokens} tokens can be read back.")

    def _text(self, suffix: Sequence[int]) -> str:
        return str(self.chat.tokenizer.decode(list(suffix)))

    def _reads_back(self, suffix: Sequence[int]) -> bool:
        """Whether the suffix, as text after a prompt, becomes these tokens again."""
        (tokens,) = self.chat.encode([WithSuffix("searched", self._text(suffix)).after(self.prompts[0])])
        return tokens[len(tokens) - self.tail - len(suffix) : len(tokens) - self.tail] == list(suffix)

    def _head(self, prompt: str) -> list[int]:
        """Token ids before the suffix."""
        (tokens,) = self.chat.encode([WithSuffix("searched", self.text).after(prompt)])
        self.end = tokens[len(tokens) - self.tail :]
        return tokens[: len(tokens) - self.tail - len(self.suffix)]

    def _by_length(self) -> Iterator[list[list[int]]]:
        """Prompts of equal length together, so that nothing is padded."""
        groups: dict[int, list[list[int]]] = defaultdict(list)
        for head in self.heads:
            groups[len(head)].append(head)
        yield from groups.values()

    def _odds(self, logits: Tensor) -> Tensor:
        """The refusal score without the published epsilon, which would make its gradient vanish."""
        refused = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        refused[self.tokens] = True
        exact = logits if logits.dtype == torch.float64 else logits.float()
        return exact[:, refused].logsumexp(-1) - exact[:, ~refused].logsumexp(-1)

    def _scores(self, suffixes: Sequence[Sequence[int]]) -> Tensor:
        """Mean refusal score over prompts, [suffix]."""
        total = torch.zeros(len(suffixes), dtype=torch.float64)
        for heads in self._by_length():
            rows = [[*head, *suffix, *self.end] for suffix in suffixes for head in heads]
            odds = torch.cat(
                [
                    self._odds(self.chat.next_token_logits(self.chat.batch(rows[start : start + 512])))
                    for start in range(0, len(rows), 512)
                ]
            )
            total += odds.view(len(suffixes), len(heads)).sum(1).to(total)
        return total / len(self.heads)

    def _gradient(self) -> Tensor:
        """Of the mean score by the one-hot tokens of the suffix, [place, vocabulary]."""
        weight = self.embedding.weight.detach()
        total = torch.zeros(len(self.suffix), weight.shape[0], device=weight.device, dtype=weight.dtype)
        for heads in self._by_length():
            rows = torch.tensor([[*head, *self.suffix, *self.end] for head in heads], device=self.chat.device)
            end = rows.shape[1] - self.tail
            caught: list[Tensor] = []

            def watch(_module: Any, _args: Any, output: Tensor, caught: list[Tensor] = caught) -> Tensor:
                caught.append(output.detach().requires_grad_())
                return caught[-1]

            handle = self.embedding.register_forward_hook(watch)
            try:
                with torch.enable_grad():
                    odds = self._odds(self.chat.model(input_ids=rows, use_cache=False).logits[:, -1])
                    (gradient,) = torch.autograd.grad(odds.sum(), caught[0])
            finally:
                handle.remove()
            total += gradient[:, end - len(self.suffix) : end].sum(0) @ weight.T
        return total / len(self.heads)
