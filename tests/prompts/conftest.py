"""What the tests of prompts share: files in a fresh folder, and the message of an expected failure."""

from collections.abc import Callable
from pathlib import Path

import pytest

from demur.errors import PromptError
from demur.prompts import load_prompts


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file and return its path as a user would type it."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


@pytest.fixture
def refusal() -> Callable[..., str]:
    """The message with which load_prompts refuses a source."""

    def message(source: str, label: str = "harmless", **options: int) -> str:
        with pytest.raises(PromptError) as caught:
            load_prompts(source, label=label, **options)
        return str(caught.value)

    return message
