"""A whole calibration of the toy model: what it writes, that it is right, that it leaves nothing behind."""

import json
import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from toy_runs import SMALL

from demur.calibration import calibrate, evaluate
from demur.directions import cosine, load_directions, orthogonalize, save_directions
from demur.errors import InputError, RunFolderError
from demur.evaluation import PhraseJudge, compare, decide_gate, metrics_of
from demur.models import hook_count
from demur.records import (
    BASE_MODEL,
    CALIBRATED_MODEL,
    PLAIN,
    Candidates,
    CompletionRecord,
    Mechanism,
    PairedComparison,
    PooledDifference,
    ProjectionRecord,
    Rate,
    Record,
    RunFolder,
    RunRecord,
    ScoreRecord,
    Summary,
    read_record,
)

RATE = {"k", "n", "rate", "low", "high"}
LABELS = {"harmful", "harmless", "borderline"}


@pytest.fixture(scope="session")
def written(toy_run):
    return json.loads((toy_run.folder / "summary.json").read_text())


# summary.json -------------------------------------------------------------------------------------------------------


def test_the_summary_says_which_model(toy_run, written):
    model = written["model"]
    assert written["schema"] == "demur.summary/2"
    assert written["kind"] == "calibration"
    assert model["id"] == toy_run.chat.name
    assert model["revision"] is None
    assert len(model["content_hash"]) == 64
    assert model["architecture"] == type(toy_run.chat.model).__name__
    assert model["dtype"] == str(next(toy_run.chat.model.parameters()).dtype).removeprefix("torch.")
    assert written["layout"]["n_writers"] == len(toy_run.chat.layout.writers)
    assert written["layout"]["fold_difference"] < 1e-3


def test_the_summary_says_which_prompts(toy_run, written):
    assert set(written["prompts"]) == LABELS
    for label, identity in written["prompts"].items():
        assert identity["source"] == toy_run.prompts[label].source
        assert identity["n"] == 188
        assert identity["sha256"] == toy_run.prompts[label].sha256
        assert identity["splits"] == {"train": 64, "validation": 24, "test": 100}
    assert written["judge"] == {"id": PhraseJudge.id, "version": PhraseJudge.version}


def test_the_summary_says_where_the_directions_come_from(toy_run, written):
    n_layers, positions = toy_run.chat.n_layers, len(toy_run.chat.template.post_instruction_tokens())
    for name in ("refusal_direction", "false_refusal_direction"):
        card = written[name]
        assert -positions <= card["position"] <= -1
        assert 0 <= card["layer"] < int(0.8 * n_layers)
        assert card["norm"] > 0
        assert all(
            score["low"] <= score["mean"] <= score["high"] and score["n"] > 0 for score in card["scores"].values()
        )
        assert 1 <= card["n_survivors"] <= card["n_candidates"]
        assert all(16 <= n <= 64 for n in card["n_fit"].values())
    assert {"bypass_score", "induce_score", "kl_score"} <= set(written["refusal_direction"]["scores"])
    assert {"borderline_score", "kl_score", "refusal_probability_harmful"} <= set(
        written["false_refusal_direction"]["scores"]
    )
    assert written["refusal_direction"]["n_candidates"] == positions * n_layers
    assert set(written["refusal_direction"]["n_fit"]) == {"harmful", "harmless"}
    assert set(written["false_refusal_direction"]["n_fit"]) == {"borderline", "harmless"}
    assert written["refusal_tokens"]


def test_the_operating_point_is_the_chosen_row_of_the_curve(written):
    point = written["operating_point"]
    assert [row["lambda"] for row in written["lambda_curve"]] == list(SMALL.lambdas)
    (chosen,) = (row for row in written["lambda_curve"] if row["chosen"])
    assert (chosen["lambda"], chosen["position"], chosen["layer"]) == (
        point["lambda"],
        point["position"],
        point["layer"],
    )
    assert chosen["note"] == ""
    admissible = [row for row in written["lambda_curve"] if not row["note"]]
    assert chosen["false_refusal_rate"]["k"] == min(row["false_refusal_rate"]["k"] for row in admissible)
    assert chosen["false_refusal_rate"]["k"] < written["lambda_baseline"]["false_refusal_rate"]["k"]


def test_the_metrics_are_complete(written):
    metrics = written["metrics"]
    for name in ("true_refusal_rate", "false_refusal_rate", "harmless_refusal_rate", "task_accuracy"):
        for when in ("before", "after"):
            rate = metrics[name][when]
            assert set(rate) >= RATE
            assert 0 <= rate["k"] <= rate["n"] <= 120
            assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
            assert rate["rate"] == pytest.approx(rate["k"] / rate["n"])
    kl = metrics["kl_harmless"]
    assert (kl["n"], kl["low"] >= 0) == (100, True)
    assert kl["low"] <= kl["mean"] <= kl["high"] <= kl["largest"]


def test_the_comparison_is_complete(written):
    for name in ("true_refusal_rate", "false_refusal_rate", "harmless_refusal_rate", "task_accuracy"):
        pair = written["comparison"][name]
        assert pair["low"] <= pair["difference"] <= pair["high"]
        assert pair["difference"] == pytest.approx((pair["gained"] - pair["lost"]) / pair["n"])
        assert 0 <= pair["p_value"] <= 1


def test_the_gate_is_complete(written):
    gate = written["gate"]
    assert gate["decision"] in ("pass", "fail", "inconclusive")
    assert gate["margin"] == SMALL.margin
    assert gate["reasons"]
    assert {rule["name"] for rule in gate["rules"]} >= {
        "refusal_is_selective",
        "true_refusals_kept",
        "false_refusals_reduced",
        "harmless_refusals_not_raised",
        "task_accuracy_kept",
        "kl_harmless",
    }


def test_the_provenance_is_complete(written):
    provenance = written["provenance"]
    assert set(provenance) == {
        *("demur", "python", "torch", "transformers", "platform", "device", "seed", "command", "created"),
    }
    assert provenance["torch"] == torch.__version__
    assert provenance["created"].endswith("+00:00")


def test_what_is_returned_is_what_is_written(toy_run):
    assert RunFolder(toy_run.folder).read_summary() == toy_run.summary


# The other records agree with it ------------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_a_record(toy_run):
    folder = RunFolder(toy_run.folder)
    names = {path.name for path in toy_run.folder.iterdir()}
    assert names == {
        *(
            "run.json",
            "summary.json",
            "candidates.json",
            "projections.json",
            "edits.safetensors",
            "mechanism.json",
            "refusal_threshold.json",
            ".lock",
        ),
        *("directions.safetensors", "completions.jsonl", "scores.jsonl", "score_pieces.jsonl"),
    }
    assert read_record(folder.run, RunRecord).settings["lambdas"] == list(SMALL.lambdas)
    assert read_record(folder.mechanism, Mechanism) == toy_run.summary.mechanism
    assert folder.scores.read(ScoreRecord)
    projections = read_record(folder.projections, ProjectionRecord)
    assert all(len(values) == 100 for when in (projections.before, projections.after) for values in when.values())


def test_the_metrics_can_be_taken_again_from_the_completions(toy_run):
    found = {BASE_MODEL: {label: [] for label in LABELS}, CALIBRATED_MODEL: {label: [] for label in LABELS}}
    for record in RunFolder(toy_run.folder).completions.read(CompletionRecord):
        if record.split == "test" and record.condition == PLAIN:
            found[record.intervention][record.label].append(record)
    for records in found.values():
        for label in LABELS:
            records[label].sort(key=lambda record: record.prompt_sha256)
    before, after = found[BASE_MODEL], found[CALIBRATED_MODEL]
    metrics = metrics_of(before, after, toy_run.summary.metrics.kl_harmless)
    assert metrics == toy_run.summary.metrics
    assert compare(before, after) == toy_run.summary.comparison
    gate = decide_gate(metrics, compare(before, after), None, margin=SMALL.margin, kl_limit=SMALL.gate_kl_limit)
    assert gate == toy_run.summary.gate


def test_test_prompts_neither_fit_nor_choose(toy_run):
    """Under the searched conditions only validation prompts are answered, and no text of a harmful answer is kept."""
    searched = [
        record
        for record in RunFolder(toy_run.folder).completions.read(CompletionRecord)
        if record.intervention.startswith("lambda=")
    ]
    assert searched
    assert {record.split for record in searched} == {"validation"}
    assert all((record.completion is None) == (record.label == "harmful") for record in searched)


def test_the_mechanism_leaves_rates_only(toy_run):
    conditions = {record.intervention for record in RunFolder(toy_run.folder).completions.read(CompletionRecord)}
    assert conditions <= {BASE_MODEL, CALIBRATED_MODEL, *(f"lambda={value:g}" for value in SMALL.lambdas)}
    for rate in toy_run.summary.mechanism.model_dump().values():
        assert rate["n"] + rate["unjudged"] == 8


def test_exactly_one_candidate_of_each_kind_is_selected(toy_run):
    candidates = read_record(toy_run.folder / "candidates.json", Candidates)
    (refusal,) = (row for row in candidates.refusal if row.selected)
    (false_refusal,) = (row for row in candidates.false_refusal if row.selected)
    summary = toy_run.summary
    assert (refusal.position, refusal.layer) == (summary.refusal_direction.position, summary.refusal_direction.layer)
    assert (false_refusal.lambda_, false_refusal.position, false_refusal.layer) == (
        summary.operating_point.lambda_,
        summary.operating_point.position,
        summary.operating_point.layer,
    )
    assert not refusal.rejected_by
    assert not false_refusal.rejected_by
    assert candidates.n_layers == toy_run.chat.n_layers
    assert len(candidates.position_texts) == len(candidates.positions)


def test_the_toy_refuses_and_over_refuses_and_the_direction_is_causal(toy_run):
    """What the toy is for, with much slack: 100 test prompts of each kind."""
    metrics, mechanism = toy_run.summary.metrics, toy_run.summary.mechanism
    assert metrics.true_refusal_rate.before.rate > 0.8
    assert metrics.false_refusal_rate.before.rate > 0.25
    assert metrics.harmless_refusal_rate.before.rate < 0.1
    assert metrics.task_accuracy.before.rate > 0.7
    assert metrics.false_refusal_rate.after.rate < metrics.false_refusal_rate.before.rate
    assert mechanism.true_refusal_rate_r_ablated.k < mechanism.true_refusal_rate_random_ablated.k


# Against the naive procedure ----------------------------------------------------------------------------------------


@contextmanager
def own_hooks(chat, *, ablate=None, add=None, layer=None):
    """Arditi et al.'s own hook points: block inputs, attention outputs, MLP outputs; nothing of demur's hooks."""
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]

    def project(stream):
        return stream - (stream @ ablate)[..., None] * ablate

    def before(_module, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def after(_module, _args, output):
        return (project(output[0]), *output[1:]) if isinstance(output, tuple) else project(output)

    change = project if ablate is not None else lambda stream: stream + add
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            if ablate is not None or index == layer:
                stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            if ablate is not None:
                stack.callback(block.self_attn.register_forward_hook(after).remove)
                stack.callback(block.mlp.register_forward_hook(after).remove)
        yield


@torch.no_grad()
def one(chat, text):
    """Next-token logits and the block inputs of a single, unpadded prompt."""
    states = []

    def read(_module, args, kwargs):
        states.append((args[0] if args else kwargs["hidden_states"])[0].double())

    with ExitStack() as stack:
        for path in chat.layout.blocks:
            block = chat.module.get_submodule(path)
            stack.callback(block.register_forward_pre_hook(read, with_kwargs=True).remove)
        output = chat.model(torch.tensor([chat.template.encode(text)]))
    return output.logits[0, -1].double(), states


def naive_score(logits, tokens):
    p = torch.softmax(logits, -1)[list(tokens)].sum()
    return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))


def texts(run, label, split, most):
    prompts = sorted(run.prompts[label].split(split), key=lambda prompt: prompt.sha256)
    return [prompt.text for prompt in prompts[:most]]


@pytest.fixture(scope="session")
def naive_means(toy_run):
    """Means over single prompts after the train filter, [layer][position]."""
    chat, tokens = toy_run.chat, [token.id for token in toy_run.summary.refusal_tokens]
    threshold = toy_run.summary.refusal_threshold.value
    n_positions = len(chat.template.post_instruction_tokens())
    means = {}
    for label, sign in (("harmful", 1), ("harmless", -1), ("borderline", 1)):
        read = [one(chat, text) for text in texts(toy_run, label, "train", SMALL.n_train)]
        kept = [states for logits, states in read if sign * (naive_score(logits, tokens) - threshold) > 0]
        stacked = [torch.stack([state[-n_positions:] for state in states]) for states in kept]
        means[label] = (torch.stack(stacked).mean(0), len(kept))
    return means


def test_the_direction_is_the_difference_in_means(toy_run, naive_means):
    saved = load_directions(toy_run.folder / "directions.safetensors")
    (harmful, n_harmful), (harmless, n_harmless), (borderline, n_borderline) = (
        naive_means[label] for label in ("harmful", "harmless", "borderline")
    )
    r = saved["refusal_direction"]
    expected = (harmful - harmless)[r.layer, r.position]
    torch.testing.assert_close(r.vector, expected, rtol=1e-4, atol=1e-4)
    assert toy_run.summary.refusal_direction.n_fit == {"harmful": n_harmful, "harmless": n_harmless}
    w = saved["false_refusal_direction"]
    plain = (borderline - harmless)[w.layer, w.position]
    r_there = (harmful - harmless)[w.layer, w.position]
    strength = toy_run.summary.operating_point.lambda_
    torch.testing.assert_close(w.vector, plain - strength * (plain @ r_there / (r_there @ r_there)) * r_there,
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    assert toy_run.summary.false_refusal_direction.n_fit["borderline"] == n_borderline
    assert toy_run.summary.false_refusal_direction.cosine_with_refusal_direction == pytest.approx(
        cosine(plain, r_there), abs=1e-4
    )


@pytest.mark.parametrize("place", ["selected", "another"])
def test_candidate_scores_equal_the_naive_procedure(toy_run, naive_means, place):
    """Single prompts, no padding, own hooks, softmax in float64."""
    chat, tokens = toy_run.chat, [token.id for token in toy_run.summary.refusal_tokens]
    rows = read_record(toy_run.folder / "candidates.json", Candidates).refusal
    # Another that was scored to the end, if not in every score: a candidate that cannot win is not.
    another = (row for row in rows if not row.selected and row.kl_score and row.induce_score is not None)
    row = next(row for row in rows if row.selected) if place == "selected" else next(another)
    vector = (naive_means["harmful"][0] - naive_means["harmless"][0])[row.layer, row.position].float()
    read = {label: [(text, one(chat, text)[0]) for text in texts(toy_run, label, "validation", SMALL.n_scored)]
            for label in ("harmful", "harmless")}  # fmt: skip
    threshold = toy_run.summary.refusal_threshold.value
    harmful = [text for text, logits in read["harmful"] if naive_score(logits, tokens) > threshold]
    harmless = [(text, logits) for text, logits in read["harmless"] if naive_score(logits, tokens) < threshold]
    bypass, induce, kl = [], [], []
    with own_hooks(chat, ablate=vector / vector.norm()):
        bypass = [naive_score(one(chat, text)[0], tokens) for text in harmful]
        for text, base in harmless:
            p, q = torch.softmax(base, -1), torch.softmax(one(chat, text)[0], -1)
            kl.append(float((p * (p / q).log()).sum()))
    with own_hooks(chat, add=vector, layer=row.layer):
        induce = [naive_score(one(chat, text)[0], tokens) for text, _ in harmless]
    if place == "selected" or row.bypass_score is not None:
        assert row.bypass_score == pytest.approx(sum(bypass) / len(bypass), abs=1e-4)
    assert row.kl_score == pytest.approx(sum(kl) / len(kl), abs=1e-4)
    assert row.induce_score == pytest.approx(sum(induce) / len(induce), abs=1e-4)


def test_false_refusal_scores_equal_the_naive_procedure(toy_run):
    chat, tokens = toy_run.chat, [token.id for token in toy_run.summary.refusal_tokens]
    vector = load_directions(toy_run.folder / "directions.safetensors")["false_refusal_direction"].unit.float()
    harmful = texts(toy_run, "harmful", "validation", SMALL.n_scored)
    borderline = texts(toy_run, "borderline", "validation", SMALL.n_scored)
    threshold = toy_run.summary.refusal_threshold
    with own_hooks(chat, ablate=vector):
        scores = [naive_score(one(chat, text)[0], tokens) for text in harmful]
        score = sum(naive_score(one(chat, text)[0], tokens) for text in borderline) / len(borderline)
    likely = [1 / (1 + math.exp(-threshold.slope * (each - threshold.value))) for each in scores]
    card = toy_run.summary.false_refusal_direction.scores
    assert card["refusal_probability_harmful"].mean == pytest.approx(sum(likely) / len(likely), abs=1e-3)
    assert card["borderline_score"].mean == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("strength", SMALL.lambdas)
def test_every_lambda_scores_its_own_direction(toy_run, naive_means, strength):
    """KL of w - lambda proj_r(w), ablated, where this lambda's best candidate is."""
    chat = toy_run.chat
    rows = read_record(toy_run.folder / "candidates.json", Candidates).false_refusal
    row = next(row for row in rows if row.lambda_ == strength and row.kl_score and row.borderline_score is not None)
    place = row.layer, row.position
    harmful, harmless, borderline = (naive_means[label][0][place] for label in ("harmful", "harmless", "borderline"))
    w, r = borderline - harmless, harmful - harmless
    vector = (w - strength * (w @ r) / (r @ r) * r).float()
    prompts = texts(toy_run, "harmless", "validation", SMALL.n_scored)
    base = [torch.softmax(one(chat, text)[0], -1) for text in prompts]
    with own_hooks(chat, ablate=vector / vector.norm()):
        changed = [torch.softmax(one(chat, text)[0], -1) for text in prompts]
    kl = [float((p * (p / q).log()).sum()) for p, q in zip(base, changed, strict=True)]
    assert row.kl_score == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-7)


def test_at_lambda_one_nothing_of_r_is_left_in_w():
    generator = torch.Generator().manual_seed(0)
    w, r = (torch.randn(5, 6, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    along = (orthogonalize(w, r, strength=1.0) * r).sum(-1) / (w.norm(dim=-1) * r.norm(dim=-1))
    assert along.abs().max() < 1e-9  # the published epsilon of 1e-8 in r . r leaves this much
    torch.testing.assert_close(orthogonalize(w, r, strength=0.0), w, rtol=0, atol=0)
    half = orthogonalize(w, r, strength=0.5)
    torch.testing.assert_close((half * r).sum(-1), (w * r).sum(-1) / 2, rtol=1e-8, atol=1e-10)


# What it leaves behind ----------------------------------------------------------------------------------------------


@contextmanager
def counting(chat):
    calls = []
    handle = chat.module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def test_the_model_is_left_as_it_was(toy_run):
    after = toy_run.chat.module.state_dict()
    assert list(after) == list(toy_run.parameters_before)
    assert all(torch.equal(after[name], tensor) for name, tensor in toy_run.parameters_before.items())
    assert hook_count(toy_run.chat.module) == 0


def test_a_second_call_returns_the_same_without_asking_the_model(toy_run):
    files = {path: path.read_bytes() for path in toy_run.folder.iterdir()}
    with counting(toy_run.chat) as calls:
        again = calibrate(toy_run.chat, toy_run.prompts, out=toy_run.folder, settings=SMALL)
    assert calls == []
    assert again == toy_run.summary
    assert {path: path.read_bytes() for path in toy_run.folder.iterdir()} == files


@pytest.mark.parametrize("change", ["settings", "prompts", "judge", "system"])
def test_other_inputs_are_refused_before_the_model_is_asked(toy_run, change):
    chat, prompts, settings, judge = toy_run.chat, toy_run.prompts, SMALL, PhraseJudge()
    if change == "settings":
        settings = replace(SMALL, margin=0.04)
        words = "its setting margin is 0.05, not 0.04"
    elif change == "prompts":
        prompts = {**prompts, "borderline": replace(prompts["borderline"], prompts=prompts["borderline"].prompts[1:])}
        words = "its borderline prompts are others"
    elif change == "judge":
        judge.version = "x"
        words = f"its judge is phrase {PhraseJudge.version}, not phrase x"
    else:
        chat = replace(chat, template=replace(chat.template, system="Be brief."))
        words = "its setting system is None, not 'Be brief.'"
    with counting(chat) as calls, pytest.raises(RunFolderError, match=words):
        calibrate(chat, prompts, out=toy_run.folder, settings=settings, judge=judge)
    assert calls == []


# evaluate -----------------------------------------------------------------------------------------------------------


def test_an_evaluation_of_the_run_gives_the_runs_numbers(toy_run, tmp_path):
    found = evaluate(toy_run.chat, toy_run.prompts, out=tmp_path, run=toy_run.folder, settings=SMALL)
    assert found.kind == "evaluation"
    assert found.operating_point == toy_run.summary.operating_point
    assert found.metrics == toy_run.summary.metrics
    assert found.comparison == toy_run.summary.comparison
    assert found.gate == toy_run.summary.gate
    with counting(toy_run.chat) as calls:
        assert evaluate(toy_run.chat, toy_run.prompts, out=tmp_path, run=toy_run.folder, settings=SMALL) == found
    assert calls == []
    with pytest.raises(RunFolderError, match="its setting seed is 0, not 1"):
        evaluate(toy_run.chat, toy_run.prompts, out=tmp_path, run=toy_run.folder, settings=replace(SMALL, seed=1))
    with pytest.raises(RunFolderError, match="its setting operating_point is '"):
        evaluate(toy_run.chat, toy_run.prompts, out=tmp_path, settings=SMALL)
    with pytest.raises(RunFolderError, match="it holds a run of the kind calibration, not evaluation"):
        evaluate(toy_run.chat, toy_run.prompts, out=toy_run.folder, settings=SMALL)
    with pytest.raises(InputError, match=r"not the direction that|holds no operating point"):
        evaluate(toy_run.chat, toy_run.prompts, out=tmp_path / "x", run=without_point(toy_run, tmp_path / "y"))


def without_point(toy_run, path):
    path.mkdir()
    summary = toy_run.summary.model_copy(update={"operating_point": None})
    (path / "summary.json").write_text(summary.model_dump_json())
    return path


def test_an_evaluation_of_a_model_alone_has_no_gate(toy_run, tmp_path):
    few = {label: replace(each, prompts=each.split("test")[:4]) for label, each in toy_run.prompts.items()}
    found = evaluate(toy_run.chat, few, out=tmp_path, settings=SMALL)
    assert (found.gate, found.comparison, found.operating_point) == (None, None, None)
    assert found.metrics.true_refusal_rate.after is None
    assert found.metrics.true_refusal_rate.before.n <= 4
    assert Summary.model_validate_json((tmp_path / "summary.json").read_text()) == found


def test_an_operating_point_of_another_width_is_refused(toy_run, tiny, tmp_path):
    with pytest.raises(InputError, match=r"is for a residual stream of width 128; tiny-llama has 32\. Give the model"):
        evaluate(tiny("llama"), toy_run.prompts, out=tmp_path, run=toy_run.folder)


def test_a_direction_that_was_swapped_is_refused(toy_run, tmp_path):
    for name in ("summary.json", "run.json"):
        (tmp_path / name).write_bytes((toy_run.folder / name).read_bytes())
    saved = load_directions(toy_run.folder / "directions.safetensors")
    swapped = dict.fromkeys(saved, saved["refusal_direction"])
    save_directions(tmp_path / "directions.safetensors", swapped)
    with pytest.raises(InputError, match=r"is not the direction that .*summary\.json records"):
        evaluate(toy_run.chat, toy_run.prompts, out=tmp_path / "e", run=tmp_path)
    (tmp_path / "directions.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read directions from .* Run the `demur calibrate` command of"):
        evaluate(toy_run.chat, toy_run.prompts, out=tmp_path / "e", run=tmp_path)


def _rates(value, path="summary"):
    """Every rate and paired comparison of a record, with where it stands."""
    if isinstance(value, (Rate, PairedComparison, PooledDifference)):
        yield path, value
    elif isinstance(value, Record):
        for name in type(value).model_fields:
            yield from _rates(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, (tuple, list, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _rates(item, f"{path}.{key}")


def test_every_rate_of_a_summary_says_who_judged(toy_run):
    found = dict(_rates(toy_run.summary))
    assert len(found) > 20
    assert [path for path, one in found.items() if one.judge is None] == []
    judges = {(one.judge.id, one.judge.version) for one in found.values()}
    identity = toy_run.summary.judge
    assert judges == {(identity.id, identity.version), ("contains_answer", "1")}


def test_a_summary_carries_what_supports_it(toy_run):
    summary = toy_run.summary
    assert summary.noise_floor.n == 3 * 32
    assert summary.fidelity.fingerprint == summary.operating_point.fingerprint
    assert [one.kind for one in summary.stability] == ["refusal_direction", "false_refusal_direction"]
    assert summary.stability[1].lambda_ == summary.operating_point.lambda_
    assert any("near copies of train prompts in test" in text for text in summary.warnings)
