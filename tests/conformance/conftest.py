"""The whole sweep over families runs only when asked for: pytest tests/conformance -m conformance."""


def pytest_configure(config):
    config.addinivalue_line("markers", "conformance: the whole sweep over families (minutes)")


def pytest_collection_modifyitems(config, items):
    if "conformance" in (config.getoption("-m") or ""):
        return
    slow = [item for item in items if item.get_closest_marker("conformance")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
