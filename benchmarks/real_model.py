"""The whole main job on a real chat model, with the field's own prompts: `make real`.

Fetches the model, draws prompts, calibrates, exports where the gate passes, for every seed of the split, and writes
docs/real-models.md from the records. Needs about 40 minutes on two cores for each seed; goes on where it was cut.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from real_models import PACKAGES, FetchError, fetch
from real_prompts import write_sets

from demur.records import RunFolder, Summary
from demur.reports import render_markdown, run_document

SECTIONS = ("results", "threshold", "mechanism", "lambda", "pressure", "gate")
"""Sections of a report that the page takes over."""
_STAGE = re.compile(r"^(?P<when>\S+)  ended: (?P<task>.+?): (?P<text>.*)$")


@dataclass(frozen=True)
class Run:
    """One calibration that is done."""

    seed: int
    folder: Path
    summary: Summary
    code: int
    export: str
    """What became of the export, in a sentence."""


def main() -> None:
    """Run every seed, then write the page."""
    arguments = _arguments()
    try:
        model = arguments.model if arguments.model not in PACKAGES else str(fetch(arguments.model, arguments.work))
    except FetchError as error:
        sys.exit(str(error))
    sizes = dict(zip(("train", "validation", "test"), map(int, arguments.sizes.split(",")), strict=True))
    runs = []
    for seed in map(int, arguments.seeds.split(",")):
        sources = {label: f"demur:{label}" for label in ("harmful", "harmless", "borderline")}
        if arguments.prompts is not None:
            paths = write_sets(arguments.prompts, arguments.work / f"prompts-{seed}", sizes, seed=seed)
            sources = {label: str(path) for label, path in paths.items()}
        runs.append(_calibrated(model, sources, sizes, arguments.work / f"run-{seed}", seed))
    page = _page(arguments, runs, bare=_over_bare(model, runs[0]))
    arguments.page.write_text(page, encoding="utf-8")
    print(f"{arguments.page} written")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help="a fetched one, a folder or a hub id")
    parser.add_argument("--prompts", type=Path, help="folder of published files; the shipped English sets without one")
    parser.add_argument("--sizes", default="128,96,200", help="train, validation and test prompts of each set")
    parser.add_argument("--seeds", default="0,1", help="seeds of the split")
    parser.add_argument("--work", type=Path, default=Path("demur-runs/real"), help="model, prompts and run folders")
    parser.add_argument("--page", type=Path, default=Path("docs/real-models.md"))
    return parser.parse_args()


def _calibrated(model: str, sources: dict[str, str], sizes: dict[str, int], folder: Path, seed: int) -> Run:
    command = [sys.executable, "-m", "demur", "calibrate", model, "--out", str(folder), "--seed", str(seed)]
    command += ["--n-train", str(sizes["train"]), "--n-validation", str(sizes["validation"])]
    for label, source in sources.items():
        command += [f"--{label}", source]
    code = subprocess.run(command).returncode
    if not RunFolder(folder).summary.exists():
        sys.exit(f"the calibration with seed {seed} ended with {code} and no summary; its own words are above.")
    summary = RunFolder(folder).read_summary()
    export = "Nothing was exported, as the gate did not pass."
    if summary.gate is not None and summary.gate.decision == "pass":
        target = folder.with_name(f"{folder.name}-adapter")
        words = [sys.executable, "-m", "demur", "export", str(folder), "--format", "adapter", "--to", str(target)]
        done = target.exists() or subprocess.run(words).returncode == 0
        export = "The adapter was exported, reloaded and compared." if done else "The export failed; see its words."
    return Run(seed, folder, summary, code, export)


# The page -------------------------------------------------------------------------------------------------------------


def _page(arguments: argparse.Namespace, runs: Sequence[Run], *, bare: str) -> str:
    first = runs[0].summary
    source = (
        "the shipped English sets"
        if arguments.prompts is None
        else (
            "the harmful and harmless prompts of Arditi et al. and, as borderline ones, XSTest's safe prompts and "
            "OR-Bench-Hard in turn; near copies dropped"
        )
    )
    parts = [
        "# A real model",
        f"Written by `make real` (`benchmarks/real_model.py`). Model: {first.model.architecture}, "
        f"{first.model.n_parameters / 1e6:.0f} million parameters, {first.model.n_layers} blocks, computed in "
        f"{first.model.dtype}: {Path(first.model.id).stem}. Prompts: {source}; {arguments.sizes.replace(',', ' / ')} "
        "prompts of each set for training, validation and test.",
    ]
    for run in runs:
        document = run_document(run.folder)
        kept = {section.name: section for section in document.sections if section.name in SECTIONS}
        document = replace(
            document,
            title=f"Seed {run.seed} of the split",
            sections=tuple(kept[name] for name in SECTIONS if name in kept),
        )
        parts += [_deeper(render_markdown(document)), _places(run.summary), run.export, _stages(run)]
    parts.append(bare)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _deeper(markdown: str) -> str:
    """Headings one level down."""
    return re.sub(r"^(#+ )", r"#\1", markdown, flags=re.MULTILINE)


def _places(summary: Summary) -> str:
    found = []
    for name, card in (("r", summary.refusal_direction), ("w", summary.false_refusal_direction)):
        if card is not None:
            unmet = f"; filters not met: {', '.join(card.unmet_filters)}" if card.unmet_filters else ""
            found.append(f"{name} was taken at layer {card.layer}, position {card.position}{unmet}")
    return "; ".join(found) + "."


def _stages(run: Run) -> str:
    """Seconds of every stage, from the log."""
    rows = ["### Time by stage", "", "| stage | done |", "|---|---|"]
    for line in (run.folder / "log.txt").read_text("utf-8").splitlines():
        if match := _STAGE.match(line):
            rows.append(f"| {match['task']} | {match['text']} |")
    completions = [json.loads(line) for line in RunFolder(run.folder).completions.path.open(encoding="utf-8")]
    tokens = sum(each["n_tokens"] for each in completions)
    rows += ["", f"{len(completions)} answers with {tokens} generated tokens were judged and kept."]
    return "\n".join(rows)


def _over_bare(model: str, run: Run) -> str:
    """Answers of demur against transformers' own generate on the same prompts, in turn, in one process."""
    import torch  # noqa: PLC0415 (the runs need it in their own processes only)

    from demur.evaluation import PhraseJudge, Runner  # noqa: PLC0415
    from demur.models import load_chat_model  # noqa: PLC0415
    from demur.prompts import Prompt  # noqa: PLC0415
    from demur.records import CompletionRecord  # noqa: PLC0415

    threshold = run.summary.refusal_threshold
    length = (threshold.verdict_tokens if threshold else None) or 64
    answered = [
        record
        for record in RunFolder(run.folder).completions.read(CompletionRecord)
        if record.split == "test" and record.label != "harmful" and record.intervention == "none"
    ]
    prompts = [Prompt(record.prompt, record.label) for record in answered[:64]]
    chat = load_chat_model(model)
    runner = Runner(chat, PhraseJudge(), max_new_tokens=length, batch_size=32)
    started = time.perf_counter()
    runner.complete(prompts, condition="none", split="test", record=False)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    encoded = chat.encode(prompt.text for prompt in prompts)
    for start in range(0, len(encoded), 32):
        batch = chat.batch(encoded[start : start + 32])
        with torch.no_grad():
            chat.model.generate(**batch, max_new_tokens=length, do_sample=False, pad_token_id=chat.pad_token)
    bare = time.perf_counter() - started
    return (
        f"Answering {len(prompts)} test prompts with at most {length} tokens took {ours:.1f} s with demur, judged, and "
        f"{bare:.1f} s with transformers' `generate`: {ours / bare:.2f} of its time, measured in one process."
    )


if __name__ == "__main__":
    main()
