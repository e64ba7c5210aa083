"""load_prompts on hf:// addresses, with `datasets.load_dataset` replaced: nothing here needs a network."""

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from demur.prompts import load_prompts


class Hub:
    """Stands in for load_dataset: answers what it was given and remembers how it was called."""

    def __init__(self):
        self.answer = datasets.Dataset.from_dict({"prompt": ["one", "two"], "id": [1, 2]})
        self.calls = []

    def __call__(self, path, name=None, *, split=None, revision=None):
        self.calls.append((path, name, split, revision))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def hub(monkeypatch):
    fake = Hub()
    monkeypatch.setattr(datasets, "load_dataset", fake)
    return fake


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("hf://owner/name", ("owner/name", None, None, None)),
        ("HF://owner/na-me_2.0/", ("owner/na-me_2.0", None, None, None)),
        ("hf://name?split=train", ("name", None, "train", None)),
        ("hf://name?config=en&split=train", ("name", "en", "train", None)),
        ("hf://owner/name/config?revision=abc&split=test", ("owner/name", "config", "test", "abc")),
        ("hf://owner/name?split=train+test", ("owner/name", None, "train+test", None)),
        ("hf://owner/name?split=train[:10%]", ("owner/name", None, "train[:10%]", None)),
        ("hf://owner/name?split=train%5B%3A5%5D", ("owner/name", None, "train[:5]", None)),
        ("hf://owner/name?revision=refs/pr/1", ("owner/name", None, None, "refs/pr/1")),
        ("hf://datasets/owner/name", ("owner/name", None, None, None)),
    ],
)
def test_addresses(hub, source, call):
    prompts = load_prompts(source, label="harmless")
    assert hub.calls == [call]
    assert prompts.source == source
    assert [(prompt.text, prompt.where) for prompt in prompts.prompts] == [("one", "row 1"), ("two", "row 2")]


@pytest.mark.parametrize(
    ("source", "phrases"),
    [
        ("hf://", ["not a dataset address", "'' is not a name", "hf://OWNER/NAME[/CONFIG]"]),
        ("hf://a/b/c/d", ["it has 4 parts", "The form is hf://OWNER/NAME"]),
        ("hf://owner/na me", ["'na me' is not a name that the Hub allows"]),
        ("hf://owner/name@v1", ["Give the revision as hf://owner/name?revision=v1."]),
        ("hf://owner/name:goal?split=test", ["Give the column as hf://owner/name?split=test&column=goal."]),
        ("hf://owner/name?splt=test", ["unknown option 'splt'", "did you mean split=?", "split, column, revision"]),
        ("hf://owner/name?x=test", ["unknown option 'x'", "The options are split, column, revision, config"]),
        ("hf://owner/name?split", ["the option split has no value"]),
        ("hf://owner/name?split=", ["the option split has no value"]),
        ("hf://owner/name?split=a&split=b", ["the option split is given twice"]),
        ("hf://owner/name/c?config=d", ["the config is given twice, as c and as config=d"]),
        (
            "https://huggingface.co/datasets/a/b",
            ["addresses that start with https:// are not read", "Download the file"],
        ),
        ("s3://bucket/a.jsonl", ["addresses that start with s3:// are not read"]),
        (" ", ["the prompt source is empty", "prompts.jsonl"]),
    ],
)
def test_bad_addresses(hub, refusal, source, phrases):
    message = refusal(source)
    for phrase in phrases:
        assert phrase in message
    assert hub.calls == []


def test_columns(hub):
    rows = {"Goal": ["a", "b"], "text": ["x", "y"], "split": ["train", "val"], "answer": [1, 2]}
    hub.answer = datasets.Dataset.from_dict(rows)
    prompts = load_prompts("hf://owner/name?column=Goal", label="harmful").prompts
    assert [(prompt.text, prompt.split, prompt.answer) for prompt in prompts] == [
        ("a", "train", "1"),
        ("b", "validation", "2"),
    ]


def test_ambiguous_columns_say_what_to_type(hub, refusal):
    hub.answer = datasets.Dataset.from_dict({"instruction": ["a"], "text": ["x"]})
    message = refusal("hf://owner/name/c?split=train")
    assert "several columns may hold the prompts: 'instruction', 'text'" in message
    assert "hf://owner/name/c?split=train&column=instruction or" in message


def test_unknown_column(hub, refusal):
    message = refusal("hf://name?config=c&column=promt")
    assert "hf://name/c: there is no column 'promt'; the columns are 'prompt', 'id'" in message
    assert "Did you mean hf://name?column=prompt&config=c?" in message


def test_the_only_split_is_taken(hub):
    hub.answer = datasets.DatasetDict({"harmful": hub.answer})
    assert len(load_prompts("hf://owner/name", label="harmful")) == 2


def test_several_splits(hub, refusal):
    hub.answer = datasets.DatasetDict({"safe": hub.answer, "unsafe": hub.answer})
    message = refusal("hf://owner/name?column=prompt")
    assert "the dataset has 2 splits: safe, unsafe" in message
    assert "for example hf://owner/name?split=safe&column=prompt." in message


def test_empty_dataset(hub, refusal):
    hub.answer = datasets.Dataset.from_dict({"prompt": []})
    assert "hf://owner/name: there is no prompt in it" in refusal("hf://owner/name")


def test_rows_are_named(hub, refusal):
    hub.answer = datasets.Dataset.from_dict({"prompt": ["a", None]})
    assert "hf://owner/name, row 2: the prompt in column 'prompt' is null" in refusal("hf://owner/name")


def gated():
    class GatedRepoError(OSError):
        pass

    error = DatasetNotFoundError("Dataset 'owner/name' cannot be accessed.")
    error.__cause__ = GatedRepoError("403")
    return error


class OddError(Exception):
    """What a library under `datasets` might raise."""


def generation():
    error = OddError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("cannot parse 'something unspeakable'")
    return error


@pytest.mark.parametrize(
    ("error", "phrases"),
    [
        (
            gated(),
            ["the dataset is gated", "Accept its terms at https://huggingface.co/datasets/owner/name", "hf auth login"],
        ),
        (DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."), ["the dataset is gated"]),
        (
            DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed."),
            [
                "no such dataset on the Hub, or a private one",
                "`hf auth login`",
                "download the file elsewhere and give its path",
            ],
        ),
        (
            DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'owner/name' on the Hub."),
            ["there is no revision 'v9'", "commit, branch or tag"],
        ),
        (
            ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)"),
            ["the Hub cannot be reached", "(Couldn't reach 'owner/name' on the Hub", "HF_HUB_OFFLINE", "give its path"],
        ),
        (
            ValueError("Unknown split \"nope\". Should be one of ['train'].\n"),
            ["there is no split 'nope'", "Should be one of ['train']", "as split="],
        ),
        (
            ValueError("BuilderConfig 'c' not found. Available: ['d']"),
            ["there is no config 'c'", "Available: ['d']", "/CONFIG"],
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among: ['d']"),
            ["several configs", "pick one among: ['d']"],
        ),
        (
            RuntimeError("Dataset scripts are no longer supported"),
            ["`datasets` cannot load it: Dataset scripts", "give its path"],
        ),
        (OddError(), ["`datasets` cannot load it: OddError"]),
        (OddError("long " * 200), ["..."]),
        (generation(), ["generating the dataset (ValueError). To go on"]),
    ],
)
def test_failures_of_datasets(hub, refusal, error, phrases):
    hub.answer = error
    message = refusal("hf://owner/name/c?split=nope&revision=v9")
    assert message.startswith("hf://owner/name/c: ")
    assert len(message) < 500
    for phrase in phrases:
        assert phrase in message


def test_rows_that_cannot_be_decoded(hub, refusal):
    class Broken:
        column_names = ("prompt",)

        def select_columns(self, _names):
            raise OddError("no decoder")

    hub.answer = Broken()
    assert "hf://owner/name: the rows cannot be read: no decoder" in refusal("hf://owner/name")


@pytest.mark.parametrize("name", ["json", "csv", "text", "parquet"])
def test_formats_of_datasets_do_not_read_the_current_folder(hub, refusal, name):
    message = refusal(f"hf://{name}")
    assert f"'{name}' is a file format of `datasets`, not a dataset. Give hf://OWNER/NAME" in message
    assert hub.calls == []


def test_a_folder_does_not_stand_in_for_the_hub(hub, refusal, tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert f"the folder {tmp_path / 'owner' / 'name'} has the same name" in refusal("hf://owner/name")
    assert hub.calls == []
