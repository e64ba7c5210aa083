"""What the tests of models and of everything above them share."""

import os
from functools import cache

import pytest

# Before torch is imported: tiny models are all overhead, and threads that wait for each other make it far more.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny():
    """Tiny random chat models, built once per family and options; whoever changes one builds his own."""
    from demur.testing import tiny_chat_model

    return cache(tiny_chat_model)
