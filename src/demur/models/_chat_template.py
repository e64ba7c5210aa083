"""One renderer for everything: the tokenizer's own chat template, at most one BOS, no added special tokens.

Knows nothing about models or layers. Positions are computed from renderings, never typed in.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from demur.errors import ModelError

# Instructions that end and begin differently in every way that a tokenizer could merge with the template's text:
# a letter, a digit, punctuation, a closing bracket, a quote, a non-Latin letter.
_PROBES = ("List three rivers", "What is 17 + 25", "Is it raining?", "Name (one)", 'Say "yes"', "Wie spät ist es è")
_SENTINEL = "zqxjkvbp"
_OPENS = re.compile(
    r"<(?:\w+:)?(?:think(?:ing)?|reasoning)>|\[THINK\]|<\|channel\|?>(?:analysis|thought)|<\|START_THINKING\|>|◁think▷"
)
_CLOSES = re.compile(
    r"</(?:\w+:)?(?:think(?:ing)?|reasoning)>|\[/THINK\]|<\|channel\|>final|<channel\|>|<\|END_THINKING\|>|◁/think▷"
)


_KEPT = 2**13
"""Most prompts whose token ids are kept."""


@dataclass(frozen=True)
class ChatTemplate:
    """Renders a user prompt as the model expects it, up to and including the generation prompt.

    Attributes:
        tokenizer: a transformers tokenizer with a chat template.
        system: the system prompt, or None for none. Recorded with every measurement.
        options: further variables of the template, such as `enable_thinking`.
        response_prefix: text put after the generation prompt, such as a closed thinking block; the model goes on from
            there, and it is part of what is measured.
    """

    tokenizer: Any
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    response_prefix: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    """Turns before the prompt, as (role, text)."""
    _encoded: "dict[tuple[str, str], array[int]]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the tokenizer has no chat template, so it is not a chat model's (or the template file is missing from "
                "its folder). Use the chat (instruct) version of the model, or save a `chat_template` with it."
            )
        ids = self.encode(_PROBES[0])
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
            raise ModelError(
                f"the chat template renders the beginning-of-sequence token {self.tokenizer.bos_token!r} twice; "
                "remove one from the template."
            )
        if self.system and self._drops_system():
            raise ModelError(
                "the chat template drops the system prompt, so the model would never read it. Try without --system."
            )

    def unused_options(self) -> tuple[str, ...]:
        """Options that the template does not name: they change nothing, and would be recorded as if they did."""
        text = str(self.tokenizer.chat_template)
        return tuple(name for name in self.options if not re.search(rf"\b{re.escape(name)}\b", text))

    def render(self, prompt: str) -> str:
        """The text the model reads for one user prompt, as the template puts it (some strip or move it).

        Raises:
            ModelError: the template refuses the messages.
        """
        try:
            return self._apply(prompt, self.system, in_parts=self._in_parts) + self.response_prefix
        except ModelError as error:
            raise ModelError(f"{error}{self._hint()}") from error

    def _apply(self, prompt: str, system: str | None, *, in_parts: bool) -> str:
        first = () if system is None else (("system", system),)
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
            for role, text in (*first, *self.earlier, ("user", prompt))
        ]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.options
            )
        except Exception as error:
            # Templates raise whatever they like through jinja's raise_exception; the text is all that helps.
            raise ModelError(f"the chat template does not accept the messages: {str(error).rstrip('.')}.") from error
        return str(text)

    def _shows_prompt(self, system: str | None, *, in_parts: bool) -> bool:
        try:
            return _SENTINEL in self._apply(_SENTINEL, system, in_parts=in_parts)
        except ModelError:
            return False

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads a message as a list of parts only, as those of many vision-language models do."""
        return not self._shows_prompt(self.system, in_parts=False) and self._shows_prompt(self.system, in_parts=True)

    def _hint(self) -> str:
        other = "x" if self.system is None else None
        if not (self._shows_prompt(other, in_parts=False) or self._shows_prompt(other, in_parts=True)):
            return ""
        return " It needs a system prompt: give one with --system." if other else " Try without --system."

    def _drops_system(self) -> bool:
        try:
            return _SENTINEL not in self._apply(_PROBES[0], _SENTINEL, in_parts=self._in_parts)
        except ModelError:
            return False  # it takes the system prompt that was given, only not ours

    def encode(self, prompt: str) -> list[int]:
        """Token ids of the rendered prompt; the template alone decides about special tokens.

        They are kept: a calibration asks for the same prompts again and again.
        """
        key = (str(self.tokenizer.chat_template), prompt)
        if key not in self._encoded:
            if len(self._encoded) >= _KEPT:
                self._encoded.clear()
            ids = self.tokenizer(self.render(prompt), add_special_tokens=False)["input_ids"]
            self._encoded[key] = array("l", ids)
        return self._encoded[key].tolist()

    def bos_tokens(self) -> int:
        """How many beginning-of-sequence tokens a rendering starts with: 0 or 1."""
        return int(self.encode(_PROBES[0])[:1] == [self.tokenizer.bos_token_id])

    def takes_system_role(self) -> bool:
        """Whether the template shows a system message to the model."""
        try:
            return _SENTINEL in self._apply(_PROBES[0], _SENTINEL, in_parts=self._in_parts)
        except ModelError:
            return False

    def opens_thinking(self) -> bool:
        """Whether the rendering ends inside a thinking block, so that the model's first tokens are thoughts."""
        tail = self.render(_SENTINEL).rpartition(_SENTINEL)[2]
        opened = max((match.end() for match in _OPENS.finditer(tail)), default=-1)
        return opened > max((match.end() for match in _CLOSES.finditer(tail)), default=-1)

    def post_instruction_tokens(self) -> tuple[int, ...]:
        """Token ids that follow the instruction in every rendering (Arditi et al. section 2.3, "post-instruction").

        Found as the longest common suffix of the renderings of instructions that share no ending, so that a token in
        which the tokenizer merges the end of the instruction with the template is not counted.

        Raises:
            ModelError: the renderings share no suffix, or do not contain the instruction.
        """
        if _SENTINEL not in self.render(_SENTINEL):
            raise ModelError("the chat template drops the user's text; no prompt can be measured with it.")
        encoded = [self.encode(probe) for probe in _PROBES]
        suffix = common_suffix(encoded)
        if not suffix:
            raise ModelError(
                "the renderings of different prompts have no common ending, so there is no post-instruction position; "
                "does the template add a generation prompt? If it adds none, give its text with --response-prefix."
            )
        return tuple(suffix)

    def post_instruction_texts(self) -> tuple[str, ...]:
        """The text of each post-instruction token, in order, as it reads where it stands."""
        suffix = self.post_instruction_tokens()
        ids = self.encode(_PROBES[0])
        texts = []
        for end in range(len(ids) - len(suffix) + 1, len(ids) + 1):
            # A token decoded alone loses its leading space in sentencepiece tokenizers.
            before, after = self._decode(ids[: end - 1]), self._decode(ids[:end])
            texts.append(after[len(before) :] if after.startswith(before) else self._decode(ids[end - 1 : end]))
        return tuple(texts)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def common_suffix(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The longest list of tokens with which all sequences end."""
    suffix: list[int] = []
    for tokens in zip(*(reversed(sequence) for sequence in sequences), strict=False):
        if len(set(tokens)) > 1:
            break
        suffix.append(tokens[0])
    return suffix[::-1]
