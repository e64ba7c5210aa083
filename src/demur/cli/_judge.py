"""`demur judge`: a judge against human labels."""

# ruff: noqa: PLC0415, FBT002
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._console import Out
from demur.cli._options import Json, app


@app.command()
def judge(
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="JSON Lines with prompt, completion, human_label, model.")
    ],
    as_json: Json = False,
) -> int:
    """Measure the phrase judge on answers that people have labelled."""
    from demur.evaluation import PhraseJudge, measure_judge, read_labels

    out = Out(as_json=as_json)
    quality = measure_judge(PhraseJudge(), read_labels(labels))
    out.judge_quality(quality)
    out.json(quality.model_dump(mode="json", by_alias=True))
    return 0
