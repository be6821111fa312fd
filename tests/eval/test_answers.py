import json
import random
import warnings
from pathlib import Path

import pytest
from lmf import Problem, Written
from lmf.errors import UnknownName
from lmf_eval.answers import FLEXIBLE, FLEXIBLE_EXTRACT, METRICS, RULES, STRICT, answer_metric, final_number

LMFLOWS = (
    *("gsm8k", "svamp", "asdiv", "addsub", "singleeq", "multiarith", "math", "aqua", "csqa", "multiple_choice"),
    *("strategyqa", "coin_flip", "last_letters", "pubmedqa", "binary_choice", "medmcqa", "usmle", "text"),
    *("text_only", "text2text"),
)
GSM8K = Path("/work/shared/data/gsm8k_test.jsonl")


def same(names, *rows):
    return [(name, *row) for name in names.split() for row in rows]


# type, reply, right answer, what is found, whether it is right: by hand, from LMFlow's source
ROWS = [
    *same(
        "gsm8k svamp",
        ("She has 3 eggs and sells 1,318.6.", "1319", "1319", True),
        ("18.", "18", "18", True),
        ("2.5", "2", "2", True),  # half way goes to the even number
        ("from 5 to -7", "-7", "-7", True),
        ("It is 18 dollars.", "18.0", "18", False),
        ("none", "0", "", False),
        ("9" * 400, "9" * 400, "", False),  # as a float it has no bound
    ),
    *same(
        "asdiv addsub singleeq multiarith math",
        ("It is 64.", "64", "64", True),
        ("$1,250.50 in all", "1250.50", "1250.50", True),
        ("3-5", "-5", "-5", True),
        ("18.0", "18", "18.0", False),
        ("no number", "", "", True),
        ("1.2.3", "3", "3", True),
    ),
    *same(
        "aqua csqa multiple_choice",
        ("The answer is (B).", "B", "B", True),
        ("A, no: C", "C", "C", True),
        ("Both are Equal", "E", "E", True),
        ("b", "B", "", False),
        ("B", "b", "B", False),
    ),
    *same(
        "strategyqa coin_flip",
        ("Yes.", "yes", "yes", True),
        ('So the answer is "NO"', "No", "no", True),
        ("no: yes, yes:no\n", "no", "no", True),
        ("yes!", "yes", "", False),
        ("I know", "no", "", False),
    ),
    *same(
        "last_letters",
        ('"n k".', "nk", "nk", True),
        ("The letters are n and k: nk", "nk", "nk", True),
        ("NK", "nk", "NK", False),
        ("k", "nk", "k", False),
        ("nk", "", "", True),
    ),
    *same(
        "pubmedqa binary_choice",
        ("Yes. Output: No", "no", "no", True),
        ("A: maybe not", "Maybe", "maybe", True),
        ("Answer: (yes)", "yes", "(yes", False),  # LMFlow keeps the bracket
        ("It is so, YES.", "yes", "yes", True),
        ("a piano!", "no", "N/A", False),
        ("a piano is", "no", "no", True),  # the end of a word, too
        ("yes", "yes", "N/A", False),  # nothing after it
        ("aNswer: yes", "yes", "N/A", False),
    ),
    *same(
        "medmcqa usmle",
        ("Answer: B", "b", "b", True),
        ("Output: ((c) and so on", "C", "c", True),
        ("A: d", "D", "d", True),
        ("It is (D).", "D", "d", True),
        ("see ((C)) there", "C", "(", False),  # LMFlow takes the second character
        ("a fever", "A", "a", True),  # any letter before a space
        ("B", "B", "N/A", False),
    ),
    ("medmcqa", "answer: b, C.", "b", "b", True),
    ("usmle", "answer: b, C.", "c", "c", True),  # it knows fewer spellings
    *same(
        "text text_only text2text",
        ("Paris", "Paris", "Paris", True),
        ("Paris ", "Paris", "Paris ", False),
        ("paris", "Paris", "paris", False),
        ("", "", "", True),
    ),
]


@pytest.mark.parametrize(("name", "reply", "answer", "found", "right"), ROWS)
def test_a_rule_finds_what_lmflow_finds(name, reply, answer, found, right):
    assert RULES[name].extract(reply, answer) == found
    assert RULES[name].right(reply, answer) is right
    assert answer_metric(name).sums(Problem(answer=answer), Written((reply,))) == (float(right), 1.0)


def test_all_of_lmflows_types_are_there_with_three_examples_each():
    assert set(RULES) == set(LMFLOWS)
    assert min(sum(row[0] == name for row in ROWS) for name in LMFLOWS) >= 3


def test_an_accuracy_is_called_acc_and_is_the_mean_over_the_replies():
    metric = answer_metric("gsm8k")
    sums = metric.sums(Problem(answer="18"), Written(("18", "17", "it is 18.", "")))
    assert metric.name == "acc"
    assert metric.total(sums) == 0.5


def test_every_metric_has_a_name_of_its_own():
    names = [metric.name for metric in METRICS]
    assert names == ["strict_match", "flexible_extract", "flexible", *(f"answer_{name}" for name in RULES)]


def test_an_unknown_type_says_which_there_are():
    with pytest.raises(UnknownName, match=r"No answer type is called 'gms8k'\. Did you mean 'gsm8k'"):
        answer_metric("gms8k")


def last_number(text):
    """Return the last number, read letter by letter."""
    text, at, found = text.replace(",", ""), 0, ""
    while at < len(text):
        start = at
        at += text[at] == "-"
        whole = at
        while at < len(text) and text[at].isdecimal():
            at += 1
        if at == whole:
            at = start + 1
            continue
        at += text[at : at + 1] == "."
        while at < len(text) and text[at].isdecimal():
            at += 1
        found = text[start:at]
    return found[:-1] if found.endswith(".") else found


def random_replies(seed, number):
    draw = random.Random(seed)
    parts = ["1", "20", "3,000", "-4", ".", "-", ",", " ", "\n", "$", "x", "#### ", "A: ", "٣", "5.", "0.50", "--", "="]
    return ["".join(draw.choices(parts, k=draw.randrange(12))) for _ in range(number)]


def test_the_rules_of_numbers_read_random_texts_as_a_reader_of_letters_does():
    for reply in random_replies(1, 5000):
        number = last_number(reply)
        for name in ("asdiv", "addsub", "singleeq", "multiarith", "math"):
            assert RULES[name].extract(reply, "") == number
        for name in ("gsm8k", "svamp"):
            assert RULES[name].extract(reply, "") == (str(round(float(number))) if number else "")


@pytest.fixture(scope="module")
def harness():
    """What the installed lm-evaluation-harness says of GSM8K: filters by their names, and its comparison."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports'
        lm_eval = pytest.importorskip("lm_eval")
        yaml = pytest.importorskip("yaml")
        from lm_eval.api.metrics import exact_match_hf_evaluate
        from lm_eval.filters.extraction import RegexFilter
    text = (Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text()
    task = yaml.safe_load(text)
    compared = {
        key: value
        for key, value in task["metric_list"][0].items()
        if key not in ("metric", "aggregation", "higher_is_better")
    }
    filters = {
        each["name"]: RegexFilter(**{key: value for key, value in each["filter"][0].items() if key != "function"})
        for each in task["filter_list"]
    }

    def score(name, reply, answer):
        ((found,),) = filters[name].apply([[reply]], [{}])
        return float(exact_match_hf_evaluate([found], [answer], **compared)["exact_match"])

    return score


REPLIES = (
    "He has 9 eggs.\n#### 18",
    "#### 18.",
    "#### $18",
    "#### 1,800",
    "#### -18 and #### 7",
    "####18",
    "It is $18.",
    "18 dollars, or 18.00",
    "so 18...",
    "",
    "-18",
    "[invalid]",
    "A: 1,800",
    "$",
    "7\n",
)


def test_gsm8k_is_judged_as_the_harness_judges_it(harness):
    answers = ("She sells 9.\n#### 18", "#### 1,800", "#### -18", "#### 7", "#### 20", "x", "[invalid]")
    right = 0
    for reply in (*REPLIES, *random_replies(2, 300)):
        for answer in answers:
            for name, metric in (("strict-match", STRICT), ("flexible-extract", FLEXIBLE_EXTRACT)):
                (ours, count) = metric.sums(Problem(answer=answer), Written((reply,)))
                assert (ours, count) == (harness(name, reply, answer), 1.0), (name, reply, answer)
                right += ours
    assert right > 20


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("A: 18", "18"),
        ("3 + 15 = 18\nA: 18\n", "18"),
        ("#### 18", "18"),
        ("#### $1,319.00.", "1319"),
        ("A: 18 eggs for 2 days", "18"),
        ("A: -129025", "-129025"),
        ("the loss is -$5", "-5"),
        ("$-5", "-5"),
        ("−7", "-7"),
        ("20 - 18", "18"),
        ("5-3", "3"),
        ("The answer is: 18 eggs, not 5", "18"),
        ("**Answer:** x = 2+3 = 5 apples", "5"),
        ("A:\n\n18", "18"),
        ("There are 3.\nA: five", "3"),
        ("= $<<3*2=6>>6", "6"),
        ("18...", "18"),
        ("10%", "10"),
        ("US$ 2.50", "2.5"),
        (".5", "0.5"),
        ("答案是18。", "18"),
        ("A: five", None),
        ("model a1", None),
        ("", None),
    ],
)
def test_the_final_number_is_found_however_it_is_written(reply, number):
    found = final_number(reply)
    assert (found is None) if number is None else (str(found.normalize()) == str(type(found)(number).normalize()))
    right = FLEXIBLE.sums(Problem(answer=f"So.\n#### {number}"), Written((reply,)))
    assert right == (float(number is not None), 1.0)


def test_no_number_is_never_right():
    assert FLEXIBLE.sums(Problem(answer="x"), Written(("x", ""))) == (0.0, 1.0)


def test_the_final_number_of_every_answer_of_gsm8k_is_the_one_after_its_mark():
    if not GSM8K.exists():
        pytest.skip(f"needs {GSM8K}")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()]
    assert len(answers) == 1319
    for answer in answers:
        steps, _, number = answer.partition("\n#### ")
        assert final_number(answer) == final_number(f"{steps}\nA: {number}") == int(number.replace(",", ""))
        assert FLEXIBLE.sums(Problem(answer=answer), Written((f"A: {number}", f"A: {number}1")))[0] == 0.5
