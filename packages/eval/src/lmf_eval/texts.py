"""How near a reply comes to the texts that are right: F1, BLEU, ROUGE and chrF; exact match is in ``lmf`` itself.

BLEU and chrF are of all replies together: an item adds its counts, and the figure is made of their sums. They and
``bleu4_nltk`` go from 0 to 100, as their libraries give them; the others go from 0 to 1.
"""

from __future__ import annotations

import math
import re
import string
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from lmf import Metric, Problem, Written
from lmf.errors import LmfError

ORDERS = 4  # the longest n-gram of BLEU, in tokens
CHARACTERS = 6  # the longest n-gram of chrF, in characters
CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


def right_texts(problem: Problem) -> list[str]:
    """Return the replies that are right, each once; the empty one only where there is no other."""
    return [text for text in dict.fromkeys((problem.answer, *problem.references)) if text] or [""]


def _mean(score: Callable[[str, list[str]], float]) -> Callable[[Problem, Written], float]:
    """Return what measures the mean of a score over the replies."""

    def measure(problem: Problem, written: Written) -> float:
        right = right_texts(problem)
        return math.fsum(score(text, right) for text in written.texts) / len(written.texts)

    return measure


def _summed(counts: Callable[[str, list[str]], Sequence[float]]) -> Callable[[Problem, Written], Sequence[float]]:
    """Return what measures the sums of counts over the replies."""

    def measure(problem: Problem, written: Written) -> Sequence[float]:
        right = right_texts(problem)
        return [sum(column) for column in zip(*(counts(text, right) for text in written.texts), strict=True)]

    return measure


@contextmanager
def _needed(package: str) -> Iterator[None]:
    """Import something, and say how to install it where it is missing."""
    try:
        yield
    except ImportError:
        raise LmfError(f"This metric needs the package {package}: pip install 'lmf-eval[texts]'") from None


def words_of(text: str) -> list[str]:
    """Return the words of a text as SQuAD compares them: in lower case, without punctuation and articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(reply: str, right: list[str]) -> float:
    """Return the F1 of the words of a reply, for the nearest right text (SQuAD, arXiv:1606.05250)."""
    words = Counter(words_of(reply))
    return max(_f1(words, Counter(words_of(text))) for text in right)


def _f1(words: Counter[str], right: Counter[str]) -> float:
    common = (words & right).total()
    return 2 * common / (words.total() + right.total()) if common else 0.0


def starts_right(reply: str, right: list[str]) -> float:
    """Return whether a reply begins with a right text that is not empty (LLM-Genie's accuracy)."""
    return float(any(text and reply.startswith(text) for text in right))


@lru_cache
def _bleu(tokenizer: str) -> Any:
    with _needed("sacrebleu"):
        from sacrebleu.metrics.bleu import BLEU
    return BLEU(tokenize=tokenizer, force=True)  # force: says nothing of texts that look like tokens


def _bleu_counts(reply: str, right: list[str], tokenizer: str) -> list[float]:
    """Return the lengths of a reply and of the right text nearest in length, its right n-grams, and all of them."""
    score = _bleu(tokenizer).corpus_score([reply], [[text] for text in right])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu_total(sums: Sequence[float]) -> float:
    """Return BLEU (Papineni et al., 2002) as sacrebleu's ``corpus_bleu`` gives it."""
    replied, right, *counts = map(round, sums)
    score = _bleu("13a").compute_bleu(counts[:ORDERS], counts[ORDERS:], replied, right, smooth_method="exp")
    return score.score


def _nltk_bleu(reply: str, right: list[str]) -> float:
    """Return the BLEU-4 of the characters of one reply, as LLM-Genie and LLaMA-Factory compute it with nltk."""
    with _needed("nltk"):
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    if not reply:
        return 0.0
    smoothed = SmoothingFunction().method3
    score: Any = sentence_bleu([list(text) for text in right], list(reply), smoothing_function=smoothed)
    return 100 * float(score)


def _character_ngrams(text: str) -> list[Counter[str]]:
    text = "".join(text.split())
    return [
        Counter(text[start : start + size] for start in range(len(text) - size + 1))
        for size in range(1, CHARACTERS + 1)
    ]


def _chrf_counts(reply: str, right: list[str]) -> list[float]:
    """Return for each order how many n-grams a reply has, how many the right text, and how many both.

    Of several right texts the one with the best score counts, of equals the first.
    """
    ngrams = _character_ngrams(reply)
    candidates = [_common(ngrams, _character_ngrams(text)) for text in right]
    return max(candidates, key=_chrf_total)


def _common(reply: list[Counter[str]], right: list[Counter[str]]) -> list[float]:
    return [
        number
        for ours, theirs in zip(reply, right, strict=True)
        for number in (ours.total() if theirs else 0, theirs.total(), (ours & theirs).total())
    ]


def _chrf_total(sums: Sequence[float]) -> float:
    """Return chrF2 (Popović, 2015) as sacrebleu's ``corpus_chrf`` gives it.

    It is the F-score, recall weighing four times as much, of precision and recall, each the mean over the orders of
    which both texts have n-grams.
    """
    precision, recall, orders = 0.0, 0.0, 0
    for start in range(0, len(sums), 3):
        replied, right, both = sums[start : start + 3]
        if replied and right:
            precision, recall, orders = precision + both / replied, recall + both / right, orders + 1
    if not precision:  # nothing in common, so recall is 0, too
        return 0.0
    precision, recall = precision / orders, recall / orders
    return 100 * (5 * precision * recall / (4 * precision + recall))


class Segmenter:
    """Cuts Chinese into words, for rouge-score, which by itself keeps only Latin letters and digits."""

    def __init__(self) -> None:
        with _needed("jieba"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            warnings.filterwarnings("ignore", "invalid escape sequence", DeprecationWarning)
            warnings.filterwarnings("ignore", "invalid escape sequence|.* is an invalid escape", SyntaxWarning)
            import jieba
        jieba.setLogLevel("WARNING")
        self._jieba: Any = jieba.Tokenizer()
        with tempfile.TemporaryDirectory() as folder:  # jieba would read a cache that anyone may have put into /tmp
            self._jieba.tmp_dir = folder
            self._jieba.initialize()

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return [word for word in self._jieba.cut(text) if not word.isspace()]


@lru_cache
def _rouge_scorer(kind: str, chinese: bool) -> Any:
    with _needed("rouge-score"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer([kind], tokenizer=_segmenter() if chinese else None)


_segmenter = lru_cache(Segmenter)


def rouge(reply: str, right: list[str], kind: str) -> float:
    """Return the ROUGE F1 (Lin, 2004) of a reply, without stemming, for the nearest right text."""
    scorers = [(_rouge_scorer(kind, bool(CJK.search(text))), text) for text in right]
    return max(float(scorer.score(text, reply)[kind].fmeasure) for scorer, text in scorers)


TEXT_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="f1", measure=_mean(f1)),
        Metric(name="bleu", measure=_summed(partial(_bleu_counts, tokenizer="13a")), total=_bleu_total),
        Metric(name="bleu_zh", measure=_summed(partial(_bleu_counts, tokenizer="zh")), total=_bleu_total),
        Metric(name="bleu4_nltk", measure=_mean(_nltk_bleu)),
        Metric(name="chrf", measure=_summed(_chrf_counts), total=_chrf_total),
        Metric(name="rouge_1", measure=_mean(partial(rouge, kind="rouge1"))),
        Metric(name="rouge_2", measure=_mean(partial(rouge, kind="rouge2"))),
        Metric(name="rouge_l", measure=_mean(partial(rouge, kind="rougeL"))),
        Metric(name="genie_accuracy", measure=_mean(starts_right)),
    )
}
"""The metrics of texts, by name."""
