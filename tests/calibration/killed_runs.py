"""One process that forks calibrations, kills some with SIGKILL, and prints what happened as JSON.

python killed_runs.py FOLDER SEED. Importing torch takes longer than these calibrations, so it is done once, and one
thread (OMP_NUM_THREADS=1) makes forking safe.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from toy_runs import SMALL, small_sets

from demur.calibration import calibrate
from demur.testing import load_toy_chat_model

SETTINGS = replace(SMALL, n_scored=4, n_mechanism=4, batch_size=16, lambdas=(1.0, 0.7))


def main(folder: Path, seed: int) -> None:
    chat, prompts = load_toy_chat_model(), small_sets(validation=16, test=20)

    def start(name: str) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                calibrate(chat, prompts, out=folder / name, settings=SETTINGS)
                code = 0
            finally:
                os._exit(code)
        return child

    began = time.monotonic()
    assert os.waitpid(start("whole"), 0)[1] == 0
    seconds = time.monotonic() - began
    moments, generator = [], random.Random(seed)
    for _ in range(3):
        moment = generator.uniform(0.05, 0.3) * seconds
        child = start("torn")
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        sizes = {path.name: path.stat().st_size for path in sorted((folder / "torn").glob("*.jsonl"))}
        moments.append({"seconds": moment, "killed": os.WIFSIGNALED(status), "sizes": sizes})
    assert os.waitpid(start("torn"), 0)[1] == 0
    sys.stdout.write(json.dumps({"whole_seconds": seconds, "moments": moments}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
