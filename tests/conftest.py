"""What the tests of models and of everything above them share."""

import os
from functools import cache

import pytest

# Before torch is imported: tiny models are all overhead, and threads that wait for each other make it far more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A proof from an earlier test run would be found in the user's cache; tests of the cache set a folder of their own.
os.environ["DEMUR_CACHE"] = ""


@pytest.fixture(scope="session")
def tiny():
    """Tiny random chat models, built once per family and options; whoever changes one builds his own."""
    from demur.testing import tiny_chat_model

    return cache(tiny_chat_model)
