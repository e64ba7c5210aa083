"""Responses of one state of a model, on disk.

The harness has a cache of its own; its keys do not hold the model, so a changed model would be given the answers of the
base model, and its values are pickles. Here one file belongs to one state of a model.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demur.errors import ModelError
from demur.records import HarnessResponse, JsonLines, canonical_json

_TOGETHER = 64
"""Responses that are written with one fsync."""

Response = str | float | tuple[float, bool]


class ResponseCache:
    """Responses by the hash of their request.

    Args:
        folder: where files are kept; None keeps responses in memory for the time of one run.
        state: everything that the responses depend on besides the request. Its hash is the name of the file.
    """

    def __init__(self, folder: Path | str | None, state: Mapping[str, Any]) -> None:
        name = hashlib.sha256(canonical_json(dict(state)).encode()).hexdigest()
        self._file = None if folder is None else JsonLines(Path(folder) / f"{name}.jsonl")
        self._waiting: list[HarnessResponse] = []
        self._known: dict[str, Response] = {}
        if self._file is not None:
            self._known = {line.key: _value(line) for line in self._file.read(HarnessResponse)}

    def get(self, key: str) -> Response | None:
        """The response to a request, if it is known."""
        return self._known.get(key)

    def put(self, key: str, value: Response) -> None:
        """Keep a response.

        Raises:
            ModelError: it is not a number, which the harness would count as a wrong answer.
        """
        number = 0.0 if isinstance(value, str) else value if isinstance(value, float) else value[0]
        if math.isnan(number):
            raise ModelError(
                "the model's log-likelihoods are NaN. Half precision overflows in some models: load it with --dtype "
                "bfloat16 or --dtype float32."
            )
        if key in self._known:
            return
        self._known[key] = value
        if self._file is not None and not math.isinf(number):  # JSON has no infinity
            self._waiting.append(_line(key, value))
            if len(self._waiting) >= _TOGETHER:
                self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._file is not None and self._waiting:
            self._file.append(self._waiting)
            self._waiting = []


def _line(key: str, value: Response) -> HarnessResponse:
    if isinstance(value, str):
        return HarnessResponse(key=key, text=value)
    if isinstance(value, float):
        return HarnessResponse(key=key, log_likelihood=value)
    return HarnessResponse(key=key, log_likelihood=value[0], is_greedy=value[1])


def _value(line: HarnessResponse) -> Response:
    if line.log_likelihood is None:
        return line.text or ""
    return line.log_likelihood if line.is_greedy is None else (line.log_likelihood, line.is_greedy)
