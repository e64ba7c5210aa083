import pytest


@pytest.fixture(scope="session", autouse=True)
def _offline(tmp_path_factory):
    """No hub, and the caches of the data library and of inspect_ai in a folder of the test run."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        patch.setenv("INSPECT_CACHE_DIR", str(folder / "inspect"))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("XDG_DATA_HOME", str(folder))
        # It runs pip and a dozen other programs for a description of the machine that is not used here.
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)
        yield


@pytest.fixture(scope="session")
def toy():
    """The toy model, which no test may leave changed."""
    from demur.testing import load_toy_chat_model

    return load_toy_chat_model()


@pytest.fixture(scope="session")
def damage(toy):
    """An ablation of so many random directions that answers change."""
    import torch

    from demur.interventions import DirectionalAblation

    generator = torch.Generator().manual_seed(0)
    return DirectionalAblation(torch.randn(118, toy.layout.d_model, generator=generator, dtype=torch.float64))
