"""Records: what is written is read back, and nothing else passes."""

import json
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError
from record_samples import RECORDS, least, sample

from demur.errors import RunFolderError
from demur.records import (
    Candidates,
    CandidateScores,
    ExportRecord,
    FalseRefusalScores,
    JsonLines,
    LambdaPoint,
    Mean,
    ProjectionRecord,
    Rate,
    RunRecord,
    Summary,
    canonical_json,
    read_record,
    write_record,
)

VERSIONED = [Summary, Candidates, ProjectionRecord, ExportRecord, RunRecord]


def test_the_list_of_records_is_not_empty():
    assert len(RECORDS) > 25


@pytest.mark.parametrize("make", [sample, least])
@pytest.mark.parametrize("kind", RECORDS)
def test_every_record_survives_the_disk(kind, make, tmp_path):
    record = make(kind)
    path = tmp_path / "record.json"
    write_record(path, record)
    assert read_record(path, kind) == record
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append([record, record])
    assert lines.read(kind) == [record, record]
    assert len((tmp_path / "lines.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("kind", RECORDS)
def test_json_keys_are_the_documented_words(kind):
    text = sample(kind).model_dump_json()
    assert not re.search(r'"\w+_":', text)


@pytest.mark.parametrize("kind", [LambdaPoint, FalseRefusalScores])
def test_lambda_is_called_lambda_in_json(kind):
    assert "lambda" in json.loads(sample(kind).model_dump_json())


@pytest.mark.parametrize("kind", RECORDS)
def test_unknown_keys_are_refused(kind, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(sample(kind).model_dump_json()) | {"colour": "red"}))
    with pytest.raises(RunFolderError, match="colour: Extra inputs are not permitted"):
        read_record(path, kind)


@pytest.mark.parametrize("kind", RECORDS)
def test_records_are_frozen(kind):
    record = sample(kind)
    name = next(iter(kind.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, name, getattr(record, name))


@pytest.mark.parametrize("kind", VERSIONED)
def test_another_schema_version_is_refused_by_name(kind, tmp_path):
    data = json.loads(sample(kind).model_dump_json())
    name, _, number = data["schema"].partition("/")
    assert name.startswith("demur.")
    assert int(number) >= 1
    path = tmp_path / "record.json"
    path.write_text(json.dumps(data | {"schema": f"{name}/99"}))
    with pytest.raises(RunFolderError) as caught:
        read_record(path, kind)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a {kind.__name__} that this version of demur reads: schema: ")
    assert f"'{name}/{number}'" in message
    assert message.endswith("Run the command that wrote it again with this version.")


@pytest.mark.parametrize("kind", VERSIONED)
def test_the_schema_is_the_first_key(kind):
    assert next(iter(json.loads(sample(kind).model_dump_json()))) == "schema"


def test_a_nested_mistake_is_named_by_its_place(tmp_path):
    data = json.loads(sample(Summary).model_dump_json())
    data["metrics"]["true_refusal_rate"]["before"]["k"] = "many"
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match=r"metrics\.true_refusal_rate\.before\.k: "):
        read_record(path, Summary)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_json_object_is_refused(text, tmp_path):
    path = tmp_path / "rate.json"
    path.write_text(text)
    with pytest.raises(RunFolderError, match=r"rate\.json is not a Rate that this version of demur reads: the file: "):
        read_record(path, Rate)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot read .*absent\.json: No such file or directory\."):
        read_record(tmp_path / "absent.json", Rate)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_json_has_no_word_for_are_refused(bad):
    with pytest.raises(ValidationError, match="finite"):
        Mean(mean=bad, low=0.0, high=1.0, n=3, largest=1.0)
    with pytest.raises(ValidationError, match="finite"):
        CandidateScores(position=-1, layer=0, bypass_score=bad, induce_score=None, kl_score=None)


def test_canonical_json_forgets_the_order_of_keys_and_nothing_else():
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    assert canonical_json([2, 1]) != canonical_json([1, 2])
    assert canonical_json({"a": None}) != canonical_json({})
    assert canonical_json("è") == '"è"'


CHECK = "import sys, demur.records; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"


@pytest.mark.parametrize(("first", "found"), [("", "[]"), ("import numpy; ", "['numpy']")])
def test_records_need_no_tensor_library(first, found):
    """The second case shows that the check can fail."""
    done = subprocess.run([sys.executable, "-c", first + CHECK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
