"""Scaling: extraction and next-token logits with one and with two processes under torchrun, one thread each.

Start-up and loading are not counted. The results of both must be the same bytes.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import Result, arguments, finish, median, prompt_texts, random_chat_model

from demur.activations import mean_activations
from demur.models import join_processes, leave_processes, length_sorted_batches, tensors_in_order, world


def main() -> None:
    """Launch one and two processes in turn; or be one of them."""
    parser = arguments(__doc__)
    parser.add_argument("--shape", default="125m")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--worker", type=Path, help="be one of the processes and report into this folder")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.prompts, options.repeats = "tiny", 16, 1
    if options.worker:
        work(options.worker, options.shape, options.prompts)
        return
    result = Result("Scaling", ("processes", "seconds", "user CPU seconds, all processes"))
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for repeat in range(options.repeats):
        for count in (1, 2) if repeat % 2 == 0 else (2, 1):
            runs[count].append(launch(count, options.shape, options.prompts))
    for count, measured in runs.items():
        seconds, cpu = (median([each[name] for each in measured]) for name in ("seconds", "cpu"))
        result.rows.append((count, seconds, cpu))
    one, two = ([each["seconds"] for each in runs[count]] for count in (1, 2))
    result.ratio(f"{options.shape}: seconds of 1 process / 2 processes", median(one) / median(two), at_least=1.7)
    cpu_ratio = result.rows[1][2] / result.rows[0][2]
    result.ratio(f"{options.shape}: user CPU seconds of 2 processes / 1", cpu_ratio)
    digests = {each["digest"] for measured in runs.values() for each in measured}
    result.ratio("different results among all runs", len(digests), at_most=1)
    finish(result, options)


def launch(count: int, shape: str, prompts: int) -> dict[str, Any]:
    """Seconds (the slowest process), user CPU seconds (all) and digest of one run."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, __file__, "--worker", folder, "--shape", shape, "--prompts", str(prompts)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    digests = {report["digest"] for report in reports}
    return {
        "seconds": max(report["seconds"] for report in reports),
        "cpu": sum(report["cpu"] for report in reports),
        "digest": digests.pop() if len(digests) == 1 else "the processes differ",
    }


def work(folder: Path, shape: str, count: int) -> None:
    """What each process does."""
    chat = random_chat_model(shape)
    prompts = prompt_texts("harmful", count)
    encoded = chat.encode(prompts)
    batches = list(length_sorted_batches([*map(len, encoded)], 16))
    positions = len(chat.template.post_instruction_tokens())
    chat.next_token_logits(chat.batch(encoded[:2]))
    join_processes()
    list(tensors_in_order(lambda _: chat.probe_inputs()["input_ids"], [0, 1]))  # all begin together
    start, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    digest = hashlib.sha256(mean_activations(chat, prompts, n_positions=positions, batch_size=16).mean.numpy())
    logits = tensors_in_order(lambda rows: chat.next_token_logits(chat.batch([encoded[row] for row in rows])), batches)
    for rows in logits:
        digest.update(rows.numpy())
    report = {
        "seconds": time.perf_counter() - start,
        "cpu": resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu,
        "digest": digest.hexdigest(),
    }
    (folder / f"{world().rank}.json").write_text(json.dumps(report), encoding="utf-8")
    leave_processes()


if __name__ == "__main__":
    main()
