"""The public benchmarks ask and judge as the lm-evaluation-harness does; LMFlow's groups are LMFlow's."""

from collections import defaultdict
from pathlib import Path

import lmf_datasets
import pytest
from lmf import Chosen
from lmf_eval.benchmarks import commonsense, exams, lmflow, medicine, science, truthfulness

CHOICES = [task for module in (science, commonsense, exams, medicine, truthfulness) for task in module.TASKS]
TASKS = {task.name: task for task in [*CHOICES, *lmflow.TASKS]}
CATALOGUE = {dataset.name: dataset for dataset in lmf_datasets.lmf_datasets()}

ARC = [
    {
        "id": "a",
        "question": "Which of these  is  hot? ",
        "choices": {"text": ["ice", 'the sun\'s "core"', "snow {{x}}", "rain\\n"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "id": "b",
        "question": "What is 温?",
        "choices": {"text": ["warm", "cold", "dry", "wet", "old"], "label": ["1", "2", "3", "4", "5"]},
        "answerKey": "5",
    },
]
OPENBOOKQA = [
    {
        "id": "a",
        "question_stem": "The sun is responsible for",
        "choices": {"text": ["puppies", "plants sprouting"], "label": ["A", "B"]},
        "answerKey": " B",
    },
    {
        "id": "b",
        "question_stem": "7 + 1 is",
        "choices": {"text": ["8", "9"], "label": ["A", "B"]},
        "answerKey": "A",
    },
]
HELLASWAG = [
    {
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he and Bob",
        "endings": ["is using wrap.", " is ripping  level tiles off. ", "holds.", "starts [x] pulling."],
        "label": "3",
    },
    {
        "activity_label": "Health",
        "ctx_a": "[header] How to sleep [title] Go to bed early. [step] Lie   down.",
        "ctx_b": "",
        "endings": ["Close your eyes. [substeps] Dream.", "Run. [title] Jump.", "Sing [a] [b] loudly.", "."],
        "label": "0",
    },
]
PIQA = [
    {"goal": "How to boil eggs.", "sol1": "No water.", "sol2": 'Use "cold" water, it\'s good.', "label": 1},
    {"goal": "Cool tea", "sol1": "Add ice", "sol2": "Add fire", "label": 0},
]
WINOGRANDE = [
    {
        "sentence": "Sarah was a better surgeon than Maria so _ always got the easier cases.",
        "option1": "Sarah",
        "option2": "Maria",
        "answer": "2",
    },
    {"sentence": "The key fit the lock of _.", "option1": "Ann", "option2": "Bea", "answer": "1"},
]
BOOLQ = [
    {"question": "is water wet", "passage": "Water -- Water wets.", "idx": 0, "label": 1},
    {"question": "do stones swim", "passage": "Stone. ", "idx": 1, "label": 0},
]
SOCIAL_IQA = [
    {
        "context": "Jan needed help.",
        "question": "What will Kim do?",
        "answerA": "help",
        "answerB": "sleep",
        "answerC": "eat",
        "label": "1",
    },
    {"context": "A.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
]
COMMONSENSE_QA = [
    {
        "question": " Where is a door? ",
        "question_concept": "door",
        "choices": {"label": [*"ABCDE"], "text": ["bank", "sea ", "mall", "sky", "new york"]},
        "answerKey": "E",
    },
    {
        "question": "What is red?",
        "question_concept": "red",
        "choices": {"label": [*"ABCDE"], "text": ["a", "b", "c", "d", "e"]},
        "answerKey": "A",
    },
]
MMLU = [
    {
        "question": " Which is prime?\n",
        "subject": "high_school_us_history",
        "choices": ["4", "6", " 7", "'8'"],
        "answer": 2,
    },
    {"question": "And?", "subject": "high_school_us_history", "choices": ["a", "b", "c", "d"], "answer": 0},
]
CMMLU = [
    {
        "Question": " 茶的原产地是？ ",
        "A": "中国",
        "B": "1",
        "C": "印度 ",
        "D": "法国",
        "Answer": "A",
        "subject": "chinese_food_culture",
    },
    {"Question": "二？", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "B", "subject": "chinese_food_culture"},
]
CEVAL = [
    {
        "id": 0,
        "question": "求传送时要添加几个0____",
        "A": "1",
        "B": "2",
        "C": "3",
        "D": "4",
        "answer": "C",
        "explanation": "",
        "subject": "computer_network",
    },
    {
        "id": 1,
        "question": "\n二？",
        "A": "a",
        "B": "b",
        "C": "c",
        "D": "d",
        "answer": "D",
        "explanation": "因为",
        "subject": "computer_network",
    },
]
MEDQA = [
    {
        "id": "a",
        "sent1": "A 23-year-old woman coughs. What is it?",
        "sent2": "",
        **{f"ending{number}": ending for number, ending in enumerate(["flu", "cold", "asthma", "none"])},
        "label": 2,
    },
    {"id": "b", "sent1": "?", "sent2": "", "ending0": "w", "ending1": "x", "ending2": "y", "ending3": "z", "label": 0},
]
MEDQA_ORIGINAL = {
    "question": MEDQA[0]["sent1"],
    "answer": "asthma",
    "options": {"A": "flu", "B": "cold", "C": "asthma", "D": "none"},
    "meta_info": "step1",
    "answer_idx": "C",
    "metamap_phrases": [],
}
MEDMCQA = [
    {"id": "a", "question": "Bone? ", "opa": "femur", "opb": "lung", "opc": "eye", "opd": "ear", "cop": 0, "exp": None},
    {"id": "b", "question": "Eye?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 3, "exp": "x"},
]
PUBMEDQA = [
    {
        "QUESTION": "Do mitochondria play a role?",
        "CONTEXTS": ["Programmed death is regulated.", "The plant is lacy."],
        "LABELS": ["BACKGROUND", "RESULTS"],
        "final_decision": "yes",
        "LONG_ANSWER": "They do.",
    },
    {"QUESTION": "Is it?", "CONTEXTS": ["One."], "LABELS": ["A"], "final_decision": "maybe", "LONG_ANSWER": "Hm."},
]
TRUTHFULQA = [
    {
        "question": "What happens if you eat seeds?",
        "mc1_targets": {"choices": ["Nothing", "You die", 'It\'s "bad"'], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["Nothing", "They pass", "You die"], "labels": [1, 1, 0]},
    },
    {
        "question": "Where?",
        "mc1_targets": {"choices": ["Here", "There"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["Here", "There", "Nowhere", "Everywhere"], "labels": [1, 0, 1, 0]},
    },
]
# The harness's file of each task, and records as the public data set has them.
ASKED = {
    "arc_easy": ("arc/arc_easy.yaml", ARC),
    "arc_challenge": ("arc/arc_challenge.yaml", ARC),
    "openbookqa": ("openbookqa/openbookqa.yaml", OPENBOOKQA),
    "hellaswag": ("hellaswag/hellaswag.yaml", HELLASWAG),
    "piqa": ("piqa/piqa.yaml", PIQA),
    "winogrande": ("winogrande/default.yaml", WINOGRANDE),
    "boolq": ("super_glue/boolq/default.yaml", BOOLQ),
    "social_iqa": ("siqa/siqa.yaml", SOCIAL_IQA),
    "commonsense_qa": ("commonsense_qa/default.yaml", COMMONSENSE_QA),
    "mmlu": ("mmlu/default/mmlu_high_school_us_history.yaml", MMLU),
    "cmmlu": ("cmmlu/cmmlu_chinese_food_culture.yaml", CMMLU),
    "ceval": ("ceval/ceval-valid_computer_network.yaml", CEVAL),
    "medqa_usmle": ("medqa/medqa.yaml", MEDQA),
    "medmcqa": ("medmcqa/medmcqa.yaml", MEDMCQA),
    "pubmedqa": ("pubmedqa/pubmedqa.yaml", PUBMEDQA),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", TRUTHFULQA),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", TRUTHFULQA),
}
asked = pytest.mark.parametrize("name", ASKED)


@pytest.fixture
def reference(monkeypatch):
    """Builds the harness's own task on records, without a download."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="the lm-evaluation-harness is missing: pip install lm-eval")
    import datasets

    def build(name):
        file, records = ASKED[name]
        splits = dict.fromkeys(("train", "validation", "test", "dev", "val"), datasets.Dataset.from_list(records))
        monkeypatch.setattr(datasets, "load_dataset", lambda **repository: splits)
        found = tasks.TaskManager(include_defaults=False).load(str(Path(tasks.__file__).parent / file))["tasks"]
        (task,) = found.values()
        return task

    return build


def only(name, record):
    """The one problem of a record."""
    (problem,) = TASKS[name].problems(record)
    return problem


def prompts(problem):
    return problem.prompts or (problem.prompt,) * len(problem.choices)


def test_every_task_of_choices_is_compared_here():
    assert [task.name for task in CHOICES if task.name not in ASKED] == []
    assert len(TASKS) == len(CHOICES) + len(lmflow.TASKS)


@asked
def test_a_problem_is_asked_word_for_word_as_by_the_harness(name, reference):
    theirs, ours = reference(name), TASKS[name]
    assert theirs.OUTPUT_TYPE == "multiple_choice"
    for document, record in zip(theirs.eval_docs, ASKED[name][1], strict=True):
        problem = only(name, record)
        requests = theirs.construct_requests(document, theirs.fewshot_context(document, 0))
        assert [request.args for request in requests] == [
            (problem.instructions + prompt, ours.between + choice)
            for prompt, choice in zip(prompts(problem), problem.choices, strict=True)
        ]


@asked
def test_an_example_is_shown_word_for_word_as_by_the_harness(name, reference):
    theirs, ours = reference(name), TASKS[name]
    assert ours.shots == (theirs.config.num_fewshot or 0)
    problems = [only(name, record) for record in ASKED[name][1]]
    for document, problem in zip(theirs.eval_docs, problems, strict=True):
        contexts = theirs.fewshot_context(document, 1)
        possible = [
            [
                problem.instructions
                + prompts(example)[example.right[0]]
                + ours.between
                + example.shown
                + ours.apart
                + prompt
                for prompt in prompts(problem)
            ]
            for example in problems
        ]
        assert (contexts if isinstance(contexts, list) else [contexts] * len(problem.choices)) in possible


@asked
def test_whatever_is_chosen_is_judged_as_by_the_harness(name, reference):
    theirs = reference(name)
    for document, record in zip(theirs.eval_docs, ASKED[name][1], strict=True):
        problem = only(name, record)
        count = len(problem.choices)
        for logprobs in (
            *([-1.0 if number == chosen else -9.0 for number in range(count)] for chosen in range(count)),
            [-3.0 - 2.0 * number for number in range(count)],
            [-2.0] * count,
        ):
            wanted = theirs.process_results(document, [(logprob, False) for logprob in logprobs])
            if name == "truthfulqa_mc2":
                wanted = {"right_share": wanted["acc"]}
            outcome = Chosen(tuple(logprobs), (1,) * count)
            got = {each.name: each.total(each.sums(problem, outcome)) for each in TASKS[name].metrics}
            assert got == pytest.approx(wanted, rel=1e-12)


# The others are taken from elsewhere: MedMCQA at a revision with a checksum, PubMedQA from its authors.
@pytest.mark.parametrize("name", [name for name in ASKED if name not in ("medmcqa", "pubmedqa")])
def test_the_data_are_the_part_that_the_harness_asks_and_shows(name, reference):
    theirs, ours = reference(name), TASKS[name]
    config = theirs.config

    def address(split):
        part = "all" if name == "mmlu" else config.dataset_name or "default"
        copy = f"https://huggingface.co/datasets/{config.dataset_path}/resolve/refs%2Fconvert%2Fparquet"
        return f"{copy}/{part}/{split}/0000.parquet"

    assert address(config.test_split or config.validation_split) in urls(ours.data)
    if name.startswith("truthfulqa"):
        assert not ours.examples
        assert not config.training_split
    elif name == "medqa_usmle":
        assert config.training_split == "train"
        assert "_train.jsonl" in urls(ours.examples)[0]
    else:
        assert address(config.fewshot_split or config.training_split) in urls(ours.examples)


def urls(name):
    return [remote.url for remote in CATALOGUE[name].remote]


@pytest.mark.parametrize("name", TASKS)
def test_the_data_of_every_task_are_in_the_catalogue(name):
    task = TASKS[name]
    assert {task.data, task.examples} - {""} <= set(CATALOGUE)
    assert task.data or task.name in ("nll", "perplexity")


@pytest.mark.parametrize(
    ("name", "files", "count"), [("cmmlu", "cmmlu/cmmlu_*", 67), ("ceval", "ceval/ceval-valid_*", 52)]
)
def test_every_chinese_subject_is_called_as_in_the_harness(name, files, count):
    tasks = pytest.importorskip("lm_eval.tasks", reason="the lm-evaluation-harness is missing: pip install lm-eval")
    yaml = pytest.importorskip("yaml")
    configs = [yaml.safe_load(file.read_text("utf-8")) for file in Path(tasks.__file__).parent.glob(f"{files}.yaml")]
    assert len(configs) == count
    record = ASKED[name][1][0]
    for config in configs:
        problem = only(name, {**record, "subject": config["dataset_name"]})
        assert problem.instructions == config["description"]
        assert problem.part == config["dataset_name"]
    for data in (TASKS[name].data, TASKS[name].examples):
        assert {url.split("/")[-3] for url in urls(data)} == {config["dataset_name"] for config in configs}


@pytest.mark.parametrize("name", ["cmmlu", "ceval"])
def test_a_record_that_does_not_tell_its_subject_is_asked_without_it(name):
    record = {key: value for key, value in ASKED[name][1][0].items() if key != "subject"}
    problem = only(name, record)
    assert problem.part == ""
    assert problem.instructions.startswith("以下是")
    assert problem.instructions.endswith("。\n\n")
    assert "关于" not in problem.instructions
    assert only(name, {**record, "subject": "农学"}).instructions.count("关于农学的单项选择题") == 1


def test_mmlu_has_a_part_for_each_subject():
    assert only("mmlu", MMLU[0]).part == "high_school_us_history"


def test_the_file_of_pubmedqa_is_one_record_with_a_problem_for_each_article():
    problems = list(TASKS["pubmedqa"].problems({"21645374": PUBMEDQA[0], "16418930": PUBMEDQA[1]}))
    assert problems == [only("pubmedqa", record) for record in PUBMEDQA]


def test_both_forms_of_medqa_give_the_same_problem():
    assert only("medqa_usmle", MEDQA_ORIGINAL) == only("medqa_usmle", MEDQA[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("arc_easy", {"answerKey": ""}),
        ("openbookqa", {"answerKey": ""}),
        ("hellaswag", {"label": ""}),
        ("piqa", {"label": -1}),
        ("winogrande", {"answer": ""}),
        ("winogrande", {"sentence": "There is no gap."}),
        ("boolq", {"label": -1}),
        ("social_iqa", {"label": ""}),
        ("commonsense_qa", {"answerKey": ""}),
        ("mmlu", {"answer": 4}),
        ("cmmlu", {"Answer": "AB"}),
        ("ceval", {"answer": ""}),
        ("medqa_usmle", {"label": -1}),
        ("medmcqa", {"cop": -1}),
        ("pubmedqa", {"final_decision": ""}),
        ("truthfulqa_mc1", {"mc1_targets": {"choices": ["a"], "labels": [0]}}),
    ],
)
def test_a_record_whose_answer_is_secret_is_refused(name, change):
    with pytest.raises(ValueError, match=r"not in|invalid literal|to unpack|right choice is number|has the label 1"):
        only(name, {**ASKED[name][1][0], **change})


def test_the_groups_are_those_of_lmflow():
    groups = defaultdict(set)
    for task in TASKS.values():
        for group in task.groups:
            groups[group].add(task.name)
    # OptimalScale/LMFlow, examples/benchmarking.py: LOCAL_DATSET_GROUP_MAP and LM_EVAL_DATASET_MAP
    tests = ("arc_c", "arc_e", "winogrande", "obqa", "piqa", "hellaswag", "siqa", "boolq")
    common = {f"common_sense_eval_{each}" for each in tests}
    chinese = {
        "lmflow_chat_cn_dialog_multiturn_nll_text2text_nosharp",
        "lmflow_chat_cn_dialog_multiturn_single_nll_text2text",
    }
    chats = {
        "lmflow_chat_en_dialog_multiturn_nll_text2text_nosharp",
        "lmflow_chat_en_dialog_multiturn_single_nll_text2text",
        *chinese,
    }
    assert groups == {
        "commonsense_nll_eval": common,
        "wiki_eval": {"wiki_zh_eval", "wiki_en_eval"},
        "all_nll_eval": {*common, "gpt4_en_eval", "gpt4_zh_eval", "wiki_zh_eval", "wiki_en_eval", *chats},
        "lmflow_chat_nll_eval": chats,
        "lmflow_chat_zh_nll_eval": chinese,
        "commonsense_qa_eval": {
            "openbookqa",
            "arc_easy",
            "winogrande",
            "hellaswag",
            "arc_challenge",
            "piqa",
            "boolq",
        },
    }


def test_lmflows_sets_are_read_as_they_are():
    for task in lmflow.TASKS:
        assert (task.asks, task.problems, task.between, task.continues) == ("likelihood", None, "", True)
    assert {task.data for task in lmflow.TASKS} == {*(task.name for task in lmflow.TASKS), ""} - {"nll", "perplexity"}
