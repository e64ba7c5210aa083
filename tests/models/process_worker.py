"""What each process of `test_processes.py` runs: `process_worker.py OUT RUN`; it reports into files in OUT."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from demur.activations import mean_activations, stream_at
from demur.errors import ModelError
from demur.models import in_order, join_processes, process_folder, world
from demur.prompts import load_prompts
from demur.testing import load_toy_chat_model, toy_prompts


def computed_here(items):
    """Which items this process computed, and what it got."""
    here = []

    def compute(item):
        here.append(item)
        return f"<{item}>"

    return here, list(in_order(compute, items, pack=str.encode, unpack=bytes.decode))


def failing(item):
    if item == 1:
        raise ValueError("no such item")
    return ""


def main(out, run):
    report = {"alone": world().size}
    report["size"] = join_processes().size
    rank = world().rank
    chat = load_toy_chat_model()
    prompts = [prompt.text for prompt in load_prompts(toy_prompts("harmful"), label="harmful").prompts[:70]]
    tensors = {
        "means": mean_activations(chat, prompts, n_positions=4, batch_size=16).mean,
        "rows": stream_at(chat, prompts, layer=2, position=-1, batch_size=16),
    }
    save_file(tensors, out / f"{rank}.safetensors")
    report["five"] = computed_here(list("abcde"))
    report["one"] = computed_here(["ä"])
    report["none"] = computed_here([])
    try:
        list(in_order(failing, [0, 1, 2], pack=str.encode, unpack=bytes.decode))
    except (ValueError, ModelError) as error:
        report["error"] = [type(error).__name__, str(error)]
    with process_folder(run) as own:
        report["found"] = (own / "kept.txt").read_text()
        report["own"] = str(own)
        (own / "new.txt").write_text(str(rank))
    (out / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
