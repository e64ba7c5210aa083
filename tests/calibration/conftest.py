import pytest


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """One calibration of the toy model for all tests; nobody writes into its folder."""
    from toy_runs import SMALL, ToyRun, small_sets

    from demur.calibration import calibrate
    from demur.testing import load_toy_chat_model

    chat, prompts = load_toy_chat_model(), small_sets()
    before = {name: tensor.clone() for name, tensor in chat.module.state_dict().items()}
    folder = tmp_path_factory.mktemp("toy") / "run"
    summary = calibrate(chat, prompts, out=folder, settings=SMALL)
    return ToyRun(chat, prompts, SMALL, folder, summary, before)
