"""Records are packed and come back as they were, and those that were given away take no room."""

import random

import pytest
from lmf.conversation import Conversation, Message, Preference, Ranking, Record, ToolCall, Unpaired
from lmf.data.records import BLOCK, Records, joined_records
from lmf.errors import DataError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"é": {}}}}}
ASKED = Conversation((Message("system", "S"), Message("user", "Ünïcödé \ud800\x00")), (TOOL,))
CALL = ToolCall("f", {"a": [1, 2.5, None, {"b": "\u2028"}]}, "c1")
CALLED = Message("assistant", "", "thought", (CALL,), weight=0.25)
ANSWERED = Message("tool", "42", name="f", call_id="c1")
REPLY = Message("assistant", "R")

KINDS = [
    Conversation((*ASKED.messages, CALLED, ANSWERED, REPLY), (TOOL,)),
    "A text.",
    "",
    Preference(ASKED, (REPLY,), (CALLED, ANSWERED, REPLY), 0.5),
    Preference(ASKED, (REPLY,), (REPLY,)),
    Unpaired(Conversation((REPLY,)), True),
    Ranking(ASKED, ("a", "b"), (1.0, -2.0)),
    Ranking(ASKED, ("a",)),
]


def numbered(count: int, start: int = 0) -> list[Record]:
    return [Record(f"a.jsonl:{i}", KINDS[i % len(KINDS)]) for i in range(start, start + count)]


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_records_come_back_as_they_were(count):
    records = numbered(count)
    packed = Records(iter(records))
    assert len(packed) == count and bool(packed) == bool(count)
    assert list(packed) == records == list(packed)
    for at in random.Random(0).choices(range(-count, count), k=10) if count else ():
        assert packed[at] == records[at]
    for part in (slice(0, 3), slice(-2, None), slice(None, None, -7), slice(5, 2)):
        assert packed[part] == records[part]
    for outside in (count, -count - 1):
        with pytest.raises(IndexError):
            packed[outside]


def test_parts_of_any_length_are_joined_in_order():
    parts = [numbered(3), [], numbered(BLOCK + 5, 3), numbered(1, BLOCK + 8)]
    joined = joined_records([Records(part) for part in parts])
    expected = numbered(BLOCK + 9)
    assert list(joined) == expected
    assert [joined[i] for i in (0, 2, 3, BLOCK + 7, -1)] == [expected[i] for i in (0, 2, 3, BLOCK + 7, -1)]
    joined.extend(numbered(2, BLOCK + 9))
    assert list(joined) == numbered(BLOCK + 11)
    assert [joined[i] for i in (0, 2, 3, BLOCK + 10, -1)] == [
        numbered(BLOCK + 11)[i] for i in (0, 2, 3, BLOCK + 10, -1)
    ]


def test_what_is_given_away_is_gone():
    records = numbered(2 * BLOCK + 1)
    packed = Records(records)
    blocks = list(packed._blocks)
    given = packed.given_away()
    assert [next(given) for _ in range(BLOCK + 1)] == records[: BLOCK + 1]
    assert (len(packed), list(packed)) == (0, [])
    assert list(given) == records[BLOCK + 1 :]
    assert len(blocks) == 2


def test_many_small_parts_share_blocks():
    """Each block takes memory pages of its own, of which a process may have some 65,000."""
    packed = Records()
    for record in numbered(BLOCK + 7):
        packed.extend([record])
    assert len(packed._blocks) == 1
    assert list(packed) == numbered(BLOCK + 7)


def test_values_that_are_nested_too_deeply_are_told_with_their_record():
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    records = [*numbered(BLOCK - 5), Record("b.jsonl:7", Conversation((REPLY,), (deep,))), *numbered(5)]
    with pytest.raises(DataError, match=r"^b.jsonl:7: the record holds values that are nested too deeply\.$"):
        Records(records)
