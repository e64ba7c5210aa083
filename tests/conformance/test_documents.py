"""The README says what the generated table says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_states_the_counts_of_the_table():
    table = (ROOT / "docs" / "architectures.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    proved, exact = (
        int(re.search(pattern, table)[1]) for pattern in (r"\*\*(\d+) families proved", r"In \*\*(\d+)\*\*")
    )
    refused = int(re.search(r"(\d+) are refused by name", table)[1])
    assert proved >= 90
    assert exact >= 75
    assert f"{proved} families are proved, {exact} of them with hooks" in readme
    assert f"and {refused} are refused by name" in readme
