"""`demur demo`: the main job on the toy model that ships with demur."""

# ruff: noqa: PLC0415, FBT002
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from demur.cli._commands import finish
from demur.cli._console import Out
from demur.cli._helpers import helped, usable_cores
from demur.cli._options import Json, app
from demur.records import RunFolder


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder.")] = Path("demur-demo"),
    processes: Annotated[int, typer.Option(help="Processes that share the work; 0: one for each core, up to 4.")] = 0,
    as_json: Json = False,
) -> int:
    """The whole main job on the shipped toy chat model: find, calibrate, prove, export, report."""
    helpers = (processes or min(4, usable_cores())) - 1
    out = Out(as_json=as_json)
    with out.progress(run) as progress, ExitStack() as ends:
        with progress.working("loading the toy model"):
            shared = helped(0 if RunFolder(run).summary.exists() else helpers, ["demo", "--out", str(run)])
            ends.enter_context(shared)
            import torch

            from demur.calibration import calibrate as run_calibration
            from demur.models import world
            from demur.testing import load_toy_chat_model, toy_prompt_sets, toy_settings

            # The toy is all overhead: a second thread saves little, and waits long where other programs run.
            torch.set_num_threads(1)
            chat = load_toy_chat_model()
        summary = run_calibration(chat, toy_prompt_sets(), out=run, settings=toy_settings(), progress=progress)
        if not world().is_first:
            return 0
    adapter = run.with_name(run.name + "-adapter")
    if summary.gate is not None and summary.gate.decision == "pass":
        if not adapter.exists():
            with out.working("exporting the adapter", quiet=True):
                from demur.calibration import export as run_export

                run_export(run, form="adapter", to=adapter, chat=chat)
        out.say(f"adapter: {adapter}")
    return finish(out, summary, run)
