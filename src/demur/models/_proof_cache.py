"""Proofs of layouts on disk, so that the forward passes of a proof run once for the same weights.

Only the numbers are kept. Which parameters write to the stream is never read from disk: it is found anew from the model
in memory at every load, and the key holds what was found, beside a hash of all weights. An edited cache can so at most
repeat numbers for the very list that demur finds by itself; it cannot take a writer off that list.
"""

import hashlib
import json
import math
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch

from demur.models._layout import Layout
from demur.models._probe import ProbeResult, tolerance_of
from demur.models._widened import widened_dtype

_FORMAT = "demur.proof/1"


def cache_folder() -> Path | None:
    """Where proofs are kept: $DEMUR_CACHE, or `demur` in $XDG_CACHE_HOME or ~/.cache; None if DEMUR_CACHE is empty."""
    own = os.environ.get("DEMUR_CACHE")
    if own is not None:
        return Path(own) / "proofs" if own else None
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "demur" / "proofs"
    with suppress(RuntimeError):  # no home folder
        return Path.home() / ".cache" / "demur" / "proofs"
    return None


def proof_key(model: Any, layout: Layout, content_hash: str) -> str:
    """sha256 of all that a proof depends on: class, versions, dtypes, the layout as just found, weights and config."""
    writers = [
        (each.parameter, each.axis, each.block, [(step.kind, _digest(step.vector)) for step in each.steps])
        for each in layout.writers
    ]
    sites = [(each.module, each.block) for each in layout.sites]
    parts = [
        _FORMAT,
        type(model).__module__,
        type(model).__qualname__,
        *(version(name) for name in ("demur", "transformers", "torch")),
        str(layout.dtype),
        layout.blocks,
        layout.d_model,
        layout.entry_sites,
        layout.packed,
        writers,
        sites,
        content_hash,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_proof(key: str, layout: Layout) -> ProbeResult | None:
    """The proof stored under `key`; None where there is none, or none that would prove anything."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        found = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if found["format"] != _FORMAT or found["key"] != key:
            return None
        dtype = getattr(torch, found["dtype"])
        if dtype not in (layout.dtype, widened_dtype(layout.dtype)):
            return None
        # The tolerance is computed, not read, and the numbers are held to it again.
        tolerance = tolerance_of(dtype, len(layout.blocks))
        per_block = tuple(float(value) for value in found["per_block"])
        silent, baseline = float(found["silent_difference"]), float(found["baseline"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if len(per_block) != len(layout.blocks) + 1 or not math.isfinite(baseline):
        return None
    if not all(0 <= value <= tolerance for value in (*per_block, silent)):
        return None
    return ProbeResult(max(per_block), baseline, silent, tolerance, per_block, dtype)


def write_proof(key: str, result: ProbeResult) -> None:
    """Keep a proof; a folder that cannot be written to is no error."""
    folder = cache_folder()
    if folder is None:
        return
    record = {
        "format": _FORMAT,
        "key": key,
        "dtype": str(result.dtype).removeprefix("torch."),
        "per_block": result.per_block,
        "silent_difference": result.silent_difference,
        "baseline": result.baseline,
    }
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8") as file:
            try:
                json.dump(record, file)
                file.close()
                Path(file.name).replace(folder / f"{key}.json")
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _digest(vector: torch.Tensor | None) -> str | None:
    if vector is None:
        return None
    return hashlib.sha256(vector.detach().cpu().to(torch.float64).contiguous().numpy().tobytes()).hexdigest()
