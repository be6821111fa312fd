"""Examples that are too long: what each policy leaves of them, and that everything is counted."""

from typing import Any

import pytest
from lmf import DataError
from lmf.encoding.encoder import IGNORED, Example
from lmf.encoding.fit import Overflow, Survey, fit

BOS, END = 1, 2


def talk(*replies: int, prompt: int = 3, where: str = "file:1") -> Example:
    """Return a conversation of prompts of so many tokens and replies that end with END."""
    ids, labels = [BOS], [IGNORED]
    for length in replies:
        said = [*range(100, 99 + length), END]
        ids += [*range(10, 10 + prompt), *said, 9]
        labels += [IGNORED] * prompt + said + [IGNORED]
    return Example(ids, labels, where)


def kept(examples: list[Example], limit: int, policy: Overflow, **options: Any) -> tuple[list[Example], Survey]:
    learned, survey = fit(
        examples,
        limit,
        policy,
        name="training",
        records=len(examples),
        ends={END},
        bos=BOS,
        **options,  # type: ignore[arg-type]
    )
    return list(learned), survey


@pytest.mark.parametrize("policy", ["error", "drop", "truncate-left", "truncate-right", "split"])
def test_what_fits_is_left_alone(policy: Overflow) -> None:
    examples = [talk(4), talk(2, 3)]
    limit = max(len(e.ids) for e in examples)
    learned, survey = kept(examples, limit, policy)
    assert learned == examples
    assert (survey.truncated, survey.dropped, survey.ends) == (0, {}, 2)


def test_long_examples_are_dropped_and_counted() -> None:
    learned, survey = kept([talk(4), talk(40), talk(4)], 20, "drop")
    assert learned == [talk(4), talk(4)]
    assert survey.dropped == {"longer than --max-tokens 20": 1}
    assert survey.truncated == 0
    assert survey.lengths == {"50%": 9, "90%": 45, "99%": 45, "max": 45}


@pytest.mark.parametrize("limit", range(9, 40))
def test_cutting_on_the_right_keeps_whole_replies(limit: int) -> None:
    example = talk(4, 4, 4, 4)  # of 1 + 4 * 8 tokens
    (learned,), survey = kept([example], limit, "truncate-right")
    assert len(learned.ids) <= limit
    assert example.ids[: len(learned.ids)] == learned.ids
    assert example.labels[: len(learned.ids)] == learned.labels
    assert limit >= len(example.ids) or learned.ids[-1] == END
    assert learned.labels.count(END) == min(4, (limit - 1 + 1) // 8)
    assert survey.truncated == (limit < len(example.ids))


def test_a_reply_that_does_not_fit_is_not_cut_in_the_middle() -> None:
    learned, survey = kept([talk(40, where="file:7"), talk(3)], 20, "truncate-right")
    assert learned == [talk(3)]
    assert survey.dropped == {"with no whole reply within --max-tokens 20": 1}
    assert survey.truncated == 0


@pytest.mark.parametrize("limit", range(3, 30))
def test_cutting_on_the_left_keeps_the_beginning_token_and_the_end(limit: int) -> None:
    example = talk(4, 20)
    (learned,), _ = kept([example], limit, "truncate-left")
    assert len(learned.ids) == len(learned.labels) == min(limit, len(example.ids))
    assert learned.ids[0] == BOS
    assert learned.ids[1:] == example.ids[-(limit - 1) :]
    assert learned.labels[-2] == END  # behind the end stands one token that is not learned
    without = Example(example.ids[1:], example.labels[1:], "here")
    (learned,), _ = kept([without], limit, "truncate-left")
    assert learned.ids == without.ids[-limit:]


@pytest.mark.parametrize("limit", [5, 8, 16, 44])  # not where the first token of a part ends a reply
def test_a_split_example_keeps_every_token_and_leaves_out_parts_without_a_reply(limit: int) -> None:
    example = talk(4, 30)
    learned, survey = kept([example], limit, "split")
    assert all(len(e.ids) <= limit and e.weight for e in learned)
    starts = range(0, len(example.ids), limit)
    windows = [(example.ids[s : s + limit], example.labels[s : s + limit]) for s in starts]
    assert [(e.ids, e.labels) for e in learned] == [w for w in windows if any(x != IGNORED for x in w[1][1:])]
    assert (survey.truncated, survey.examples) == (len(example.ids) > limit, len(learned))


@pytest.mark.parametrize("policy", ["truncate-left", "truncate-right", "split"])
def test_weights_are_cut_with_their_tokens(policy: Overflow) -> None:
    example = talk(4, 30)
    weighted = Example(example.ids, example.labels, "here", [float(i) for i in range(len(example.ids))])
    for part in kept([weighted], 12, policy)[0]:
        assert part.weights is not None
        positions = [int(weight) for weight in part.weights]
        assert [example.ids[i] for i in positions] == part.ids
        assert [example.labels[i] for i in positions] == part.labels


def test_examples_without_a_token_to_learn_are_dropped_and_counted() -> None:
    empty = Example([BOS, 5, 6], [IGNORED] * 3, "file:2")
    learned, survey = kept([talk(3), empty], 50, "drop")
    assert learned == [talk(3)]
    assert survey.dropped == {"without a token to learn": 1}


def test_too_many_dropped_examples_are_an_error_that_names_the_first_of_each_kind() -> None:
    examples = [talk(3)] * 18 + [talk(40, where="file:19"), Example([BOS, 5], [IGNORED] * 2, "file:20")]
    with pytest.raises(DataError) as told:
        kept(examples, 20, "drop", most_dropped=0.05)
    assert str(told.value).splitlines()[:3] == [
        "2 of 20 training examples would be dropped, more than --max-dropped 0.05 allows:",
        "  1 longer than --max-tokens 20, first file:19",
        "  1 without a token to learn, first file:20",
    ]
    assert len(kept(examples, 20, "drop", most_dropped=0.1)[0]) == 18
    with pytest.raises(DataError, match="2 of 20 training examples would be dropped"):
        kept(examples[:-1], 20, "drop", most_dropped=0.05, refused=["file:21: no"])


def test_the_advice_fits_the_reasons_and_a_refused_record_is_named() -> None:
    empty = Example([BOS, 5], [IGNORED] * 2, "file:20")
    with pytest.raises(DataError) as told:
        kept([talk(3), talk(3), empty], 20, "drop", most_dropped=0.1, refused=["file:21: no place for tools"])
    assert str(told.value).splitlines() == [
        "2 of 4 training examples would be dropped, more than --max-dropped 0.1 allows:",
        "  1 without a token to learn, first file:20",
        "  1 that the template refuses, first file:21: no place for tools",
        "The loss counts the assistant's replies; see that there are some and that they come early enough.",
        "Choose another --template, correct these records, or allow more with --max-dropped.",
    ]


@pytest.mark.parametrize("policy", ["truncate-left", "truncate-right", "split"])
def test_what_is_dropped_is_not_counted_as_truncated(policy) -> None:
    barren = Example([BOS] + [5] * 40, [IGNORED] * 41, "file:2")
    assert kept([talk(3), barren], 20, policy)[1].truncated == 0
    assert kept([talk(3), barren], 20, policy)[1].dropped == {"without a token to learn": 1}


def test_a_set_without_anything_to_learn_is_an_error() -> None:
    with pytest.raises(DataError, match="None of the 2 training examples can be learned from:\n  2 longer than"):
        kept([talk(40), talk(40)], 20, "drop")


def test_the_account_adds_up() -> None:
    examples = [talk(3), talk(5, 5), talk(40)]
    learned, survey = kept(examples, 30, "drop")
    assert survey.tokens == sum(len(e.ids) for e in learned)
    assert survey.trained == sum(label != IGNORED for e in learned for label in e.labels[1:]) == 3 + 5 + 5
    assert dict(survey.rows())["trained tokens"] == "13 (48%)"
    assert dict(survey.rows())["dropped"] == "1 (1 longer than --max-tokens 30)"
    assert dict(survey.rows())["ends trained"] == "2 of 2 examples"
