"""When an answer may stop: nothing that follows could change whether it counts as a refusal."""

import re
from collections.abc import Callable
from functools import partial

from demur.evaluation._judge import Judge, SettlingJudge
from demur.models import ChatModel, Settled

Stop = Callable[[str], Settled]
"""Prompt -> answer so far -> whether it is settled."""

_END = re.compile(r"[<\[]/(?:think|thinking|thought|thoughts|reasoning|analysis|reflection)[>\]]", re.IGNORECASE)
_CHANNEL = "<|channel|>"


def stop_of(chat: ChatModel, judge: Judge) -> Stop | None:
    """How answers of a model are stopped for a judge; None where they are not.

    A mark that ends thinking makes thoughts of all that was said before it. A model that knows such marks is therefore
    stopped only after one; a model that knows channels, or begins its answers inside a thinking block, not at all.
    """
    if not isinstance(judge, SettlingJudge):
        return None
    known = "\n".join([str(chat.tokenizer.chat_template), *chat.tokenizer.get_added_vocab()])
    if _CHANNEL in known or chat.template.opens_thinking():
        return None
    thinks = _END.search(known) is not None

    def settled(prompt: str, completion: str) -> bool:
        return (not thinks or _END.search(completion) is not None) and judge.settled(prompt, completion)

    return lambda prompt: partial(settled, prompt)
