"""Loads an export with plain transformers (and PEFT) and writes down what it answers.

Run as a program, in a fresh process: python _reload.py REQUEST.json ANSWER.safetensors. It imports nothing of demur on
purpose: it sees the export as any other user of transformers would.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
)


def load(request: dict[str, Any]) -> Any:
    """The exported model: a merged checkpoint, or the base model with the adapter on top."""
    options = {"dtype": getattr(torch, request["dtype"]), "trust_remote_code": request["trust_remote_code"]}
    if request["format"] == "merged":
        return plain(request["folder"], None, options)
    from peft import PeftModel  # noqa: PLC0415 (only adapters need it)

    if request["gguf"]:
        name, file = request["gguf"]
        base = dequantised(name, file, request["revision"], options)
    else:
        base = plain(request["base"], request["revision"], options)
    return PeftModel.from_pretrained(base, request["folder"]).eval()


def dequantised(name: str, file: str, revision: str | None, options: dict[str, Any]) -> Any:
    """A model from a GGUF file, loaded as the card of an adapter on it says."""
    if hasattr(transformers, "GgufConfig"):
        options = {**options, "quantization_config": transformers.GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(name, gguf_file=file, revision=revision, **options).eval()
    model.generation_config = GenerationConfig()
    return model


def plain(name: str, revision: str | None, options: dict[str, Any]) -> Any:
    """A model as transformers loads it; vision-language checkpoints without a text-only class by their own."""
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=options["trust_remote_code"])
    text, vision = AutoModelForCausalLM, AutoModelForImageTextToText
    auto = vision if type(config) not in text._model_mapping and type(config) in vision._model_mapping else text
    model = auto.from_pretrained(name, revision=revision, **options).eval()
    # `generate` fills what a request leaves open (a repetition penalty) from the checkpoint's own settings.
    model.generation_config = GenerationConfig()
    return model


def main(request_path: str, answer_path: str) -> None:
    """Answer a request: next-token logits and greedy tokens for each left-padded batch of prompts."""
    request = json.loads(Path(request_path).read_text())
    model = load(request)
    config = GenerationConfig(
        max_new_tokens=request["max_new_tokens"],
        do_sample=False,
        eos_token_id=request["ends"] or None,
        pad_token_id=request["pad"],
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = {}
    for index, batch in enumerate(request["batches"]):
        inputs = {name: torch.tensor(rows) for name, rows in batch.items()}
        with torch.no_grad():
            output = model.generate(**inputs, generation_config=config)
        answer[f"logits.{index}"] = output.logits[0].to(torch.float64).contiguous()
        answer[f"tokens.{index}"] = output.sequences[:, inputs["input_ids"].shape[1] :].contiguous()
    save_file(answer, answer_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
