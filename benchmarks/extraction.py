"""Extraction: mean activations of all layers and post-instruction positions, against bare forward passes.

The bare passes run the same batches of the same tokens and compute logits at the last position only.
"""

from _common import Result, arguments, counted, finish, in_turn, median, prompt_texts, random_chat_model

from demur.activations import mean_activations
from demur.models import length_sorted_batches


def main() -> None:
    """Compare both for each shape."""
    parser = arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["125m", "0.5b"])
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    if options.smoke:
        options.shapes, options.prompts, options.repeats = ["tiny"], 8, 1
    result = Result("Extraction", ("shape", "what", "prompts per second", "seconds", "tokens x layers"))
    for shape in options.shapes:
        measure(result, shape, options.prompts, options.repeats)
    finish(result, options)


def measure(result: Result, shape: str, count: int, repeats: int) -> None:
    """Both ways on one shape."""
    chat = random_chat_model(shape)
    prompts = prompt_texts("harmful", count)
    encoded = chat.encode(prompts)
    positions = len(chat.template.post_instruction_tokens())
    # The default batch size of `mean_activations`.
    batches = [[encoded[index] for index in batch] for batch in length_sorted_batches([*map(len, encoded)], 32)]

    def bare() -> None:
        for batch in batches:
            chat.next_token_logits(chat.batch(batch))

    def extraction() -> None:
        mean_activations(chat, prompts, n_positions=positions)

    seconds = in_turn({"bare": bare, "extraction": extraction}, repeats=repeats)
    for what, run in (("bare", bare), ("extraction", extraction)):
        with counted(chat) as work:
            run()
        middle = median(seconds[what])
        result.rows.append((shape, what, len(prompts) / middle, middle, work.tokens_times_layers))
    pairs = zip(seconds["extraction"], seconds["bare"], strict=True)
    result.ratio(f"{shape}: seconds of extraction / bare", median([one / two for one, two in pairs]), at_most=1.1)


if __name__ == "__main__":
    main()
