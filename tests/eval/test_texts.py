import builtins
import random
import re
import warnings

import pytest
from lmf import Problem, Written
from lmf.errors import LmfError
from lmf_eval import texts
from lmf_eval.texts import TEXT_METRICS

ENGLISH = ["the", "a", "cat", "dog", "sat", "on", "mat,", "it's", "U.S.", "3.5", "(red)", "Cat", "quick.", "ran"]
CHINESE = [*"我你喜欢吃苹果香蕉今天气很好的了，。学习机器", "GPU", " ", "3.5"]


def figure(name, pairs):
    """Return a figure of (right texts, replies) for each item."""
    metric = TEXT_METRICS[name]
    items = [
        (Problem(answer=right[0], references=tuple(right[1:])), Written(tuple(replies))) for right, replies in pairs
    ]
    rows = [metric.sums(problem, written) for problem, written in items]
    return metric.total([sum(column) for column in zip(*rows, strict=True)])


def made(words, between, seed, number=40, rights=1):
    draw = random.Random(seed)

    def text(low):
        return between.join(draw.choices(words, k=draw.randint(low, 15)))

    return [([text(1) for _ in range(rights)], [text(0)]) for _ in range(number)]


@pytest.mark.parametrize("name", TEXT_METRICS)
@pytest.mark.parametrize("right", ["The cat sat.", "我喜欢吃苹果。", "", "...", "the"])
def test_an_empty_reply_gives_nothing(name, right):
    assert figure(name, [([right], [""])]) == 0
    assert figure(name, [([right], ["", ""]), (["x", "y z"], [""])]) == 0


@pytest.mark.parametrize("name", TEXT_METRICS)
@pytest.mark.parametrize("reply", [" ", "\n\t", ".", "的", "\x00", "😀", "a" * 3000])
def test_no_reply_is_an_error(name, reply):
    for right in ("The cat sat.", "我喜欢吃苹果。", ""):
        assert 0 <= figure(name, [([right], [reply])]) < 50


@pytest.mark.parametrize("name", sorted(set(TEXT_METRICS) - {"bleu_zh"}))
def test_a_reply_that_is_right_gets_all(name):
    most = 100 if name in ("bleu", "chrf", "bleu4_nltk") else 1
    value = figure(name, [(["nothing of it", "the quick red fox sat on a mat"], ["the quick red fox sat on a mat"])])
    assert value == pytest.approx(most)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_of_several_replies_each_counts(name):
    right = ["the cat sat on a mat", "a cat was sitting there"]
    replies = ["the cat sat on it", "", "the cat sat on a mat"]
    together = figure(name, [(right, replies)])
    assert together == pytest.approx(figure(name, [(right, [reply]) for reply in replies]))


@pytest.mark.parametrize(
    ("reply", "right", "value"),
    [
        ("the Cat sat", ["cat sat"], 1),
        ("A cat, an owl!", ["owl cat"], 1),
        ("cat sat down", ["the cat"], 2 * (1 / 3) / (4 / 3)),  # precision 1/3, recall 1
        ("cat cat", ["cat dog"], 0.5),
        ("x", ["y", "x z"], 2 / 3),
        ("theatre", ["re"], 0),
        ("don't", ["dont"], 1),
    ],
)
def test_f1_has_the_values_worked_by_hand(reply, right, value):
    assert figure("f1", [(right, [reply])]) == pytest.approx(value)


@pytest.mark.parametrize("rights", [1, 3])
@pytest.mark.parametrize(("name", "tokenizer", "words", "between"), [
    ("bleu", "13a", ENGLISH, " "),
    ("bleu", "13a", CHINESE, " "),
    ("bleu_zh", "zh", CHINESE, ""),
])  # fmt: skip
def test_bleu_is_sacrebleus_to_the_last_digit(name, tokenizer, words, between, rights):
    sacrebleu = pytest.importorskip("sacrebleu")
    values = []
    for seed in range(5):
        pairs = made(words, between, seed, rights=rights)
        references = [list(column) for column in zip(*(right for right, _ in pairs), strict=True)]
        expected = sacrebleu.corpus_bleu([reply for _, (reply,) in pairs], references, tokenize=tokenizer).score
        assert figure(name, pairs) == expected
        values.append(expected)
    assert max(values) > 1


@pytest.mark.parametrize("rights", [1, 3])
@pytest.mark.parametrize(("words", "between"), [(ENGLISH, " "), (CHINESE, ""), (["a", "b"], "")])
def test_chrf_is_sacrebleus_to_the_last_digit(words, between, rights):
    sacrebleu = pytest.importorskip("sacrebleu")
    for seed in range(5):
        pairs = made(words, between, seed, rights=rights)
        references = [list(column) for column in zip(*(right for right, _ in pairs), strict=True)]
        expected = sacrebleu.corpus_chrf([reply for _, (reply,) in pairs], references).score
        assert figure("chrf", pairs) == expected > 0


@pytest.mark.parametrize("words", [ENGLISH, CHINESE])
def test_bleu4_nltk_is_nltks_of_the_characters(words):
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    smoothed = bleu.SmoothingFunction().method3
    pairs = made(words, " ", 7)
    expected = [
        bleu.sentence_bleu([list(right)], list(reply), smoothing_function=smoothed) if reply else 0
        for (right,), (reply,) in pairs
    ]
    assert figure("bleu4_nltk", pairs) == pytest.approx(100 * sum(expected) / len(expected), rel=1e-12)


KINDS = [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_rouge_is_rouge_scores_without_stemming(name, kind):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([kind])
    pairs = made(ENGLISH, " ", 3, rights=2)
    expected = [scorer.score_multi(right, reply)[kind].fmeasure for right, (reply,) in pairs]
    assert figure(name, pairs) == pytest.approx(sum(expected) / len(expected), rel=1e-12)


@pytest.mark.parametrize(("name", "value"), [("rouge_1", 6 / 9), ("rouge_2", 4 / 7), ("rouge_l", 6 / 9)])
def test_rouge_cuts_chinese_into_words(name, value):
    # 我 喜欢 吃 苹果 。 and 我 喜欢 吃 香蕉: of words three of five and four, of pairs two of four and three
    assert figure(name, [(["我喜欢吃苹果。"], ["我喜欢吃香蕉"])]) == pytest.approx(value)


def test_chinese_is_cut_as_jieba_cuts_it(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jieba = pytest.importorskip("jieba")
    text = "今天天气很好，我们学习机器学习 GPU。"
    assert texts.Segmenter().tokenize(text) == [word for word in jieba.Tokenizer().cut(text) if word.strip()]
    assert "Building prefix dict" not in capfd.readouterr().err


def test_genies_accuracy_is_whether_a_reply_begins_with_the_answer():
    assert figure("genie_accuracy", [(["Yes"], ["Yes, it is", "yes", " Yes", "Yes"])]) == 0.5
    assert figure("genie_accuracy", [([""], ["anything"])]) == 0
    assert figure("genie_accuracy", [(["x", "No"], ["No."])]) == 1


def test_the_right_texts_are_the_answer_and_the_references_and_none_is_empty_beside_others():
    assert texts.right_texts(Problem(answer="a", references=("b", "a", ""))) == ["a", "b"]
    assert texts.right_texts(Problem(references=("b",))) == ["b"]
    assert texts.right_texts(Problem()) == [""]


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [
        ("bleu", "sacrebleu", "sacrebleu"),
        ("bleu4_nltk", "nltk", "nltk"),
        ("rouge_1", "rouge-score", "rouge_score"),
    ],
)
def test_a_metric_without_its_package_says_what_to_install(monkeypatch, name, package, module):
    real = builtins.__import__

    def missing(wanted, *rest, **more):
        if re.match(rf"{module}\b", wanted):
            raise ModuleNotFoundError(wanted)
        return real(wanted, *rest, **more)

    for cached in (texts._bleu, texts._rouge_scorer):
        cached.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(LmfError, match=re.escape(f"needs the package {package}: pip install 'lmf-eval[texts]'")):
        figure(name, [(["a"], ["b"])])


def test_every_metric_stands_under_its_name():
    assert {name: metric.name for name, metric in TEXT_METRICS.items()} == {name: name for name in TEXT_METRICS}
    assert all(metric.higher for metric in TEXT_METRICS.values())
