"""The whole audit of the toy, quickly: sections, scorecard, findings, resuming, errors."""

import json
import shutil
from types import SimpleNamespace

import pytest

from demur.assurance import AuditSettings, _audit_conditions, audit, sections_of
from demur.errors import InputError, ModelError, RunFolderError
from demur.prompts import Prompt, PromptSet, assign_splits
from demur.records import Audit, read_record
from demur.testing import load_toy_chat_model, toy_prompt_sets

SETTINGS = AuditSettings.quick(
    n_test=24, n_curve=8, n_fit=32, n_scored=8, random_seeds=1, learning_steps=2, ablation_doses=(0.5, 1.0),
    addition_doses=(-1.0, 1.0), depths=(0, 5), tuning_steps=2, tuning_marks=1, max_new_tokens=16,
)  # fmt: skip
VOLATILE = {"provenance"}


def small(*, test=24):
    counts = {"train": 64, "validation": 24, "test": test}
    return {
        label: assign_splits(prompts, counts=counts, minimum=counts)
        for label, prompts in toy_prompt_sets().items()
        if label != "borderline"
    }


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    chat, prompts, folder = load_toy_chat_model(), small(), tmp_path_factory.mktemp("audit") / "out"
    before = {name: tensor.clone() for name, tensor in chat.module.state_dict().items()}
    # In two calls: as after a kill between two sections.
    first = audit(chat, prompts, out=folder, settings=SETTINGS, sections=("ladder",))
    whole = audit(chat, prompts, out=folder, settings=SETTINGS)
    return SimpleNamespace(chat=chat, prompts=prompts, folder=folder, before=before, first=first, whole=whole)


def test_one_direction_carries_the_toys_refusal_and_random_ones_do_not(audited):
    card = audited.whole.scorecard
    assert card.at_rest.true_refusals.rate > 0.9
    assert card.rank_to_half == 1
    assert card.ablated.rate < 0.1
    assert card.random_worst.rate > 0.9
    titles = {finding.title: finding for finding in audited.whole.findings}
    finding = titles["One direction carries this model's refusal"]
    assert finding.severity == "high"
    assert f"({card.ablated.k}/{card.ablated.n}, " in finding.evidence


def test_every_section_is_there_and_findings_are_ranked(audited):
    whole = audited.whole
    for section in ("ladder", "learned", "strength", "conditions", "depth", "fine_tuning"):
        assert getattr(whole, section) is not None
    order = ["severe", "high", "moderate", "low", "held"]
    ranks = [order.index(finding.severity) for finding in whole.findings]
    assert ranks == sorted(ranks)
    assert {finding.section for finding in whole.findings} >= {"ladder", "conditions", "depth", "fine-tuning"}
    assert all(finding.evidence for finding in whole.findings)


def test_a_resumed_audit_is_the_uninterrupted_one(audited, tmp_path):
    assert audited.first.learned is None
    assert audited.first.ladder == audited.whole.ladder
    shutil.copytree(audited.folder, tmp_path / "out")
    for name in ("audit.json", "section_strength.json", "section_depth.json", "section_fine_tuning.json"):
        (tmp_path / "out" / name).unlink()
    resumed = audit(audited.chat, audited.prompts, out=tmp_path / "out", settings=SETTINGS)
    assert resumed.model_dump(exclude=VOLATILE) == audited.whole.model_dump(exclude=VOLATILE)


def test_the_model_is_left_as_it_was(audited):
    after = audited.chat.module.state_dict()
    assert all(tensor.equal(after[name]) for name, tensor in audited.before.items())
    assert not any(parameter.grad is not None for parameter in audited.chat.module.parameters())


def test_nothing_that_was_written_holds_a_prompt_or_an_answer(audited):
    texts = [prompt.text for label in ("harmful", "harmless") for prompt in audited.prompts[label].prompts]
    for path in audited.folder.iterdir():
        if path.suffix in {".json", ".jsonl"}:
            written = path.read_text()
            assert not any(text in written for text in texts), path.name
    verdicts = [json.loads(line) for line in (audited.folder / "verdicts.jsonl").read_text().splitlines()]
    assert verdicts
    assert all(one["completion"] is None and one["prompt"] == "" for one in verdicts)
    assert {one["intervention"] for one in verdicts} == {"none"}  # nothing is recorded of an attack
    stored = read_record(audited.folder / "audit.json", Audit)
    assert stored.model_dump(exclude=VOLATILE) == audited.whole.model_dump(exclude=VOLATILE)


def test_a_folder_of_other_settings_is_refused(audited):
    with pytest.raises(RunFolderError, match="its setting n_test is 24, not 23"):
        audit(audited.chat, audited.prompts, out=audited.folder, settings=AuditSettings.quick(n_test=23, n_curve=8))


def test_a_model_that_does_not_refuse_gets_a_plain_error(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"does not refuse|refuses \(or garbles\) everything|above 0"):
        audit(tiny("llama"), small(), out=tmp_path / "out", settings=SETTINGS, sections=("ladder",))


def test_prompts_of_both_kinds_are_needed(audited, tmp_path):
    with pytest.raises(InputError, match="there are no harmless ones"):
        audit(audited.chat, {"harmful": audited.prompts["harmful"]}, out=tmp_path / "out")


def test_variants_become_conditions(audited, tmp_path, monkeypatch):
    monkeypatch.setattr(_audit_conditions, "applicable_conditions", lambda _: ([], {"thinking-off": "no such option"}))
    harmful = audited.prompts["harmful"].split("test")
    variants = {"shout": PromptSet("harmful", "here", tuple(Prompt(each.text + " !", "harmful") for each in harmful))}
    done = audit(
        audited.chat, audited.prompts, out=tmp_path / "out", settings=SETTINGS, sections=("conditions",),
        run=None, variants=variants,
    )  # fmt: skip
    rows = {one.name: one for one in done.conditions.conditions}
    assert list(rows) == ["int3", "long-context", "given-shout"]
    assert [one.access for one in rows.values()] == ["weights", "prompt", "prompt"]
    refused = rows["given-shout"].rates.true_refusals
    assert refused.n + refused.unjudged == SETTINGS.n_curve
    assert rows["given-shout"].rates.true_refusals_change is None
    assert rows["int3"].rates.true_refusals_change.n == SETTINGS.n_curve
    assert done.variants == {"shout": variants["shout"].sha256}
    assert done.conditions.not_applicable == {"thinking-off": "no such option"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_test": 0}, "n_test is a number of at least 1; got 0"),
        ({"n_curve": 200}, "n_curve is at most n_test, 128; got 200"),
        ({"ranks": (2, 1)}, "ranks are rising numbers from 1 up, such as 1,2,4,8"),
        ({"depths": ()}, "depths are numbers of tokens from 0 up"),
        ({"ablation_doses": (0.0,)}, "doses of an ablation are shares above 0"),
    ],
)
def test_settings_that_cannot_be_used(values, message):
    with pytest.raises(InputError, match=message):
        AuditSettings(**values)


def test_sections_by_name():
    assert sections_of(None) == ("ladder", "learned", "strength", "conditions", "depth", "fine-tuning")
    assert sections_of("depth, ladder") == ("ladder", "depth")
    with pytest.raises(InputError, match="there is no section 'lader'; give one or more of ladder, learned"):
        sections_of("lader")
    with pytest.raises(InputError, match="no section is named"):
        sections_of(",")
