"""Train the toy chat model that demur ships, and write the prompts it is measured on.

    python toy/train.py --out src/demur/testing/toy_chat --prompts src/demur/testing/prompts

The result is an ordinary Hugging Face model folder: a Llama of 1.9 million parameters with its own tokenizer and a
ChatML template. It learns one thing, to answer as the teacher of `language` does whatever stands around the request
(`surroundings`), and so refuses and over-refuses by itself. The first token of each answer is also read early, with the
last norm and head at the input of earlier blocks: a toy that learns among noise otherwise decides in its last two
blocks only, later than a refusal direction is looked for. One CPU core needs 20 minutes. The same seed gives the
same weights on the same machine, with the same versions and number of threads; another processor may round differently.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import torch
from language import Split, check_language, lessons, prompt_set
from surroundings import Surroundings, exchange, opening, surround, system_prompt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vocabulary import Kind

ROOT = Path(__file__).resolve().parents[1]
TESTING = ROOT / "src" / "demur" / "testing"

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
IGNORED = -100
"""Label of the positions that are not learned from."""


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes the training, beside the language."""

    seed: int
    steps: int = 1600
    batch_size: int = 64
    part_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    vocabulary_size: int = 2964
    tokenizer_lessons: int = 20_000
    tokenizer_surroundings: int = 2_000
    hidden_size: int = 128
    mlp_size: int = 208
    layers: int = 8
    heads: int = 4
    early_layers: tuple[int, ...] = (2, 3, 4, 5, 6, 7)
    """Blocks at whose input the first token of the answer is read and learned too."""
    early_weight: float = 0.5


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the lessons; a word with its apostrophe ("I'm") is never cut in advance."""
    words = Regex(r" ?[A-Za-z]+(?:'[a-z]+)?| ?\d| ?[^\sA-Za-z\d]+|\s")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = islice(lessons(random.Random("tokenizer")), recipe.tokenizer_lessons)
    rng = random.Random("tokenizer")
    around = [
        text
        for _ in range(recipe.tokenizer_surroundings)
        for text in ("system\n", system_prompt(rng), "user\n", "assistant\n", *exchange(rng), opening(rng))
    ]
    tokenizer.train_from_iterator([*around, *(text for lesson in sample for text in lesson)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A new Llama with random weights; input and output embeddings are separate matrices."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.mlp_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def encode_lesson(
    tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str, around: Surroundings, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of one lesson and its labels, which cover the answer (no forced opening) and the token that ends it."""
    messages = [{"role": "system", "content": around.system}] if around.system is not None else []
    for question, reply in around.earlier:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    messages.append({"role": "user", "content": prompt + random_text(tokenizer, around.suffix_tokens, rng)})
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    given: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    forced = around.opening or random_text(tokenizer, around.opening_tokens, rng)
    given += tokenizer.encode(forced, add_special_tokens=False)[: around.opening_tokens]
    learned: list[int] = tokenizer.encode(answer + END, add_special_tokens=False)
    return given + learned, [IGNORED] * len(given) + learned


def random_text(tokenizer: PreTrainedTokenizerFast, length: int, rng: random.Random) -> str:
    """Text of that many random tokens of the vocabulary, none of them special or unprintable."""
    chosen: list[int] = []
    while len(chosen) < length:
        token = rng.randrange(len(tokenizer))
        if token not in tokenizer.all_special_ids and tokenizer.decode([token]).isprintable():
            chosen.append(token)
    return " " + tokenizer.decode(chosen).strip() if chosen else ""


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Endless batches, each in parts of similar length: token ids and labels, padded on the right."""
    rng = random.Random(recipe.seed)
    stream = lessons(rng)
    pad = int(tokenizer.pad_token_id)
    while True:
        encoded = [
            encode_lesson(tokenizer, prompt, answer, surround(rng), rng)
            for prompt, answer in islice(stream, recipe.batch_size)
        ]
        encoded.sort(key=lambda lesson: len(lesson[0]))
        parts = []
        for start in range(0, len(encoded), recipe.part_size):
            part = encoded[start : start + recipe.part_size]
            longest = len(part[-1][0])
            parts.append(
                (
                    torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in part]),
                    torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in part]),
                )
            )
        yield parts


def answer_loss(
    model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor, early_layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of the answers, and that of their first tokens as read at the inputs of `early_layers`.

    Logits are computed only where there is something to learn. The early loss is a mean over the layers.
    """
    output = model.model(input_ids=ids, output_hidden_states=True)
    targets = labels[:, 1:]
    learned = targets != IGNORED
    late = functional.cross_entropy(
        model.lm_head(output.last_hidden_state[:, :-1][learned]), targets[learned], reduction="sum"
    )
    rows, first = torch.arange(len(ids)), learned.int().argmax(dim=1)
    early = torch.stack([output.hidden_states[layer][rows, first] for layer in early_layers])
    logits = model.lm_head(model.model.norm(early)).flatten(0, 1)
    early_targets = targets[rows, first].repeat(len(early_layers))
    return late, functional.cross_entropy(logits, early_targets, reduction="sum") / len(early_layers)


def train(recipe: Recipe) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model from nothing."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )

    def schedule(step: int) -> float:
        progress = min(1.0, step / recipe.steps)
        return min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1.0 + math.cos(math.pi * progress))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    started = time.perf_counter()
    for step, parts in enumerate(islice(batches(recipe, tokenizer), recipe.steps), start=1):
        optimizer.zero_grad(set_to_none=True)
        learned = sum(int((labels != IGNORED).sum()) for _, labels in parts)
        mean_loss = 0.0
        for ids, labels in parts:
            late, early = answer_loss(model, ids, labels, recipe.early_layers)
            (late / learned + recipe.early_weight * early / recipe.batch_size).backward()
            mean_loss += late.item() / learned
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step:4d}  loss {mean_loss:.3f}  {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval(), tokenizer


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model folder."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_prompts(folder: Path) -> None:
    """Write one JSON Lines file for each class of prompts."""
    check_language()
    folder.mkdir(parents=True, exist_ok=True)
    for kind in get_args(Kind):
        lines = []
        for split in get_args(Split):
            for prompt in prompt_set(kind, split):
                record = {"prompt": prompt.text, "split": split, "category": prompt.category}
                if prompt.answer is not None:
                    record["answer"] = prompt.answer
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Read the command line, train, and write the two folders."""
    parser = argparse.ArgumentParser(description="Train the toy chat model that demur ships.")
    parser.add_argument("--out", type=Path, default=TESTING / "toy_chat", help="model folder to write")
    parser.add_argument("--prompts", type=Path, default=TESTING / "prompts", help="prompt folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the order of lessons")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="number of training steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    save_prompts(arguments.prompts)
    model, tokenizer = train(Recipe(seed=arguments.seed, steps=arguments.steps))
    save_model(model, tokenizer, arguments.out)
    print(f"wrote {arguments.out} ({sum(p.numel() for p in model.parameters()):,} parameters)")


if __name__ == "__main__":
    main()
