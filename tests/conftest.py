"""What the tests of models and of everything above them share."""

from functools import cache

import pytest


@pytest.fixture(scope="session")
def tiny():
    """Tiny random chat models, built once per family and options; whoever changes one builds his own."""
    from demur.testing import tiny_chat_model

    return cache(tiny_chat_model)
