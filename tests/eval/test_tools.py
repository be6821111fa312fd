"""Figures of calls of tools, worked out by hand."""

import json
from pathlib import Path

import pytest
from lmf import Plugins, Problem, ToolCall, Written
from lmf.evaluate.sources import find_tasks, read_items
from lmf_eval.tools import ARGUMENTS, FALSE_POSITIVE, SELECTION
from terminal import lmf

WANTED = Problem(prompt="?", more={"calls": [{"name": "weather", "arguments": {"city": "Lima"}}]})
NOTHING = Problem(prompt="?", answer="Hi.", more={"calls": []})
RIGHT = ToolCall("weather", {"city": "Lima"})
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def wrote(*calls: ToolCall) -> Written:
    return Written(("",), ("stop",), (calls,))


@pytest.mark.parametrize(
    ("calls", "selected", "arguments"),
    [
        ((RIGHT,), 1.0, 1.0),
        ((), 0.0, 0.0),
        ((ToolCall("time", {"city": "Lima"}),), 0.0, 0.0),
        ((ToolCall("weather", {"city": "Rome"}),), 1.0, 0.5),  # of two words each, city is the same
        ((RIGHT, ToolCall("time", {})), 1.0, 1.0),  # the first counts
    ],
)
def test_the_tool_and_its_arguments_are_judged_where_a_call_is_expected(calls, selected, arguments):
    assert SELECTION.sums(WANTED, wrote(*calls)) == (selected, 1.0)
    assert ARGUMENTS.sums(WANTED, wrote(*calls)) == pytest.approx((arguments, 1.0))
    assert FALSE_POSITIVE.sums(WANTED, wrote(*calls)) == (0.0, 0.0)


@pytest.mark.parametrize(("calls", "false"), [((), 0.0), ((RIGHT,), 1.0)])
def test_a_call_where_none_is_expected_is_needless(calls, false):
    assert FALSE_POSITIVE.sums(NOTHING, wrote(*calls)) == (false, 1.0)
    assert SELECTION.sums(NOTHING, wrote(*calls)) == (0.0, 0.0)


@pytest.fixture
def dialogue(tmp_path) -> Path:
    """A dialogue with a call, its result and an answer."""
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": "Lima"})}}
    messages = [
        {"role": "user", "content": "How is it in Lima?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_call_id": "a"},
        {"role": "assistant", "content": "Sunny."},
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": messages, "tools": [TOOL]}) + "\n")
    return file


def test_every_reply_of_a_dialogue_is_asked_with_what_stands_before_it(dialogue):
    plugins = Plugins()
    items = read_items(find_tasks(["tools"], plugins)["tools"][0], plugins, str(dialogue)).items
    assert [len(item.problem.prompt) for item in items] == [1, 3]
    assert [item.problem.more["calls"] for item in items] == [[{"name": "weather", "arguments": {"city": "Lima"}}], []]
    assert all(item.problem.tools == (TOOL,) for item in items)


def test_a_template_that_writes_no_calls_is_refused(tiny, dialogue, tmp_path):
    done = lmf("eval", str(tiny), "--task", "tools", "--data", str(dialogue), "--template", "chatml", "--out", "out")
    assert done.code == 2 and "'chatml' has no place for calls of them; choose another --template" in done.err


def test_calls_are_read_in_the_notation_of_the_template(tiny, dialogue, tmp_path):
    out = tmp_path / "out"
    line = ["--task", "tools", "--data", str(dialogue), "--template", "qwen2_5", "--max-tokens", "3", "--out", str(out)]
    line += ["--on-overflow", "cut"]  # the tiny model reads 512 tokens
    done = lmf("eval", str(tiny), *line)
    assert done.code == 0, done.err
    lines = [json.loads(each) for each in (out / "items/tools.jsonl").read_text().splitlines()]
    assert [each["calls"] for each in lines] == [[[]], [[]]] and "<tools>" in lines[0]["prompt"]
