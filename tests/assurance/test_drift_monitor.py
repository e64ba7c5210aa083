import warnings

import pytest
import torch
from drift_cases import FAST, SLOW, load_toy, tuning

from demur.assurance import DriftMonitor
from demur.errors import InputError, RunFolderError
from demur.models import DriftWarning, fine_tuned
from demur.records import DriftCheckpoint, JsonLines


@pytest.fixture(scope="module")
def toy():
    return load_toy()


def monitor_of(toy, **more):
    return DriftMonitor(toy.chat, toy.prompts, directions=toy.directions, **more)


def course(toy, rows, *, seed, every):
    """Readings over a slow fine-tune, and true refusal rates, which the monitor does not see: at the alarm, at last."""
    monitor = monitor_of(toy)
    readings = [monitor.measure(0)]
    rates = []

    def on_step(step):
        if step % every == 0:
            readings.append(monitor.measure(step))
            if readings[-1].alarms and not rates:
                rates.append(toy.true_refusals())

    with fine_tuned(toy.chat, rows, tuning(steps=22, rate=SLOW, seed=seed), on_step=on_step):
        return readings, [*rates, toy.true_refusals()]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_benign_fine_tune_that_erodes_refusals_raises_the_alarm_before_behaviour_goes(toy, seed):
    readings, (at_alarm, at_end) = course(toy, toy.eroding, seed=seed, every=2)
    assert not readings[0].alarms
    assert at_alarm >= 0.9 > 0.8 >= at_end
    assert readings[-1].checkpoint.cosine > 0.98  # which would have told nothing
    assert "the mean refusal score of harmful prompts is down to" in readings[-1].words


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fine_tune_that_keeps_refusals_raises_none(toy, seed):
    readings, rates = course(toy, toy.keeping, seed=seed, every=5)
    assert not any(reading.alarms for reading in readings)
    assert readings[-1].words is None
    assert rates[-1] > 0.95


def test_a_model_that_is_not_trained_is_read_the_same_each_time(toy):
    monitor = monitor_of(toy)
    first, second = monitor.measure(0).checkpoint, monitor.measure(5).checkpoint
    assert first.projections == second.projections
    assert first.scores == second.scores
    assert second.cosine == pytest.approx(1.0)
    assert (second.step, second.source, second.model_hash) == (5, "training", None)


def test_readings_are_the_projections_and_scores_of_the_test_prompts(toy):
    from demur.activations import stream_at
    from demur.evaluation import next_token_logits, refusal_scores

    reading = monitor_of(toy, n_probes=10).measure(0).checkpoint
    for label in ("harmful", "borderline"):
        texts = [each.text for each in sorted(toy.prompts[label].split("test"), key=lambda each: each.sha256)[:10]]
        r = toy.directions.refusal
        streams = stream_at(toy.chat, texts, layer=r.layer, position=r.position)
        expected = streams @ (r.vector / r.vector.norm())
        assert reading.projections[label] == pytest.approx(expected.tolist(), abs=1e-3)
        scores = refusal_scores(next_token_logits(toy.chat, texts), toy.directions.tokens)
        assert reading.scores[label] == pytest.approx(scores.tolist(), abs=1e-3)


def test_the_model_is_left_in_the_modes_it_was_in(toy):
    model = toy.chat.model
    try:
        model.train()
        model.model.layers[2].eval()
        before = [module.training for module in model.modules()]
        monitor_of(toy).measure(0)
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()


def test_the_hash_of_the_first_step_is_not_kept_for_the_trained_model(toy):
    monitor_of(toy).measure(0)
    assert "identity" not in toy.chat.__dict__


def test_resumed_training_goes_on_with_the_first_reference(toy, tmp_path):
    monitor_of(toy, out=tmp_path).measure(0)
    with fine_tuned(toy.chat, toy.eroding, tuning(rate=FAST)):
        # Without the folder's reference, the eroded model would be the first one, and nothing be wrong with it.
        resumed = DriftMonitor(toy.chat, toy.prompts, out=tmp_path)
        reading = resumed.measure(6)
    assert {test.statistic for test in reading.alarms} >= {"score"}
    lines = JsonLines(tmp_path / "checkpoints.jsonl").read(DriftCheckpoint)
    assert [each.step for each in lines] == [0, 6]
    assert lines[0].reference == lines[1].reference


def test_a_folder_of_something_else_is_refused(toy, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty and holds no drift"):
        monitor_of(toy, out=tmp_path).measure(0)


def test_a_resumed_monitor_needs_the_same_prompts(toy, tmp_path):
    monitor_of(toy, out=tmp_path, n_probes=12).measure(0)
    fewer = {**toy.prompts, "harmful": toy.prompts["harmless"]}
    with pytest.raises(InputError, match=r"12 of the 12 harmful prompts.*Give the same --harmful"):
        DriftMonitor(toy.chat, fewer, out=tmp_path)


def test_too_few_probe_prompts_are_refused(toy):
    with pytest.raises(InputError, match="at least 8 harmful and 8 harmless test prompts; got 4 and 4"):
        monitor_of(toy, n_probes=4).measure(0)


# ---- the real Trainer --------------------------------------------------------------------------------------------


def trained(toy, folder, *, callback=None, steps=5):
    """A few steps of full fine-tuning with transformers' Trainer: its state and the weights, which are undone."""
    from transformers import Trainer, TrainingArguments

    chat = toy.chat
    before = {name: each.detach().clone() for name, each in chat.model.named_parameters()}
    encoded = []
    for prompt, answer in toy.eroding[:48]:
        given = chat.template.encode(prompt)
        learned = [*chat.tokenizer.encode(answer, add_special_tokens=False), chat.tokenizer.eos_token_id]
        ids, labels = (given + learned)[:40], ([-100] * len(given) + learned)[:40]
        gap = 40 - len(ids)
        encoded.append(
            {
                "input_ids": ids + [0] * gap,
                "labels": labels + [-100] * gap,
                "attention_mask": [1] * len(ids) + [0] * gap,
            }
        )
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    try:
        with torch.random.fork_rng(devices=[]):
            trainer = Trainer(chat.model, arguments, train_dataset=encoded, callbacks=[callback] if callback else [])
            trainer.train()
        return trainer.state, {name: each.detach().clone() for name, each in chat.model.named_parameters()}
    finally:
        with torch.no_grad():
            for name, each in chat.model.named_parameters():
                each.copy_(before[name])
                each.grad = None
        chat.model.eval()


def test_the_callback_watches_a_real_training_and_changes_nothing_of_it(toy, tmp_path):
    monitor = monitor_of(toy, out=tmp_path / "drift")
    with pytest.warns(DriftWarning, match=r"step \d: refusal is eroding: the mean refusal score"):
        state, weights = trained(toy, tmp_path, callback=monitor.callback(every=1))
    _, alone = trained(toy, tmp_path)
    assert all(torch.equal(each, alone[name]) for name, each in weights.items())
    logged = [entry for entry in state.log_history if "drift/cosine" in entry]
    assert [entry["step"] for entry in logged] == [0, 1, 2, 3, 4, 5]
    assert logged[0]["drift/alarm"] == 0.0
    assert logged[-1]["drift/alarm"] == 1.0
    assert logged[-1]["drift/score_kept"] < 0.7
    lines = JsonLines(tmp_path / "drift" / "checkpoints.jsonl").read(DriftCheckpoint)
    assert [each.step for each in lines] == [0, 1, 2, 3, 4, 5]


def test_the_callback_stops_a_training_if_it_is_told_to(toy, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DriftWarning)
        state, _ = trained(toy, tmp_path, callback=monitor_of(toy).callback(every=1, stop=True), steps=8)
    assert state.global_step < 8
    assert [entry["drift/alarm"] for entry in state.log_history if "drift/alarm" in entry][-1] == 1.0
