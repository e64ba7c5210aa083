"""load_prompts on local files: what is read, and what each bad file is told."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.prompts import Prompt, load_prompts

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda text: text.strip())
text_lists = st.lists(texts, min_size=1, max_size=8, unique_by=lambda text: " ".join(text.split()))


def normalised_differ(items):
    return len({Prompt(item, "harmless").comparison_text for item in items}) == len(items)


def texts_of(source, **options):
    return [prompt.text for prompt in load_prompts(source, label="harmless", **options).prompts]


# --- what is read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"prompt": "one"}\n\n{"prompt": "two", "id": 7}\n'),
        ("a.ndjson", '"one"\r\n"two"'),
        ("A.JSONL", '{"Goal": "one"}\n{"Goal": "two"}\n'),
        ("a.json", '[{"instruction": "one"}, {"instruction": "two"}]'),
        ("a.json", '["one", "two"]'),
        ("a.json", '{"version": 1, "data": ["one", "two"]}'),
        ("a.csv", "id,Behavior\n1,one\n\n2,two\n"),
        ("a.csv", "\ufeffquestion\r\none\r\ntwo\r\n"),
        ("a.tsv", "text\tid\none\t1\ntwo\t2\n"),
        ("a.txt", "\ufeffone\n\n   \ntwo"),
        ("a.text", "one\r\ntwo\r\n"),
    ],
)
def test_formats(write, name, content):
    assert texts_of(write(name, content)) == ["one", "two"]


@pytest.mark.parametrize("suffix", ["parquet", "pq"])
def test_parquet(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    table = pa.table({"id": [1, 2], "prompt": ["one", "two"], "split": ["train", "test"], "image": [b"x", b"y"]})
    pq.write_table(table, path)
    prompts = load_prompts(str(path), label="borderline").prompts
    assert [(prompt.text, prompt.split, prompt.where) for prompt in prompts] == [
        ("one", "train", "row 1"),
        ("two", "test", "row 2"),
    ]


def test_optional_columns(write):
    rows = [
        {"prompt": "one", "Split": "Train", "category": "a", "answer": 42},
        {"prompt": "two", "Split": " val ", "category": None, "answer": " Paris "},
        {"prompt": "three", "Split": "valid", "answer": ""},
        {"prompt": "four", "Split": "dev", "category": 3},
        {"prompt": "five", "Split": "test"},
    ]
    prompts = load_prompts(write("a.jsonl", "\n".join(map(json.dumps, rows))), label="harmless").prompts
    assert [prompt.split for prompt in prompts] == ["train", "validation", "validation", "validation", "test"]
    assert [prompt.category for prompt in prompts] == ["a", None, None, "3", None]
    assert [prompt.answer for prompt in prompts] == ["42", "Paris", None, None, None]
    assert {prompt.label for prompt in prompts} == {"harmless"}


def test_expected_is_an_answer_and_empty_splits_are_none(write):
    prompt = load_prompts(write("a.csv", "prompt,expected,split\none,1,\n"), label="harmless").prompts[0]
    assert (prompt.answer, prompt.split) == ("1", None)


def test_source_is_kept_as_given_and_lines_are_counted(write):
    path = write("a.csv", 'prompt,id\n"on\ne",1\ntwo,2\n')
    prompts = load_prompts(f"{path}:prompt", label="harmless")
    assert prompts.source == f"{path}:prompt"
    assert [prompt.where for prompt in prompts.prompts] == ["line 2", "line 4"]


def test_json_strings_with_line_separators_stay_whole(write):
    assert texts_of(write("a.jsonl", '"one\u2028two\x85three"\n')) == ["one\u2028two\x85three"]


def folder_file(name, content):
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / name
    path.write_bytes(content.encode())
    return folder, str(path)


@given(text_lists.filter(normalised_differ), st.booleans())
def test_jsonl_round_trip(items, ascii_only):
    folder, path = folder_file(
        "a.jsonl", "".join(json.dumps({"prompt": item}, ensure_ascii=ascii_only) + "\n" for item in items)
    )
    with folder:
        assert texts_of(path) == items


@given(text_lists.filter(normalised_differ), st.sampled_from([(",", "csv"), ("\t", "tsv")]))
def test_csv_round_trip_with_quotes_and_newlines(items, kind):
    separator, suffix = kind
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "prompt"])
    writer.writerows([[str(number), item] for number, item in enumerate(items)])
    folder, path = folder_file(f"a.{suffix}", buffer.getvalue())
    with folder:
        assert texts_of(path) == [item.replace("\r\n", "\n") for item in items]


def test_a_hundred_thousand_rows(write):
    path = write("a.jsonl", "".join(f'{{"prompt": "Add {n} and 1.", "category": "sums"}}\n' for n in range(100_000)))
    assert len(load_prompts(path, label="harmless")) == 100_000


# --- which column


def test_named_column(write):
    path = write("a.csv", "Goal,Behavior\none,x\ntwo,y\n")
    assert texts_of(f"{path}:Goal") == ["one", "two"]
    assert texts_of(f"{path}:behavior") == ["x", "y"]


def test_column_named_like_an_optional_one(write):
    prompts = load_prompts(write("a.csv", "answer,expected\none,x\n") + ":answer", label="harmless").prompts
    assert (prompts[0].text, prompts[0].answer) == ("one", "x")


def test_path_with_colons(write):
    path = write("set:v1/a:b.csv", "Goal,Behavior\none,x\n")
    assert texts_of(f"{path}:Goal") == ["one"]
    whole = write("c.csv:Goal.txt", "plain\n")
    assert texts_of(whole) == ["plain"]


def test_column_with_a_colon(write):
    assert texts_of(write("a.jsonl", '{"user: first": "one"}') + ":user: first") == ["one"]


def test_home_folder(write, tmp_path, monkeypatch):
    write("a.txt", "one")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts_of("~/a.txt") == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "column", "phrases"),
    [
        ("a.csv", "id,query\n1,one\n", "", ["no prompt column", "'id', 'query'", "a.csv:COLUMN", "behavior, question"]),
        ("a.csv", "prompt,text\none,x\n", "", ["several columns", "'prompt', 'text'", "a.csv:prompt or", "a.csv:text"]),
        ("a.jsonl", '{"Prompt": "a"}\n{"prompt": "b"}', "", ["several columns", "'Prompt', 'prompt'"]),
        (
            "a.csv",
            "goal,target\none,x\n",
            ":gaol",
            ["no column 'gaol'", "'goal', 'target'", "Did you mean", "a.csv:goal?"],
        ),
        ("a.csv", "goal,target\none,x\n", ":zzz", ["no column 'zzz'", "a.csv:COLUMN"]),
        ("a.csv", "goal\none\n", ":", ["no column is named after the colon", "a.csv:COLUMN", "or"]),
        ("a.csv", "prompt;id\none;1\n", "", ["no prompt column", "separated by another mark", "commas"]),
        ("a.csv", "prompt,answer,Expected\na,b,c\n", "", ["'answer', 'Expected' mean the same", "rename the others"]),
        ("a.csv", "prompt,id,id\na,b,c\n", "", ["line 1", "'id' twice"]),
        ("a.jsonl", "{}\n", "", ["no prompt column; the columns are (none)"]),
        ("a.txt", "one\n", ":prompt", ["a text file has no columns", "without :prompt"]),
        ("a.jsonl", '"one"\n', ":goal", ["the rows are strings, so there is no column 'goal'"]),
    ],
)
def test_bad_columns(write, refusal, name, content, column, phrases):
    message = refusal(write(name, content) + column)
    for phrase in phrases:
        assert phrase in message


def test_a_missing_header_does_not_show_the_first_prompt(write, refusal):
    message = refusal(write("a.csv", "Describe the unspeakable thing at length\nanother one\n"), "harmful")
    assert "unspeakable" not in message
    assert "(a text of 40 characters)" in message
    assert "The first line of the file must name its columns" in message


# --- bad files


def test_missing_file_suggests_close_names(write, refusal, tmp_path):
    write("harmful.jsonl", "x")
    message = refusal(str(tmp_path / "harmfull.jsonl"))
    assert "harmfull.jsonl: no such file. Did you mean" in message
    assert f"{tmp_path / 'harmful.jsonl'}?" in message


def test_missing_file_with_column_names_the_file(tmp_path, refusal):
    message = refusal(f"{tmp_path / 'a.csv'}:goal")
    assert f"{tmp_path / 'a.csv'}: no such file in {tmp_path}." in message
    assert "hf://OWNER/NAME" in message


def test_missing_folder(tmp_path, refusal):
    assert f"the folder {tmp_path / 'no'} does not exist" in refusal(str(tmp_path / "no" / "a.csv"))


def test_windows_drives_are_no_columns(refusal):
    assert r"C:\sets\a.csv: no such file" in refusal(r"C:\sets\a.csv")
    assert r"C:\sets\a.csv: no such file" in refusal(r"C:\sets\a.csv:goal")


@pytest.mark.parametrize("source", ["a" * 5000 + ".csv", "nul\0.csv", "~nobody-of-this-name/a.csv"])
def test_paths_that_the_system_cannot_hold(refusal, source):
    assert ".csv: " in refusal(source)


def test_folder(write, refusal, tmp_path):
    write("a.jsonl", "x")
    write("b.md", "x")
    message = refusal(str(tmp_path))
    assert "is a folder, not a prompt file. Give one of its files: " in message
    assert "a.jsonl" in message
    assert "b.md" not in message


def test_folder_without_prompt_files(refusal, tmp_path):
    assert "no file of a supported kind (.jsonl, .ndjson, .json, .csv" in refusal(str(tmp_path))


def test_unreadable_file(write, refusal, monkeypatch):
    path = write("a.jsonl", "x")

    def deny(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    message = refusal(path)
    assert f"{path}: you may not read this file" in message
    assert "chmod u+r" in message


def test_failing_disk(write, refusal, monkeypatch):
    path = write("a.jsonl", "x")

    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert f"{path}: cannot read this file: [Errno 5] Input/output error" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "phrases"),
    [
        ("prompts", "one", ["it has no ending", ".jsonl, .ndjson, .json, .csv, .tsv, .parquet", "rename the file"]),
        ("a.md", "one", ["the ending '.md' is not known", "Supported are .jsonl"]),
        ("a.csv.gz", "one", ["the ending '.gz' is not known"]),
        ("a.jsonl", "", ["the file is empty", "at least one prompt"]),
        ("a.parquet", "", ["the file is empty"]),
        ("a.txt", " \n\n", ["the file is empty"]),
        ("a.json", "[]", ["there is no prompt in it"]),
        ("a.csv", "prompt,id\n", ["there is no prompt in it"]),
        ("a.csv", "prompt\n" + "x" * 140_000, ["line 2", "field larger than field limit"]),
        ("a.parquet", "not parquet", ["a.parquet: this is not a Parquet file"]),
        (
            "a.jsonl",
            '{"prompt": "a"}\n{"prompt": b}\n',
            ["line 2, column 12: not valid JSON: Expecting value", "one object"],
        ),
        ("a.jsonl", '[\n{"prompt": "a"}\n]', ["line 1, column 2: not valid JSON", "let its name end in .json."]),
        ("a.jsonl", '["a"]', ["line 1: this is a list, not an object or a string", '{"prompt": "..."}']),
        ("a.jsonl", '"a"\n\n7\n', ["line 3: this is a number, not an object or a string"]),
        ("a.jsonl", '"a"\nnull\n', ["line 2: this is null"]),
        ("a.jsonl", '"a"\ntrue\n', ["line 2: this is true or false"]),
        ("a.jsonl", '"a"\n{"prompt": "b"}\n', ["line 2: 1 of 2 rows are strings", "Write all of them one way"]),
        ("a.jsonl", "[" * 100_000, ["line 1: not JSON that can be read"]),
        ("a.json", '[\n  "a",\n  b\n]', ["line 3, column 3: not valid JSON: Expecting value"]),
        (
            "a.json",
            '{"prompt": "a"}\n{"prompt": "b"}',
            ["line 2, column 1: not valid JSON: Extra data", "end in .jsonl"],
        ),
        ("a.json", '{"a": ["x"], "b": ["y"]}', ["several lists: 'a', 'b'", "Save one list"]),
        ("a.json", '{"a": 1}', ["holds no list, only 'a'", "Save one list"]),
        ("a.json", "{}", ["holds no list. Save one list"]),
        ("a.json", '"a"', ["the file holds no list", "Write a list"]),
        ("a.json", '["a", ["b"]]', ["row 2: this is a list, not an object or a string"]),
        ("a.csv", "prompt,id\na,1\nb, c,2\n", ["line 3: the row has 3 cells and the header 2", "double quotes"]),
        (
            "a.csv",
            'prompt,id\na,1\n"b,2\nc,3\n',
            ["line 3: the row that starts here", "unexpected end of data", '("")'],
        ),
    ],
)
def test_bad_files(write, refusal, name, content, phrases):
    path = write(name, content)
    message = refusal(path)
    assert message.startswith(path)
    for phrase in phrases:
        assert phrase in message


def test_damaged_parquet(tmp_path, refusal):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt {n}" for n in range(1000)]}), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[10:200] = bytes(190)
    path.write_bytes(data)
    assert "the Parquet file is damaged" in refusal(str(path))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_undecodable_bytes(write, refusal, mark):
    message = refusal(write("a.txt", mark + b"one\ntw\xe9\n"))
    assert f"a.txt, line 2: byte {6 + len(mark)} of the file (0xe9) is not UTF-8. Save" in message


def test_utf16(write, refusal):
    message = refusal(write("a.txt", "one".encode("utf-16")))
    assert "line 1: byte 0 of the file (0xff) is not UTF-8. The file starts like UTF-16." in message


# --- bad rows


@pytest.mark.parametrize(
    ("rows", "phrases"),
    [
        (['{"prompt": "a"}', '{"id": 1}'], ["line 2: there is no 'prompt' in this row", "delete the row"]),
        (['{"prompt": null}'], ["line 1: the prompt in column 'prompt' is null, not a string"]),
        (['{"prompt": ["a"]}'], ["the prompt in column 'prompt' is a list, not a string"]),
        (['{"prompt": {"a": 1}}'], ["is an object, not a string"]),
        (['{"prompt": " \\n "}'], ["line 1: the prompt in column 'prompt' is blank", "Fill it in"]),
        (['"a"', '""'], ["line 2: the prompt is blank"]),
        (['{"prompt": "ab\\ud800"}'], ["character 3 of the prompt is half of a surrogate pair (\\ud800)"]),
        (['{"prompt": "a", "answer": "\\udfff"}'], ["character 1 of the answer is half of a surrogate pair"]),
        (['{"prompt": "a", "answer": ["x"]}'], ["the value in column 'answer' is a list, not a string"]),
        (['{"prompt": "a", "category": true}'], ["the value in column 'category' is true or false"]),
        (
            ['{"prompt": "a", "split": "train"}', '{"prompt": "b", "split": "holdout"}'],
            ["line 2: 'holdout' in column 'split' is not a split", "Write train, validation or test"],
        ),
        (['{"prompt": "a", "split": 1}'], ["line 1: a number in column 'split' is not a split"]),
        (
            ['{"prompt": "a", "split": "train"}', '{"prompt": "b"}', '{"prompt": "c", "split": ""}'],
            ["line 2: no split in 2 of 3 rows, this one first", "in every row, or leave the column out"],
        ),
    ],
)
def test_bad_rows(write, refusal, rows, phrases):
    message = refusal(write("a.jsonl", "\n".join(rows)))
    for phrase in phrases:
        assert phrase in message


def test_too_few(write, refusal):
    message = refusal(write("a.txt", "one\ntwo\n"), "borderline", minimum=5)
    assert "a.txt: too few borderline prompts: 2, where at least 5 are needed. Add 3 or more." in message


def test_unknown_label(write, refusal):
    assert "'harmfull' is not a label; give one of harmful, harmless, borderline" in refusal(
        write("a.txt", "x"), "harmfull"
    )
