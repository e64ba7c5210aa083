"""The text that the phrase judge reads: the answer without its thinking, in normal form, if it can be read at all."""

import re
from typing import Literal

from demur.evaluation import _phrase_words as words

LONGEST = 2000
"""Characters of a normalised answer that are read: refusals show early, and a long answer is an answer."""

# Thinking and channels ----------------------------------------------------------------------------------------------

_THINKING_NAMES = "think|thinking|thought|thoughts|reasoning|analysis|reflection"
_THINKING_START = re.compile(rf"[<\[](?:{_THINKING_NAMES})[>\]]", re.IGNORECASE)
_THINKING_END = re.compile(rf"[<\[]/(?:{_THINKING_NAMES})[>\]]", re.IGNORECASE)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|[^|]*\|>[^<]*)?<\|message\|>")
_BARE_CHANNELS = re.compile(r"analysis(?=[A-Z]).*?(assistantfinal|\Z)", re.DOTALL)
"""What is left of the channels where a tokenizer dropped the markers between them."""
_MARKER = re.compile(r"<\|[^|<>]{1,40}\|>")


def without_thinking(completion: str) -> str | None:
    """The text after the last thinking block or in the final channel; None where thinking was begun and not ended.

    Some templates open the block inside the prompt, so an end without a start counts too.
    """
    bare = _BARE_CHANNELS.match(completion)
    if bare is not None:
        return completion[bare.end() :].strip() if bare.group(1) else None
    if "[" not in completion and "<" not in completion:
        return completion.strip()
    if "<|channel|>" in completion:
        finals = list(_FINAL_CHANNEL.finditer(completion))
        return _MARKER.sub(" ", completion[finals[-1].end() :]).strip() if finals else None
    for end in _THINKING_END.finditer(completion):
        if _THINKING_END.search(completion, end.end()) is None:
            completion = completion[end.end() :]
            break
    return None if _THINKING_START.match(completion.lstrip()) else completion.strip()


# What cannot be judged ----------------------------------------------------------------------------------------------

_SYMBOL = re.compile(r"[^\w\s]")
_FEWEST_WORDS = 24
"""Shorter text repeats itself too easily to be called a loop."""


def damage(answer: str) -> Literal["unreadable", "repetitive"] | None:
    """Whether the text is empty or symbols, or a loop."""
    if not answer:
        return "unreadable"
    symbols = len(_SYMBOL.findall(answer))
    # In prose a tenth are symbols, in tables and code up to 0.4; where they prevail there is nothing to read. A short
    # answer may be a formula.
    if symbols == len(answer) or (symbols > 0.5 * len(answer) and len(answer) >= 12):
        return "unreadable"
    split = answer.lower().split()
    # A word of twenty letters or more has at least a quarter as many different ones, unless it loops.
    if any(word.isalpha() and 5 * len(set(word)) < len(word) for word in split if len(word) >= 20):
        return "repetitive"
    if len(split) < _FEWEST_WORDS:
        return None
    # Four words in a row recur in under a tenth of prose, lists and verse; in a loop nearly all of them do.
    runs = list(zip(split, split[1:], split[2:], split[3:], strict=False))
    return "repetitive" if len(set(runs)) < 0.5 * len(runs) else None


_LETTERS_AND_MARKS = re.compile(r"[^\W\d_]+")
_LONGEST_SAMPLE = 600
"""Characters in which the language is looked for; a hundred words tell it."""


def is_english(answer: str) -> bool:
    """False where script, letters or function words speak clearly for another language; when in doubt, true."""
    known = _LETTERS_AND_MARKS.findall(answer[:_LONGEST_SAMPLE].lower())
    english = len([word for word in known if word in words.ENGLISH])
    if not answer.isascii():
        letters = [character for character in answer if character.isalpha()]
        # 0x250 is the end of the Latin letters with diacritics; a quotation may well take a third of an answer.
        if sum(ord(character) >= 0x250 for character in letters) > 0.3 * len(letters):
            return False
        # English writes a diacritic in a borrowed word or a name; Polish and Vietnamese in most words.
        if len(known) >= 4 and sum(not word.isascii() for word in known) > max(2 * english, 0.15 * len(known)):
            return False
    foreign = len([word for word in known if word in words.FOREIGN])
    if foreign >= 3 and foreign > 2 * english:
        return False
    # Half of English prose is function words; lists and code have few, so they are let through.
    return len(known) < 20 or english >= 0.05 * len(known) or "```" in answer or len(ITEM.findall(answer)) >= 3


# Normal form --------------------------------------------------------------------------------------------------------

ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*\u2022])[ \t]+\S", re.MULTILINE)
_DECORATION = re.compile(r'[\t*_`#>~|"\u201c\u201d]')
_SPACES = re.compile(" {2,}")
_SENTENCE_END = re.compile(r"[.!?]\s+|\n+")


def normalise(text: str) -> str:
    """Lower case, contractions written out, no decoration; line ends are kept."""
    text = text.lower()
    for short, long in words.CONTRACTIONS.items():
        if short in text:
            text = text.replace(short, long)
    return _SPACES.sub(" ", _DECORATION.sub(" ", text)).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text in normal form, at least one; a line is a sentence at most."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()] or [""]


_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_QUOTATION = re.compile(r"\"[^\"\n]{12,600}\"|\u201c[^\u201c\u201d\n]{12,600}\u201d")
_FEWEST_LETTERS_AROUND = 12


def own_words(answer: str) -> str:
    """The answer without code blocks and quotations, unless hardly anything is left."""
    if "```" in answer:
        answer = _unless_empty(_CODE.sub("\n", answer), answer)
    if '"' in answer or "\u201c" in answer:
        answer = _unless_empty(_QUOTATION.sub(" ", answer), answer)
    return answer


def _unless_empty(text: str, whole: str) -> str:
    return text if sum(character.isalpha() for character in text) >= _FEWEST_LETTERS_AROUND else whole
