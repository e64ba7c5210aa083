"""The verdict on folded weights is about the edit, not about the rounding of the dtype, and names its cause."""

import pytest
import torch

from demur.interventions import inspect_model, judge_exactness
from demur.records import EquivalenceRecord


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("family", "verdict"), [("llama", "exact"), ("gpt2", "exact_after_untying")])
def test_a_plain_model_is_exact_in_every_dtype(family, verdict, dtype, tiny):
    found = inspect_model(tiny(family, dtype=dtype))
    assert found.verdict == verdict, found.reason
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.equivalence.logit_difference < 1e-4 < found.equivalence.logit_change
    assert found.equivalence.same_tokens == found.equivalence.tokens == 20
    assert found.probe.decomposition_error < 1e-5
    assert found.probe.stream_dtype == ("float64" if dtype == torch.float64 else "float32")


def test_a_norm_after_the_write_is_the_cause_in_bfloat16_too(tiny):
    found = inspect_model(tiny("gemma2", dtype=torch.bfloat16))
    assert found.verdict == "removed_not_identical"
    assert "a norm after the write changes the rest" in found.reason


def test_any_other_difference_is_given_a_place(tiny):
    """Numbers as of a model whose streams agree and whose logits do not."""
    chat = tiny("llama", dtype=torch.bfloat16)
    different = EquivalenceRecord(logit_difference=0.9, logit_change=1.0, same_tokens=3, tokens=20)
    verdict, reason = judge_exactness(chat, different)
    assert verdict == "removed_not_identical"
    assert "first differ after the last block, in the output head" in reason
