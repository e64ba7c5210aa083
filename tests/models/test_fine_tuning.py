import pytest
import torch

from demur.errors import InputError, ModelError, UnsupportedInterventionError
from demur.models import FineTuning, fine_tuned
from demur.testing import tiny_chat_model

ROWS = [("What is red?", "Blood is."), ("What is blue?", "The sky is."), ("What is green?", "Grass is.")]
LONG = FineTuning(steps=100, learning_rate=0.02, batch_size=3, rank=4)
QUICK = FineTuning(steps=6, learning_rate=0.02, batch_size=2, rank=2)


def parameters(chat):
    return dict(chat.module.named_parameters(remove_duplicate=False))


def values(chat):
    return {name: parameter.detach().clone() for name, parameter in parameters(chat).items()}


def answer_loss(chat, prompt, answer):
    """An oracle for what is learned: the answer and the end token, given the rendered prompt."""
    given = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    learned = chat.tokenizer.encode(answer + "<|im_end|>", add_special_tokens=False)
    with torch.no_grad():
        logits = chat.model(torch.tensor([given + learned])).logits[0]
    log_p = torch.log_softmax(logits.float(), -1)
    return -sum(float(log_p[len(given) + i - 1, token]) for i, token in enumerate(learned)) / len(learned)


def loud_chat_model():
    """Weights so large that the frozen head can say anything with certainty."""
    return tiny_chat_model("llama", dtype=torch.float32, scale=0.5)


@pytest.fixture
def chat():
    return tiny_chat_model("llama", dtype=torch.float32)


def test_the_very_same_parameters_are_back(chat):
    before, copies = parameters(chat), values(chat)
    with fine_tuned(chat, ROWS, QUICK):
        assert any(parameters(chat)[name] is not each for name, each in before.items())
    after = parameters(chat)
    assert all(after[name] is each for name, each in before.items())
    assert all(torch.equal(after[name], each) for name, each in copies.items())
    assert all(each.grad is None for each in after.values())
    assert not any(module.training for module in chat.module.modules())


@pytest.mark.parametrize("where", ["inside", "while training"])
def test_the_very_same_parameters_are_back_after_an_error(chat, where):
    before = parameters(chat)

    def on_step(step):
        if where == "while training" and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), fine_tuned(chat, ROWS, QUICK, on_step=on_step):
        raise KeyboardInterrupt
    assert all(parameters(chat)[name] is each for name, each in before.items())


def test_what_is_learned_is_the_answer_with_its_end():
    chat = loud_chat_model()
    before = [answer_loss(chat, *row) for row in ROWS]
    with fine_tuned(chat, ROWS, LONG):
        after = [answer_loss(chat, *row) for row in ROWS]
        answers = chat.generate([prompt for prompt, _ in ROWS], max_new_tokens=20)
    assert max(after) < 0.1 < min(before)
    assert [each.text for each in answers] == [answer for _, answer in ROWS]
    assert all(each.ended for each in answers)


def test_prompts_are_not_learned():
    chat = loud_chat_model()
    prompt = ROWS[0][0]
    ids = torch.tensor([chat.template.encode(prompt)])

    def prompt_loss():
        with torch.no_grad():
            logits = chat.model(ids).logits[0]
        return float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:]))

    before = prompt_loss()
    with fine_tuned(chat, ROWS[:1], LONG):
        after = prompt_loss()
        assert answer_loss(chat, *ROWS[0]) < 0.1
    assert after > 0.8 * before


def test_only_linear_layers_of_blocks_change(chat):
    before = values(chat)
    with fine_tuned(chat, ROWS, QUICK):
        changed = {name for name, each in values(chat).items() if not torch.equal(each, before[name])}
    matrices = {name for name, each in before.items() if name.startswith("model.layers.") and each.dim() == 2}
    assert changed == matrices
    assert "lm_head.weight" not in changed


def test_changes_have_the_rank_asked_for(chat):
    before = values(chat)
    with fine_tuned(chat, ROWS, QUICK):
        after = values(chat)
    for name, each in after.items():
        if name.startswith("model.layers.") and each.dim() == 2:
            singular = torch.linalg.svdvals((each - before[name]).double())
            assert singular[1] > 1e-4 * singular[0] > 10 * singular[2]


def test_the_seed_decides(chat):
    def trained(**settings):
        with fine_tuned(chat, ROWS, FineTuning(**{**vars(QUICK), **settings})):
            return values(chat)["model.layers.0.mlp.down_proj.weight"]

    with torch.random.fork_rng(devices=[]):
        one = trained()
        torch.manual_seed(1)
        assert torch.equal(one, trained())
    assert not torch.equal(one, trained(seed=1))


def test_no_global_random_numbers_are_drawn(chat):
    before = torch.get_rng_state()
    with fine_tuned(chat, ROWS, QUICK):
        pass
    assert torch.equal(before, torch.get_rng_state())


def test_on_step_sees_the_model_as_it_is_and_can_stop(chat):
    seen = []

    def on_step(step):
        assert not torch.is_grad_enabled()
        seen.append((step, values(chat)["model.layers.0.mlp.down_proj.weight"]))
        return step == 3

    with fine_tuned(chat, ROWS, QUICK, on_step=on_step):
        last = values(chat)["model.layers.0.mlp.down_proj.weight"]
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[2][1], last)
    assert not torch.equal(seen[1][1], last)


@pytest.mark.parametrize("known", [False, True])
def test_the_hash_is_that_of_the_weights_at_the_time(chat, known):
    before = chat.identity.content_hash
    if not known:
        del chat.identity
    seen = []
    with fine_tuned(chat, ROWS, QUICK, on_step=lambda _: seen.append(chat.identity.content_hash)):
        inside = chat.identity.content_hash
    assert len(set(seen)) == QUICK.steps
    assert inside == seen[-1]
    assert chat.identity.content_hash == before not in seen


def test_layout_holds_inside(chat):
    from demur.interventions import DirectionalAblation

    direction = torch.randn(chat.layout.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ablation = DirectionalAblation(direction)
    batch = chat.batch(chat.encode(["Write one line."]))
    with fine_tuned(chat, ROWS, QUICK):
        with ablation.applied_to(chat):
            applied = chat.next_token_logits(batch)
        with ablation.folded_into(chat):
            folded = chat.next_token_logits(batch)
    assert torch.allclose(applied, folded, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "mamba", "gemma2"])
def test_other_architectures(family):
    chat = tiny_chat_model(family, dtype=torch.float32)
    before = parameters(chat)
    losses = []
    rows = ROWS[:1]
    with fine_tuned(
        chat,
        rows,
        FineTuning(steps=8, learning_rate=0.02, rank=4),
        on_step=lambda _: losses.append(answer_loss(chat, *rows[0])),
    ):
        pass
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameters(chat)[name] is each for name, each in before.items())


def test_half_precision_keeps_its_dtype():
    chat = tiny_chat_model("llama", dtype=torch.bfloat16)
    with fine_tuned(chat, ROWS, QUICK):
        assert {each.dtype for each in parameters(chat).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "nothing to fine-tune on"),
        ([("a", "b"), ("a", "")], "row 2 of the fine-tuning has no answer"),
    ],
)
def test_unusable_rows_are_refused(chat, rows, message):
    with pytest.raises(InputError, match=message), fine_tuned(chat, rows, QUICK):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps of a fine-tuning is a number of at least 1; got 0"),
        ({"rank": -1}, "rank of a fine-tuning"),
        ({"learning_rate": 0.0}, "above 0, such as 0.001; got 0.0"),
        ({"learning_rate": float("nan")}, "above 0"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FineTuning(**settings)


def test_packed_weights_are_refused(chat):
    from dataclasses import replace

    chat.layout = replace(chat.layout, packed="quantised (bnb)")
    with (
        pytest.raises(UnsupportedInterventionError, match=r"are quantised \(bnb\).*unquantised"),
        fine_tuned(chat, ROWS, QUICK),
    ):
        pass


def test_a_loss_that_is_not_finite_is_told(chat):
    with torch.no_grad():
        chat.model.lm_head.weight.fill_(float("nan"))
    with (
        pytest.raises(ModelError, match=r"not finite at step 1\. Lower the learning rate"),
        fine_tuned(chat, ROWS, QUICK),
    ):
        pass
