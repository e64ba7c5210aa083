"""Prompts with a suffix after them: how they are rendered, and which tokens are the prompt and which the suffix."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from demur.errors import InputError
from demur.models import ChatModel, Completion, Continuation
from demur.records import canonical_json

TEMPLATE, INSTRUCTION, SUFFIX = range(3)
"""Groups of tokens, by which attention is summed."""


@dataclass(frozen=True)
class WithSuffix:
    """The same text after every prompt. It is an `Asking`."""

    name: str
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(f"the suffix {self.name} is empty; give the text that follows each prompt.")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the text."""
        return hashlib.sha256(canonical_json({"suffix": self.text}).encode()).hexdigest()

    def after(self, prompt: str) -> str:
        """The prompt and the suffix, one space between them where the suffix begins with none."""
        return prompt + (self.text if self.text[:1].isspace() else f" {self.text}")

    def answers(self, chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Greedy answers to one batch of prompts with the suffix."""
        return chat.answers(chat.encode(map(self.after, prompts)), max_new_tokens=max_new_tokens)

    def requests(self, chat: ChatModel, prompts: Sequence[str]) -> list[tuple[list[int], Continuation]]:
        """Token ids of each prompt with the suffix."""
        return [(tokens, Continuation()) for tokens in chat.encode(map(self.after, prompts))]


def token_groups(chat: ChatModel, plain: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """The group of each token of a rendering: template, instruction or suffix.

    The suffix begins where the two renderings part. A tokenizer that merges the end of the prompt with the suffix puts
    that token into the suffix.

    Args:
        chat: the model, for its template.
        plain: token ids of the prompt alone.
        tokens: token ids of the same prompt with something after it, or `plain` again.
    """
    head, tail = template_ends(chat)
    inside = len(tokens) - tail
    body = plain[: len(plain) - tail]
    start = next((index for index, (one, two) in enumerate(zip(body, tokens, strict=False)) if one != two), len(body))
    start = min(max(start, head), inside)
    return [TEMPLATE] * head + [INSTRUCTION] * (start - head) + [SUFFIX] * (inside - start) + [TEMPLATE] * tail


def template_ends(chat: ChatModel) -> tuple[int, int]:
    """Tokens of the template before and after the instruction, the same in every rendering."""
    probes = chat.encode(("Name a river", "17 is odd?", '"Yes", he said', "è"))
    head = 0
    while len({tuple(tokens[: head + 1]) for tokens in probes}) == 1:
        head += 1
    return head, len(chat.template.post_instruction_tokens())
