"""Which tasks of lm-evaluation-harness are meant: presets, task names, YAML files."""

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demur.errors import InputError

PRESETS: Mapping[str, tuple[str, ...]] = {
    "mmlu": ("mmlu",),
    "arc": ("arc_easy", "arc_challenge"),
    "gsm8k": ("gsm8k",),
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "wikitext": ("wikitext",),
    "tinybenchmarks": ("tinyArc", "tinyGSM8k", "tinyMMLU", "tinyWinogrande", "tinyHellaswag", "tinyTruthfulQA"),
}
"""Short names -> the harness's task names. TruthfulQA moves with edits of refusal by itself: read it apart."""


def import_lm_eval() -> Any:
    """The harness, which is an extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        import lm_eval.tasks  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise InputError(
            f"capability tasks need lm-evaluation-harness ({error}): install it with pip install 'demur[capability]'."
        ) from error
    return lm_eval


@dataclass(frozen=True)
class Tasks:
    """Tasks that the harness knows, and what it found them with."""

    names: tuple[str, ...]
    manager: Any


def find_tasks(tasks: Sequence[str], include_path: Path | str | None = None) -> Tasks:
    """Look the tasks up without loading any data.

    Args:
        tasks: presets, names of the harness, or YAML files that define a task.
        include_path: a folder with further task files.

    Raises:
        InputError: no task, an unknown one, a file that defines none, or a package that a task needs is missing.
    """
    if not tasks:
        raise InputError(f"name at least one task: a preset ({', '.join(PRESETS)}), a task name or a YAML file.")
    lm_eval = import_lm_eval()
    files = {task: Path(task) for task in tasks if task.endswith((".yaml", ".yml"))}
    named = [name for task in tasks if task not in files for name in PRESETS.get(task, (task,))]
    folders = sorted({str(path.resolve().parent) for path in files.values()})
    folders += [] if include_path is None else [str(include_path)]
    names = [_task_of(path) for path in files.values()]
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    if not set(named) <= set(manager.all_tasks):
        # Indexing the harness's own tasks takes seconds, so only where one of them is asked for.
        manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=True)
    for name in (*named, *names):
        _check_known(name, manager.all_tasks)
    return Tasks(tuple(dict.fromkeys((*named, *names))), manager)


def _task_of(path: Path) -> str:
    import yaml  # noqa: PLC0415 (comes with the harness)

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Task files name Python functions with !function; they are not needed for the name."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the task file {path}: {error}.") from error
    name = content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{path} defines no task: it needs a line such as `task: my_task`.")
    return name


def _check_known(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, [*PRESETS, *known], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `lm-eval ls tasks` lists them."
        raise InputError(f"lm-evaluation-harness has no task {name!r}.{hint}")
    if name in PRESETS["tinybenchmarks"] and importlib.util.find_spec("tinyBenchmarks") is None:
        raise InputError(
            f"the task {name} needs the package tinyBenchmarks, which is not on PyPI: "
            "pip install git+https://github.com/felipemaiapolo/tinyBenchmarks."
        )
