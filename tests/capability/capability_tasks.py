"""Small local tasks of every kind that the harness knows, over the toy model's harmless prompts."""

import json
from pathlib import Path

from demur.testing import toy_prompts

N = 20
_COMMON = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
metadata:
  version: 1.5
"""
_TASKS = {
    "toy_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "toy_generate": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{good}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
filter_list:
  - name: first-word
    filter:
      - function: regex
        regex_pattern: "^(\\\\w+)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
""",
    "toy_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
}


def rows():
    """Questions of one-word facts with a right and a wrong answer, and a sentence."""
    lines = [json.loads(line) for line in Path(toy_prompts("harmless")).read_text().splitlines()]
    facts = [line for line in lines if line.get("answer") and line["split"] == "test" and line["category"] == "fact"]
    facts = [line for line in facts if " " not in line["answer"]][:N]
    answers = [fact["answer"].capitalize() for fact in facts]
    wrong = [
        next(other for other in answers[index + 1 :] + answers if other != good) for index, good in enumerate(answers)
    ]
    return [
        {
            "question": fact["prompt"],
            "good": good,
            "bad": bad,
            "choices": [good, bad],
            "text": f"{fact['prompt']} {good}.",
        }
        for fact, good, bad in zip(facts, answers, wrong, strict=True)
    ]


def write_tasks(folder: Path) -> dict[str, str]:
    """Task name -> YAML file."""
    data = folder / "rows.json"
    data.write_text(json.dumps(rows()))
    paths = {}
    for name, text in _TASKS.items():
        path = folder / f"{name}.yaml"
        path.write_text(f"task: {name}\n" + _COMMON.format(data=data) + text)
        paths[name] = str(path)
    group = folder / "toy_group.yaml"
    group.write_text(
        "group: toy_group\ntask: [toy_choice]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
        "metadata:\n  version: 2\n"
    )
    paths["toy_group"] = "toy_group"
    return paths
