"""The export: what was measured is what is shipped, and nothing is shipped without a passed gate."""

import json
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fabricated import LABELS, N, edited, passed_run, saved_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import demur.models._reload_check as reload_check
from demur.calibration import export
from demur.calibration._evaluate import load_operating_point
from demur.calibration._reasked import require_canaries
from demur.directions import load_directions
from demur.errors import DemurError, GateError, InputError, ModelError, RunFolderError, UnsupportedInterventionError
from demur.interventions import DirectionalAblation, save_edits
from demur.models import _reload, hook_count
from demur.prompts import load_prompts
from demur.records import CALIBRATED_MODEL, ExportRecord, RunFolder, read_record

FAMILIES = {
    "llama": ("llama", {}),
    "tied qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4}),
}
TIED = {"tied qwen2", "gemma", "gemma2", "gpt2"}


@pytest.fixture
def in_process(monkeypatch):
    """The reload check without a fresh process, which takes seconds; two tests below use the real one."""

    def run(command, **_options):
        try:
            with warnings.catch_warnings(action="ignore"):
                _reload.main(*command[2:])
        except Exception as error:  # noqa: BLE001 (what a fresh process does)
            return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(reload_check.subprocess, "run", run)


@pytest.fixture(autouse=True)
def fabricated_verdicts_stand(request, monkeypatch):
    """Random models refuse nothing, so the verdicts of fabricated runs would not be found again."""
    if "real_verdicts" not in request.fixturenames:
        monkeypatch.setattr("demur.calibration._export.require_claimed_refusals", lambda *_, **__: None)


@pytest.fixture
def real_verdicts():
    """Asked for by tests in which the model is asked again."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Per family: a saved tiny model and a passed run of it, made once."""
    made = {}

    def get(name):
        if name not in made:
            family, config = FAMILIES[name]
            folder = tmp_path_factory.mktemp(family)
            chat = saved_model(folder / "model", family, **config)
            made[name] = chat, folder / "run", passed_run(folder / "run", chat)
        return made[name]

    return get


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the llama run that a test may damage."""
    chat, run, _ = runs("llama")
    folder = tmp_path / "copied run"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return chat, folder


def nothing_left(target):
    return not target.exists() and not list(target.parent.glob(".*partial*"))


# What is shipped ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_merged_checkpoint_is_the_folded_model(runs, in_process, tmp_path, name):
    chat, run, summary = runs(name)
    assert summary.gate.decision == "pass"
    target = tmp_path / "merged"
    record = export(run, form="merged", to=target, chat=chat, check_prompts=4)
    assert record.logit_difference < 1e-4
    assert (record.identical_answers, record.checked_prompts) == (12, 12)
    assert record.untied_embeddings == (name in TIED)
    assert read_record(target / "demur.json", ExportRecord) == record
    assert (record.base_model, record.gate) == (summary.model, summary.gate)

    reloaded = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    direction = load_directions(run / "directions.safetensors")["false_refusal_direction"].unit
    parameters = dict(reloaded.named_parameters(remove_duplicate=False))
    folded = DirectionalAblation(direction).folded_parameters(chat)
    for parameter, tensor in folded.items():
        torch.testing.assert_close(parameters[parameter], tensor, rtol=0, atol=0, check_dtype=True)
    if name in TIED:
        config = json.loads((target / "config.json").read_text())
        assert config["tie_word_embeddings"] is False
        head, embedding = reloaded.get_output_embeddings().weight, reloaded.get_input_embeddings().weight
        assert not torch.equal(head, embedding)
        assert torch.equal(head, chat.model.get_output_embeddings().weight)
    template = AutoTokenizer.from_pretrained(target).chat_template
    assert template == chat.tokenizer.chat_template


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_the_folded_model_or_is_refused_in_clear_words(runs, in_process, tmp_path, name):
    chat, run, summary = runs(name)
    target = tmp_path / "adapter"
    try:
        record = export(run, form="adapter", to=target, chat=chat, check_prompts=4)
    except (UnsupportedInterventionError, InputError) as error:
        assert name != "llama"
        assert "Use --format merged." in str(error)
        assert nothing_left(target)
        return
    assert record.logit_difference < 1e-4
    assert (record.identical_answers, record.checked_prompts) == (12, 12)
    assert record.untied_embeddings is False
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == chat.name == summary.model.id
    assert config["r"] == 1
    with safe_open(target / "adapter_model.safetensors", "pt") as file:
        assert len(file.keys()) >= 2 * 7  # A and B of the embedding and of two writers in each of three blocks


def test_which_families_have_an_adapter(runs, in_process, tmp_path):
    """So that the branch above is not taken by all of them one day."""
    exported, failed = [], []
    for name in FAMILIES:
        chat, run, _ = runs(name)
        try:
            export(run, form="adapter", to=tmp_path / name, chat=chat, check_prompts=1)
        except DemurError as error:
            failed.append(error)
            continue
        exported.append(name)
    assert exported == list(FAMILIES), failed


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_fresh_process_reads_it(runs, tmp_path, form):
    """The model is loaded from the run's own record, and nothing is monkeypatched."""
    _, run, _ = runs("llama")
    record = export(run, form=form, to=tmp_path / "deep" / "out", check_prompts=2)
    assert record.logit_difference < 1e-4
    assert record.identical_answers == record.checked_prompts == 6


def test_the_card_holds_the_evidence_and_no_text(runs, in_process, tmp_path):
    chat, run, _ = runs("llama")
    export(run, form="merged", to=tmp_path / "out", chat=chat, check_prompts=1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {chat.name}" in card
    assert "base_model_relation: finetune" in card
    assert f"| true refusal rate (harmful prompts refused) | 100.0% ({N}/{N}, 98.1% to 100.0%)" in card
    assert "Gate: **pass**" in card
    assert "margin of 2.0%" in card
    assert "question, number" not in card
    assert "question, number" not in (tmp_path / "out" / "demur.json").read_text()


def test_the_session_run_exports_if_its_gate_passed(toy_run, in_process, tmp_path):
    target = tmp_path / "adapter"
    if toy_run.summary.gate.decision != "pass":
        with pytest.raises(GateError):
            export(toy_run.folder, form="adapter", to=target, chat=toy_run.chat)
        return
    record = export(toy_run.folder, form="adapter", to=target, chat=toy_run.chat, check_prompts=8)
    assert record.logit_difference < 1e-2
    assert record.identical_answers == record.checked_prompts == 24
    assert hook_count(toy_run.chat.module) == 0


def test_the_model_is_left_as_it_was(runs, in_process, tmp_path):
    chat, run, _ = runs("tied qwen2")
    before = {name: tensor.clone() for name, tensor in chat.module.state_dict().items()}
    config = chat.model.config.to_dict()
    for form in ("merged", "adapter"):
        export(run, form=form, to=tmp_path / form, chat=chat, check_prompts=1)
    assert all(torch.equal(chat.module.state_dict()[name], tensor) for name, tensor in before.items())
    assert chat.model.config.to_dict() == config
    assert chat.model.get_output_embeddings().weight is chat.model.get_input_embeddings().weight
    assert hook_count(chat.module) == 0


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "decision", "words"),
    [
        ({(CALIBRATED_MODEL, "harmful"): 100}, "fail", "Not kept: on 200 harmful prompts, 100 true refusals were lost"),
        ({(CALIBRATED_MODEL, "harmful"): 198}, "inconclusive", "Open: on 200 harmful prompts, 2 true refusals were"),
    ],
)
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_gate_that_did_not_pass_writes_nothing(runs, tmp_path, refused, decision, words, form):
    chat, _, _ = runs("llama")
    summary = passed_run(tmp_path / "run", chat, refused=refused)
    assert summary.gate.decision == decision
    target = tmp_path / "out"
    with pytest.raises(GateError) as caught:
        export(tmp_path / "run", form=form, to=target, chat=chat)
    message = str(caught.value)
    assert caught.value.exit_code == 100
    assert message.startswith(f"not exported: the gate of {tmp_path / 'run'} says {decision}.\n  - ")
    assert words in message
    assert all(f"  - {reason}\n" in message for reason in summary.gate.reasons)
    assert "There is no override." in message
    assert nothing_left(target)


def test_a_decision_written_by_hand_opens_nothing(runs, tmp_path):
    chat, _, _ = runs("llama")
    run, target = tmp_path / "run", tmp_path / "out"
    passed_run(run, chat, refused={(CALIBRATED_MODEL, "harmful"): 100})
    edited(run / "summary.json", lambda summary: summary["gate"].update(decision="pass"))
    with pytest.raises(
        GateError, match=r"the verdicts in .*completions\.jsonl do not give the gate that summary\.json"
    ):
        export(run, form="merged", to=target, chat=chat)
    assert nothing_left(target)


def test_metrics_written_by_hand_open_nothing(runs, tmp_path):
    """Even a whole summary of a better model: the verdicts decide."""
    chat, good, _ = runs("llama")
    run, target = tmp_path / "run", tmp_path / "out"
    passed_run(run, chat, refused={(CALIBRATED_MODEL, "harmful"): 100})
    (run / "summary.json").write_bytes((good / "summary.json").read_bytes())
    with pytest.raises(GateError, match="do not give the gate that"):
        export(run, form="merged", to=target, chat=chat)
    assert nothing_left(target)


def test_a_wider_margin_written_by_hand_opens_nothing_on_its_own(runs, tmp_path):
    """The margin is part of the decision and of run.json; the summary's own decision still says no."""
    chat, _, _ = runs("llama")
    run, target = tmp_path / "run", tmp_path / "out"
    passed_run(run, chat, refused={(CALIBRATED_MODEL, "harmful"): 100})
    edited(run / "run.json", lambda record: record["settings"].update(margin=0.9))
    with pytest.raises(GateError, match="says fail"):
        export(run, form="merged", to=target, chat=chat)
    assert nothing_left(target)


@pytest.mark.parametrize("which", ["one after", "all of a set", "the file"])
def test_deleted_verdicts_open_nothing(copy, tmp_path, which):
    chat, run = copy
    path, target = run / "completions.jsonl", tmp_path / "out"
    lines = path.read_text().splitlines(keepends=True)
    if which == "one after":
        path.write_text("".join(lines[:-1]))
    elif which == "all of a set":
        path.write_text("".join(line for line in lines if '"harmful"' not in line))
    else:
        path.unlink()
    with pytest.raises(GateError) as caught:
        export(run, form="merged", to=target, chat=chat)
    assert f"{path} no longer holds the verdicts" in str(caught.value)
    assert nothing_left(target)


def test_the_same_prompts_deleted_before_and_after_open_nothing(copy, tmp_path):
    """The counts still pair, but they are not those of the summary."""
    chat, run = copy
    path, target = run / "completions.jsonl", tmp_path / "out"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "borderline question, number 7?" not in line))
    with pytest.raises(GateError, match="do not give the gate"):
        export(run, form="merged", to=target, chat=chat)
    assert nothing_left(target)


def test_other_prompts_before_than_after_open_nothing(copy, tmp_path):
    chat, run = copy
    path, target = run / "completions.jsonl", tmp_path / "out"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["prompt_sha256"] = "0" * 64
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GateError):
        export(run, form="merged", to=target, chat=chat)
    assert nothing_left(target)


def test_a_run_without_a_gate_is_no_calibration(copy, tmp_path):
    chat, run = copy
    edited(run / "summary.json", lambda summary: summary.update(kind="evaluation"))
    with pytest.raises(GateError, match="is no calibration with a gate; only those can be exported"):
        export(run, form="merged", to=tmp_path / "out", chat=chat)


def test_an_unfinished_run(copy, tmp_path):
    chat, run = copy
    (run / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="holds an unfinished run"):
        export(run, form="merged", to=tmp_path / "out", chat=chat)
    with pytest.raises(RunFolderError, match="is no run folder"):
        export(tmp_path / "nowhere", form="merged", to=tmp_path / "out", chat=chat)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_target_that_is_taken_is_left_alone(runs, tmp_path, what):
    chat, run, _ = runs("llama")
    target = tmp_path / "out"
    mine = target
    if what == "folder":
        target.mkdir()
        mine = target / "thesis.tex"
    mine.write_text("mine")
    with pytest.raises(InputError) as caught:
        export(run, form="merged", to=target, chat=chat)
    assert str(caught.value) == f"{target} exists and is not an empty folder. Give a new folder with --to."
    assert mine.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [target]


def test_an_empty_target_is_taken(runs, in_process, tmp_path):
    chat, run, _ = runs("llama")
    export(run, form="adapter", to=tmp_path, chat=chat, check_prompts=1)
    assert (tmp_path / "adapter_config.json").exists()


def test_another_model_than_the_measured_one_is_refused(runs, tmp_path):
    chat, run, _ = runs("llama")
    other = saved_model(tmp_path / "other", "llama", seed=1)
    target = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        export(run, form="merged", to=target, chat=other)
    assert f"{other.name} is not the model that {run} calibrated: its weights or tokenizer have changed" in str(
        caught.value
    )
    assert f"({other.identity.content_hash[:12]}, not {chat.identity.content_hash[:12]})" in str(caught.value)
    assert nothing_left(target)


def test_a_model_folder_that_changed_since_is_refused(tmp_path):
    chat = saved_model(tmp_path / "model")
    passed_run(tmp_path / "run", chat)
    saved_model(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match="Calibrate it again"):
        export(tmp_path / "run", form="merged", to=tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_a_swapped_direction_is_refused(copy, tmp_path):
    from demur.directions import Direction, save_directions

    chat, run = copy
    other = Direction(torch.ones(chat.layout.d_model, dtype=torch.float64), -1, 1)
    save_directions(run / "directions.safetensors", {"false_refusal_direction": other})
    with pytest.raises(InputError, match="is not the direction that"):
        export(run, form="merged", to=tmp_path / "out", chat=chat)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("name", FAMILIES)
def test_shard_by_shard_is_the_same_checkpoint(runs, in_process, tmp_path, name):
    chat, run, _ = runs(name)
    export(run, form="merged", to=tmp_path / "memory", chat=chat, check_prompts=1)
    record = export(run, form="merged", to=tmp_path / "shards", low_memory=True)
    assert (record.logit_difference, record.checked_prompts) == (None, 0)
    assert record.untied_embeddings == (name in TIED)
    assert "Written shard by shard" in (tmp_path / "shards" / "README.md").read_text()
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / form).state_dict() for form in ("memory", "shards"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_shard_by_shard_needs_the_gate_and_the_right_edits(copy, tmp_path):
    chat, run = copy
    with pytest.raises(InputError, match="--low-memory writes merged checkpoints"):
        export(run, form="adapter", to=tmp_path / "out", low_memory=True)
    save_edits(run / "edits.safetensors", chat, DirectionalAblation(torch.ones(chat.layout.d_model)))
    with pytest.raises(GateError, match="is not of the operating point whose gate passed"):
        export(run, form="merged", to=tmp_path / "out", low_memory=True)
    edited(run / "summary.json", lambda record: record["gate"].update(decision="fail"))
    with pytest.raises(GateError, match="says fail"):
        export(run, form="merged", to=tmp_path / "out", low_memory=True)
    assert nothing_left(tmp_path / "out")


def test_records_that_claim_refusals_the_model_does_not_give_open_nothing(runs, real_verdicts, tmp_path):
    chat, run, _ = runs("llama")
    with pytest.raises(GateError, match=r"of 32 harmful test prompts .* records show 32 refusals .* now gives 0"):
        export(run, form="merged", to=tmp_path / "out", chat=chat)
    assert nothing_left(tmp_path / "out")


def test_refusals_lost_under_a_forced_opening_stop_the_export(runs, tmp_path):
    chat, _, _ = runs("llama")
    summary = passed_run(tmp_path / "run", chat, pressed=N // 2)
    assert summary.metrics.true_refusal_rate.after.k == N
    assert summary.gate.decision == "fail"
    with pytest.raises(GateError, match="Refusals are lost: under opening pressure"):
        export(tmp_path / "run", form="adapter", to=tmp_path / "out", chat=chat)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("change", [None, {"conditions": [], "families": []}])
def test_a_table_of_pressure_that_was_changed_by_hand_opens_nothing(runs, tmp_path, change):
    chat, _, _ = runs("llama")
    passed_run(tmp_path / "run", chat, pressed=N // 2)

    def pass_it(data):
        data["pressure"] = None if change is None else data["pressure"] | change
        data["gate"] |= {"decision": "pass", "reasons": []}

    edited(tmp_path / "run" / "summary.json", pass_it)
    with pytest.raises(GateError, match="do not give the gate"):
        export(tmp_path / "run", form="adapter", to=tmp_path / "out", chat=chat)


class _Answering:
    """Refuses what ships as harmful, and some that is harmless; inside the intervention it answers the first `lost`."""

    def __init__(self, lost, *, harmless_refused=0):
        self.lost, self.harmless_refused, self.folded = lost, harmless_refused, False
        self.harmful = {prompt.text for prompt in load_prompts("demur:harmful", label="harmful").prompts}

    @contextmanager
    def folded_into(self, _chat):
        self.folded = True
        yield
        self.folded = False

    def generate(self, prompts, **_options):
        answered = self.lost if self.folded else 0
        if not set(prompts) <= self.harmful:
            assert not self.harmful & set(prompts)
            answered = len(prompts) - self.harmless_refused
        answers = ["Sure, this is what the weather is like today."] * answered
        answers += ["I'm sorry, but I cannot help with that."] * (len(prompts) - len(answers))
        return [SimpleNamespace(text=text) for text in answers]


@pytest.mark.parametrize(("lost", "stopped"), [(0, False), (3, False), (14, True), (64, True)])
def test_refusals_of_shipped_harmful_prompts_must_stay(lost, stopped):
    fake = _Answering(lost)
    with pytest.raises(GateError, match="harmful prompts that ship with demur") if stopped else nullcontext():
        found = require_canaries(fake, fake, max_new_tokens=8)
        assert (found.n, found.lost) == (64, lost)


@pytest.mark.parametrize(("harmless_refused", "tells"), [(0, True), (32, True), (33, False), (64, False)])
def test_shipped_prompts_say_nothing_of_a_model_that_refuses_harmless_ones_alike(harmless_refused, tells):
    fake = _Answering(64, harmless_refused=harmless_refused)
    if tells:
        with pytest.raises(GateError, match="harmful prompts that ship with demur"):
            require_canaries(fake, fake, max_new_tokens=8)
    else:
        assert require_canaries(fake, fake, max_new_tokens=8) is None


# What goes wrong while writing --------------------------------------------------------------------------------------


def test_an_export_that_answers_otherwise_is_taken_back(runs, in_process, monkeypatch, tmp_path):
    import demur.calibration._export as module

    def damaged(chat, ablation, folder):
        write(chat, ablation, folder)
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        tensors = {name: 1.5 * tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})

    write = module.write_adapter
    monkeypatch.setattr(module, "write_adapter", damaged)
    chat, run, _ = runs("llama")
    with pytest.raises(InputError) as caught:
        export(run, form="adapter", to=tmp_path / "out", chat=chat, check_prompts=2)
    assert "not exported: reloaded in a fresh process, the adapter gives logits that differ by" in str(caught.value)
    assert "(limit 0.01 for float32). Use --format merged." in str(caught.value)
    assert nothing_left(tmp_path / "out")


def test_an_export_that_does_not_load_is_taken_back(runs, monkeypatch, in_process, tmp_path):
    import demur.calibration._export as module

    monkeypatch.setattr(module, "write_adapter", lambda _chat, _ablation, folder: folder.mkdir())
    chat, run, _ = runs("llama")
    with pytest.raises(ModelError, match="a fresh process could not load the export in"):
        export(run, form="adapter", to=tmp_path / "out", chat=chat, check_prompts=1)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_is_broken_off_leaves_nothing(runs, monkeypatch, tmp_path, error):
    import demur.calibration._export as module

    def broken(_chat, _ablation, folder):
        folder.mkdir()
        (folder / "half").write_text("x")
        raise error

    monkeypatch.setattr(module, "write_merged", broken)
    chat, run, _ = runs("llama")
    expected = RunFolderError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        export(run, form="merged", to=tmp_path / "out", chat=chat)
    if expected is RunFolderError:
        assert f"cannot write {tmp_path / 'out'}: No space left on device. Give a folder" in str(caught.value)
    assert nothing_left(tmp_path / "out")


def test_a_resumed_run_with_verdicts_of_two_operating_points_counts_the_last(copy, tmp_path, in_process):
    """A run that is continued on other hardware may end at a direction that differs in its last digits."""
    chat, run = copy
    folder = RunFolder(run)
    lines = folder.completions.path.read_text().splitlines()
    stale = [
        json.dumps({**json.loads(line), "key": "old", "verdict": "unjudged"})
        for line in lines
        if CALIBRATED_MODEL in line
    ][:5]
    folder.completions.path.write_text("\n".join([*stale, *lines]) + "\n")
    record = export(run, form="adapter", to=tmp_path / "out", chat=chat, check_prompts=1)
    assert record.gate.decision == "pass"


def test_there_is_no_way_around_the_gate():
    """No parameter of the export, of the command or of the environment mentions one."""
    import inspect

    assert set(inspect.signature(export).parameters) == {"run", "form", "to", "chat", "check_prompts", "low_memory"}
    done = subprocess.run(
        [sys.executable, "-m", "demur", "export", "--help"], capture_output=True, text=True, check=True
    )
    assert "force" not in done.stdout.lower()
    assert "skip" not in done.stdout.lower()


def test_the_operating_point_of_a_fabricated_run_is_its_direction(runs):
    """The fabrication is consistent, so the refusals above are refused for their own reasons."""
    chat, run, summary = runs("llama")
    intervention, point = load_operating_point(chat, RunFolder(run))
    assert intervention.fingerprint == point.fingerprint
    assert {label: summary.prompts[label].splits["test"] for label in LABELS} == dict.fromkeys(LABELS, N)
    assert Path(chat.name).is_dir()


def test_the_command_says_what_a_norm_after_the_write_means(runs, in_process, tmp_path, capsys):
    from demur.cli import main

    _, run, _ = runs("gemma2")
    edited(run / "summary.json", lambda record: record["layout"].update(verdict="removed_not_identical"))
    assert main(["export", str(run), "--format", "merged", "--to", str(tmp_path / "out"), "--low-memory"]) == 0
    assert "are not the same as removing it at run time" in " ".join(capsys.readouterr().err.split())
