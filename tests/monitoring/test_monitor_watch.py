"""A watch reads what is there and changes nothing."""

import copy
import math

import pytest
import torch
from monitors import PROMPTS, expected, monitor_of, probes, streams
from transformers import DynamicCache

from demur.errors import InputError
from demur.models import hook_count
from demur.monitoring import RefusalMonitor
from demur.monitoring._reading import locate, peak, value_at
from demur.testing import tiny_chat_model

FAMILIES = ("llama", "gemma3_text", "gpt_neox", "qwen2_moe")
OPENING = len("<|im_start|>user\n") - len("<|im_start|>") + 1
CLOSING = len("\n<|im_start|>assistant\n") - len("<|im_start|>") + 2


def generated(chat, side="left", **options):
    batch = chat.batch(chat.encode(PROMPTS), side=side)
    return chat.model.generate(
        **batch, max_new_tokens=6, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_generations_are_bit_identical_and_hooks_are_removed(tiny, family):
    chat = tiny(family)
    batch, hooks = chat.batch(chat.encode(PROMPTS)), hook_count(chat.module)
    bare, written = chat.next_token_logits(batch), generated(chat)
    with monitor_of(chat).watching(chat) as watch:
        assert hook_count(chat.module) > hooks
        assert torch.equal(chat.next_token_logits(batch), bare)
        again = generated(chat)
        assert len(watch.readings()) == len(PROMPTS)
    assert torch.equal(again.sequences, written.sequences)
    assert all(torch.equal(one, two) for one, two in zip(again.logits, written.logits, strict=True))
    assert hook_count(chat.module) == hooks
    with pytest.raises(KeyError), monitor_of(chat).watching(chat):
        raise KeyError
    assert hook_count(chat.module) == hooks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_read_as_by_an_oracle_on_either_side_of_padding(tiny, family, side):
    chat = tiny(family)
    monitor = monitor_of(chat)
    encoded = chat.encode(PROMPTS)
    batch = chat.batch(encoded, side=side)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with monitor.watching(chat) as watch, torch.no_grad():
        chat.model(**batch, position_ids=positions)
        readings = watch.readings()
    for tokens, reading in zip(encoded, readings, strict=True):
        assert reading.rendered
        assert reading.tokens == ()
        for probe in monitor.probes:
            wanted = expected(chat, probe, tokens, opening=OPENING, closing=CLOSING)
            assert reading.prompt[probe.name] == pytest.approx(wanted, rel=1e-9)


def test_scores_are_standardised_and_suppression_is_their_difference(tiny):
    chat = tiny("llama")
    monitor = monitor_of(chat)
    for reading in monitor.read(chat, PROMPTS, batch_size=2):
        first = (reading.prompt["r1"] - 0.5) / 1.5
        assert reading.scores["refusal"] == min(first, reading.prompt["r2"])
        assert reading.scores["harm"] == reading.prompt["harm"]
        assert reading.scores["suppression"] == reading.scores["harm"] - reading.scores["refusal"]
        assert reading.scores["false_refusal"] == reading.prompt["w"]


def test_prompts_read_alone_are_read_as_in_a_batch_and_in_their_order(tiny):
    chat = tiny("llama")
    monitor = monitor_of(chat)
    together, apart = (monitor.read(chat, PROMPTS, batch_size=size) for size in (3, 1))
    for one, two in zip(together, apart, strict=True):
        assert one.prompt == pytest.approx(two.prompt, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_tokens_are_read_as_by_an_oracle(tiny, family):
    chat = tiny(family)
    monitor = monitor_of(chat)
    encoded = chat.encode(PROMPTS)
    with monitor.watching(chat) as watch:
        written = generated(chat, eos_token_id=[]).sequences
        readings = watch.readings()
    width = max(map(len, encoded))
    for row, (tokens, reading) in enumerate(zip(encoded, readings, strict=True)):
        answer = written[row, width:].tolist()
        assert list(reading.tokens) == answer[: len(reading.tokens)]
        assert reading.prompt == pytest.approx(monitor.read(chat, [PROMPTS[row]])[0].prompt, rel=1e-9)
        if 2 not in answer:
            assert len(reading.tokens) == len(answer) - 1  # the last one is written and never read
        values = streams(chat, [*tokens, *reading.tokens])
        for probe in monitor.probes:
            wanted = values[probe.layer, len(tokens) :] @ probe.vector
            assert torch.allclose(reading.answer[probe.name], wanted, rtol=1e-8)


def test_an_answer_ends_with_its_end_token_whatever_is_fed_after_it(tiny):
    chat = tiny("llama")
    prompt = chat.encode(PROMPTS[:1])[0]
    ids = torch.tensor([[*prompt, 40, 41, chat.tokenizer.eos_token_id, 0, 0]])
    with monitor_of(chat).watching(chat) as watch, torch.no_grad():
        chat.model(input_ids=ids)
        (reading,) = watch.readings()
    assert reading.tokens == (40, 41, chat.tokenizer.eos_token_id)
    assert len(reading.answer["r1"]) == 3


def test_chat_model_generate_is_read_too(tiny):
    chat = tiny("llama")
    monitor = monitor_of(chat)
    bare = chat.generate(PROMPTS, max_new_tokens=5)
    with monitor.watching(chat) as watch:
        watched = chat.generate(PROMPTS, max_new_tokens=5)
        readings = watch.readings()
    assert [one.tokens for one in watched] == [one.tokens for one in bare]
    for answer, reading in zip(watched, readings, strict=True):
        assert reading.tokens == answer.tokens[: len(reading.tokens)]
        assert len(reading.tokens) >= len(answer.tokens) - 1
    again = monitor.read(chat, PROMPTS, max_new_tokens=5, batch_size=3)
    assert [each.tokens for each in again] == [each.tokens for each in readings]


def test_nothing_that_is_appended_lowers_how_harmful_an_instruction_looks(tiny):
    chat = tiny("llama")
    monitor = monitor_of(chat)
    appended = [f"{prompt} {more}" for prompt in PROMPTS for more in ("zx qq", "and then?", "!!!! describing")]
    plain = {prompt: each.scores["harm"] for prompt, each in zip(PROMPTS, monitor.read(chat, PROMPTS), strict=True)}
    changed = monitor.read(chat, appended)
    for text, reading in zip(appended, changed, strict=True):
        before = next(score for prompt, score in plain.items() if text.startswith(prompt))
        assert reading.scores["harm"] >= before - 1e-9
    assert any(reading.scores["harm"] > max(plain.values()) for reading in changed)


def one_pass(chat, tokens, cache=None, mask=None):
    with torch.no_grad():
        return chat.model(
            input_ids=torch.tensor(tokens), past_key_values=cache, attention_mask=mask, use_cache=True
        ).past_key_values


def test_two_conversations_in_turn_are_kept_apart(tiny):
    chat = tiny("llama")
    one, two = chat.encode(["Name a river.", "Name a mount."])
    with monitor_of(chat).watching(chat, batches=3) as watch:
        first, second = one_pass(chat, [one]), one_pass(chat, [two])
        one_pass(chat, [[50]], first)
        one_pass(chat, [[60]], second)
        one_pass(chat, [[51]], first)
        assert [each[0].tokens for each in watch.batches] == [(60,), (50, 51)]
        assert watch.readings()[0].tokens == (50, 51)


def test_a_draft_that_is_taken_back_is_forgotten(tiny):
    chat = tiny("llama")
    (prompt,) = chat.encode(PROMPTS[:1])
    monitor = monitor_of(chat)
    with monitor.watching(chat) as watch:
        cache = one_pass(chat, [prompt])
        one_pass(chat, [[50, 51, 52, 53]], cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :-3], layer.values[:, :, :-3]
        one_pass(chat, [[70]], cache)
        (reading,) = watch.readings()
    assert reading.tokens == (50, 70)
    wanted = streams(chat, [*prompt, 50, 70])[1, len(prompt) :] @ monitor.probes[0].vector
    assert torch.allclose(reading.answer["harm"], wanted)


def test_a_cache_that_was_not_watched_gives_an_unreadable_row(tiny):
    chat = tiny("llama")
    (prompt,) = chat.encode(PROMPTS[:1])
    cache = one_pass(chat, [prompt])
    with monitor_of(chat).watching(chat) as watch:
        one_pass(chat, [[50]], cache)
        (reading,) = watch.readings()
        assert not reading.rendered
        assert [flag.name for flag in reading.flags()] == ["unreadable"]
        one_pass(chat, [[51]], copy.deepcopy(cache))
        assert len(watch.readings()) == 1


def test_a_cache_that_was_emptied_begins_a_new_batch(tiny):
    chat = tiny("llama")
    one, two = chat.encode(["Name a river.", "Name a mount."])
    with monitor_of(chat).watching(chat, batches=2) as watch:
        cache = one_pass(chat, [one], DynamicCache())
        cache.layers.clear()
        one_pass(chat, [two], cache)
        first, second = watch.batches
    monitor = monitor_of(chat)
    for (reading,), text in zip((first, second), ("Name a river.", "Name a mount."), strict=True):
        assert reading.prompt == pytest.approx(monitor.read(chat, [text])[0].prompt, rel=1e-9)
        assert reading.tokens == ()


def test_rows_that_leave_the_batch_are_not_taken_for_others(tiny):
    chat = tiny("llama")
    one, two = chat.encode(["Name a river.", "Name a mount."])
    with monitor_of(chat).watching(chat) as watch:
        cache = one_pass(chat, [one, two])
        cache.batch_select_indices(torch.tensor([1]))
        one_pass(chat, [[50]], cache)
        (reading,) = watch.readings()
    assert [flag.name for flag in reading.flags()] == ["unreadable"]


@pytest.mark.parametrize("place", [3, 4, 6])
def test_the_peak_is_taken_from_the_first_to_the_last_token_of_the_instruction(place):
    opening, instruction, closing, answer = [1, 2, 3], [10, 11, 12, 13], [7, 8], [20]
    tokens = [*opening, *instruction, *closing, *answer]
    values = torch.tensor([9.0, 9, 9, 0, 0, 0, 0, 9, 9, 9])
    values[place] = 1.0
    found = locate(tokens, opening, closing, first=9)
    assert (found.start, found.end, found.rendered) == (3, 9, True)
    assert peak(values, found, -len(closing) - 1) == 1.0
    assert value_at(values, found, -1) == 9.0
    assert math.isnan(value_at(values, found, -10))
    bare = locate([10, 11, 20], opening, closing, first=2)
    assert (bare.start, bare.end, bare.rendered) == (0, 2, False)


def test_a_watch_keeps_the_latest_batches_only(tiny):
    chat = tiny("llama")
    with monitor_of(chat).watching(chat, batches=2) as watch:
        assert watch.readings() == []
        for count in (1, 2, 3):
            chat.run(chat.batch(chat.encode(PROMPTS[:count])))
        assert [len(each) for each in watch.batches] == [2, 3]
        watch.clear()
        assert watch.batches == ()
    with pytest.raises(InputError, match="keeps at least one batch"), monitor_of(chat).watching(chat, batches=0):
        pass


def test_memory_grows_with_the_tokens_and_not_with_their_square(tiny):
    chat = tiny("llama")
    with monitor_of(chat).watching(chat) as watch:
        generated(chat, eos_token_id=[])
        (batch,) = watch._batches
        kept = [*batch.ids, *batch.mask]
    assert sum(each.untyped_storage().nbytes() for each in kept) == sum(each.numel() * 8 for each in kept)


def test_reading_is_exact_under_autocast():
    chat = tiny_chat_model("llama", dtype=torch.float32)
    monitor = monitor_of(chat, layers=(1, 1))
    streams_seen = []
    block = chat.module.get_submodule(chat.layout.blocks[1])
    handle = block.register_forward_pre_hook(lambda _module, args: streams_seen.append(args[0]))
    with monitor.watching(chat) as watch, torch.autocast("cpu", dtype=torch.bfloat16):
        chat.run(chat.batch(chat.encode(PROMPTS[:1])))
        (reading,) = watch.readings()
    handle.remove()
    wanted = streams_seen[0][0, -1].double() @ monitor.probes[1].vector
    assert reading.prompt["r1"] == pytest.approx(float(wanted), rel=1e-5)


def test_long_prompts_are_read_in_pieces_with_the_same_result(tiny, monkeypatch):
    chat = tiny("llama")
    monitor = monitor_of(chat)
    whole = monitor.read(chat, PROMPTS)
    monkeypatch.setattr("demur.monitoring._watch._TOKENS", 4)
    for one, two in zip(whole, monitor.read(chat, PROMPTS), strict=True):
        assert one.prompt == pytest.approx(two.prompt, rel=1e-12)


def test_windowed_means(tiny):
    chat = tiny("llama")
    (reading,) = RefusalMonitor(probes(chat)).read(chat, PROMPTS[:1], max_new_tokens=7)
    values = reading.answer["r1"].tolist()
    wanted = [sum(values[start : start + 3]) / 3 for start in range(len(values) - 2)]
    assert reading.windowed("r1", 3).tolist() == pytest.approx(wanted)
    assert reading.windowed("r1", 100).tolist() == pytest.approx([sum(values) / len(values)])
    (unanswered,) = RefusalMonitor(probes(chat)).read(chat, PROMPTS[:1])
    assert len(unanswered.windowed("r1")) == 0
