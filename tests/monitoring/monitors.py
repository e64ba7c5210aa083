"""Monitors and independent oracles that the tests of monitoring share."""

import torch

from demur.monitoring import Probe, RefusalMonitor
from demur.records import MonitorThreshold

PROMPTS = ["Name a river.", "What is 17 + 25, and why would anyone ask?", "Is it raining?"]


def probes(chat, *, layers=(1, 2), seed=0):
    """Harm at the first layer, r at both, w' at the last: random directions."""
    generator = torch.Generator().manual_seed(seed)
    position = -len(chat.template.post_instruction_tokens()) - 1

    def vector():
        return torch.randn(chat.layout.d_model, dtype=torch.float64, generator=generator)

    return (
        Probe("harm", "harm", layers[0], position, vector()),
        Probe("r1", "refusal", layers[0], -1, vector(), 0.5, 2.0),
        Probe("r2", "refusal", layers[1], -1, vector()),
        Probe("w", "false_refusal", layers[1], -2, vector()),
    )


def threshold(flag, score, side, value):
    return MonitorThreshold(flag=flag, score=score, side=side, value=value, rate=0.05, attained={}, bound={}, n={})


def monitor_of(chat, **options):
    return RefusalMonitor(probes(chat, **options))


def streams(chat, tokens):
    """Inputs of all blocks for one unpadded row, [layer, token, d_model], by transformers' own record of them."""
    with torch.no_grad():
        output = chat.model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    return torch.stack(output.hidden_states)[:, 0].double()


def expected(chat, probe, tokens, *, opening, closing):
    """What a probe reads of one rendered prompt, written without the code under test."""
    values = streams(chat, tokens)[probe.layer] @ probe.vector
    if probe.role != "harm":
        return float(values[len(tokens) + probe.position])
    return float(values[opening : len(tokens) - closing].max())
