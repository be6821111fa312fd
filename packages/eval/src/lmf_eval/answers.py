"""What a reply answers: LMFlow's answer types, and GSM8K as the lm-evaluation-harness judges it.

LMFlow's rules (``answer_extraction`` and ``Evaluator._match``) are kept as they are, with what is odd about them, so
that an accuracy under their names is LMFlow's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from lmf import Metric, Problem, Written
from lmf.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Rule:
    """How an answer is found in a reply, and compared.

    Attributes:
        extract: Returns the answer that a reply gives, from the reply and the right answer.
        folded: Whether upper and lower case are the same.
    """

    extract: Callable[[str, str], str]
    folded: bool = False

    def right(self, reply: str, answer: str) -> bool:
        """Return whether a reply gives the right answer."""
        found = self.extract(reply, answer)
        return found.lower() == answer.lower() if self.folded else found == answer


def _number(reply: str, answer: str) -> str:
    numbers = re.findall(r"-?\d+\.?\d*", reply.replace(",", ""))
    return numbers[-1].removesuffix(".") if numbers else ""


def _whole(reply: str, answer: str) -> str:
    try:
        return str(round(float(_number(reply, answer))))
    except (ValueError, OverflowError):  # no number, or one of more than 308 digits
        return ""


def _capital(reply: str, answer: str) -> str:
    return "".join(re.findall("[A-E]", reply))[-1:]


def _yes_no(reply: str, answer: str) -> str:
    words = re.split(r"[\"'\s.:,]", reply.lower())
    return next((word for word in reversed(words) if word in ("yes", "no")), "")


def _last_letters(reply: str, answer: str) -> str:
    kept = re.sub(r"[\"'\s.]", "", reply)
    return kept[max(len(kept) - len(answer), 0) :]


_DECISION = "yes|Yes|YES|no|No|NO|maybe|Maybe|MAYBE"
_SAID = "answer|Answer|ANSWER|output|Output|OUTPUT|A"


def _decision(reply: str, answer: str) -> str:
    """Return the first decision after ``Answer:``, else the first before a dot or white space.

    Brackets after ``Answer:`` belong to it, so that ``Answer: (yes)`` is never right.
    """
    found = re.search(rf"(?:{_SAID}): (\(*(?:{_DECISION}))", reply) or re.search(rf"({_DECISION})(?:\.|\s)", reply)
    return found[1].lower() if found else "N/A"


def _letter(said: str) -> Callable[[str, str], str]:
    """Return the rule that takes the first letter after one of some words, else the first before a dot or space.

    Of the latter it takes the second character where there is a bracket before the letter: of two brackets, a bracket.
    """

    def extract(reply: str, answer: str) -> str:
        if found := re.search(rf"(?:{said}): \(*([A-Da-d])", reply):
            return found[1].lower()
        found = re.search(r"(\(*[A-Da-d])\)*(?:\.|\s)", reply)
        return found[1][:2][-1].lower() if found else "N/A"

    return extract


def _all(reply: str, answer: str) -> str:
    return reply


RULES: Mapping[str, Rule] = {
    name: rule
    for names, rule in (
        ("gsm8k svamp", Rule(_whole)),
        ("asdiv addsub singleeq multiarith math", Rule(_number)),
        ("aqua csqa multiple_choice", Rule(_capital)),
        ("strategyqa coin_flip", Rule(_yes_no, folded=True)),
        ("last_letters", Rule(_last_letters)),
        ("pubmedqa binary_choice", Rule(_decision, folded=True)),
        ("medmcqa", Rule(_letter(_SAID), folded=True)),
        ("usmle", Rule(_letter("Answer|Output|A"), folded=True)),
        ("text text_only text2text", Rule(_all)),
    )
    for name in names.split()
}
"""LMFlow's answer types.

``last_letters`` keeps as many letters as the right answer has; LMFlow reads their number from a variable that is not
there, and so finds no answer at all.
"""


def _share(name: str, right: Callable[[str, str], bool]) -> Metric:
    """Return the share of replies that are right, by the reply and the right answer."""

    def measure(problem: Problem, written: Written) -> float:
        return sum(right(text, problem.answer) for text in written.texts) / len(written.texts)

    return Metric(name=name, measure=measure)


def answer_metric(type: str, name: str = "acc") -> Metric:
    """Return LMFlow's accuracy for an answer type.

    Args:
        type: The type, one of ``RULES``.
        name: The metric's name.

    Raises:
        UnknownName: There is no such type.
    """
    if type not in RULES:
        raise UnknownName("answer type", type, RULES)
    return _share(name, RULES[type].right)


def matched(pattern: str, which: int, reply: str) -> str:
    """Return one of all matches of a pattern in a reply, as the harness's filter ``regex`` does.

    Args:
        pattern: The pattern; the last group that took part counts.
        which: The match: 0 is the first, -1 the last.
        reply: The reply.
    """
    found = list(re.finditer(pattern, reply))
    return found[which][found[which].lastindex or 0].strip() if found else "[invalid]"


def _bare(text: str) -> str:
    for ignored in (",", r"\$", "(?s).*#### ", r"\.$"):
        text = re.sub(ignored, "", text)
    return text.lower()


def _harness(pattern: str, which: int) -> Callable[[str, str], bool]:
    return lambda reply, answer: _bare(matched(pattern, which, reply)) == _bare(answer)


STRICT = _share("strict_match", _harness(r"#### (\-?[0-9\.\,]+)", 0))
"""GSM8K as the lm-evaluation-harness 0.4.13 judges it: the first number after ``####`` is the answer's."""
FLEXIBLE_EXTRACT = _share("flexible_extract", _harness(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1))
"""GSM8K as the lm-evaluation-harness 0.4.13 judges it: the last that looks like a number is the answer's."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?!\d)(?:\.\d+)?|\.\d+"
_VALUE = re.compile(rf"(?<![A-Za-z0-9_])(?<!\d\.)([-−]?)(?:[$€£¥]\s?)?([-−]?)({_DIGITS})")
_MARK = re.compile(r"####|^\s*A:|\b[Aa]nswer(?: is|:)", re.MULTILINE)


def final_number(reply: str) -> Decimal | None:
    """Return the number that a reply ends with; None where it has none.

    It is the first in the line after the last ``####``, ``A:``, ``answer:`` or ``answer is``, and after ``=`` there;
    else the last of the reply. Signs of currency, commas between thousands, and units do not matter.
    """
    *before, last = _MARK.split(reply)
    line = last.strip().partition("\n")[0].rpartition("=")[2] if before else ""
    found = [*_VALUE.finditer(line)][:1] or [*_VALUE.finditer(reply)]
    if not found:
        return None
    minus, other_minus, digits = found[-1].groups()
    number = Decimal(digits.replace(",", ""))
    return number.copy_negate() if minus or other_minus else number


def _equal(reply: str, answer: str) -> bool:
    right = final_number(answer)
    return right is not None and final_number(reply) == right


FLEXIBLE = _share("flexible", _equal)
"""Whether the number that a reply ends with is the answer's, however it is written: 18.00 is 18."""

METRICS = (STRICT, FLEXIBLE_EXTRACT, FLEXIBLE, *(answer_metric(type, f"answer_{type}") for type in RULES))
"""All, each with a name of its own."""
