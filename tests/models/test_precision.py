"""Half precision on a CPU: computed in float32 exactly where the CPU cannot multiply it and nobody chose it."""

from types import SimpleNamespace

import pytest
import torch

from demur.models import _precision, load_chat_model
from demur.models._precision import in_native_precision
from demur.testing import TOY_MODEL


class Half(torch.nn.Module):
    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4).to(dtype)
        self.config = SimpleNamespace(dtype=dtype)


@pytest.fixture
def converting(monkeypatch):
    """A CPU without instructions for half precision, with a gigabyte of memory."""
    monkeypatch.setattr(_precision, "_native_half", lambda: False)
    monkeypatch.setattr(_precision, "_memory", lambda: 2**30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_instructions_for_it_half_precision_is_computed_in_float32(converting, dtype):
    model = Half(dtype)
    before = model.linear.weight.detach().clone()
    found = in_native_precision(model)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert found.config.dtype == torch.float32
    assert torch.equal(found.linear.weight.to(dtype), before)  # float32 holds every value


def test_with_instructions_for_it_half_precision_stays(converting, monkeypatch):
    monkeypatch.setattr(_precision, "_native_half", lambda: True)
    assert in_native_precision(Half()).linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("memory", "dtype"), [(4 * 20 * 2, torch.float32), (4 * 20 * 2 - 1, torch.bfloat16)])
def test_what_does_not_fit_twice_into_memory_stays(converting, monkeypatch, memory, dtype):
    """Twenty parameters in float32 are 80 bytes, half of 160."""
    monkeypatch.setattr(_precision, "_memory", lambda: memory)
    assert in_native_precision(Half()).linear.weight.dtype == dtype


def test_where_memory_is_not_known_it_stays(converting, monkeypatch):
    monkeypatch.setattr(_precision, "_memory", lambda: 0)
    assert in_native_precision(Half()).linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_left_alone(converting, dtype):
    assert in_native_precision(Half(dtype)).linear.weight.dtype == dtype


def test_a_model_of_two_precisions_is_left_alone(converting):
    model = Half()
    model.norm = torch.nn.LayerNorm(4)
    assert in_native_precision(model).linear.weight.dtype == torch.bfloat16


def test_packed_weights_are_left_alone(converting):
    model = Half()
    model.hf_quantizer = object()
    assert in_native_precision(model).linear.weight.dtype == torch.bfloat16


def test_a_model_on_another_device_is_left_alone(converting):
    assert in_native_precision(Half().to("meta")).linear.weight.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory):
    """The toy model in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("half") / "toy"
    AutoModelForCausalLM.from_pretrained(TOY_MODEL, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOY_MODEL).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("native", "asked", "expected"),
    [
        (False, "auto", torch.float32),
        (True, "auto", torch.bfloat16),
        (False, "bfloat16", torch.bfloat16),
    ],
)
def test_a_precision_that_is_asked_for_is_given(half_folder, monkeypatch, native, asked, expected):
    monkeypatch.setattr(_precision, "_native_half", lambda: native)
    chat = load_chat_model(str(half_folder), dtype=asked, device="cpu")
    assert chat.layout.dtype == expected
    assert {parameter.dtype for parameter in chat.module.parameters()} == {expected}
