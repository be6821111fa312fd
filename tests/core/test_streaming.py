"""Data that are read while they are learned: what is read, in which order, and that a run goes on where it was."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from datafiles import core_plugins
from lmf import ConfigError, DataError, RunSettings
from lmf.config import make
from lmf.data.reading import read
from lmf.data.streaming import RecordStream
from lmf.encoding.encoder import Example
from lmf.encoding.examples import Examples
from lmf.encoding.fit import Survey
from lmf.encoding.stream import Position, Stream
from lmf.errors import Interrupted
from lmf.testing import tiny_checkpoint
from tinyrun import Notes, apart, log, plan, run, run_in_two, stop_at, talks

PLUGINS = core_plugins()


def numbered(file: Path, count: int, name: str = "") -> str:
    """Write records that differ, and return the file's name."""
    lines = [json.dumps({"input": f"{name}{i}", "output": "Yes."}) for i in range(count)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


def streamed(*names: str, **settings: object) -> RecordStream:
    values = {"model": "m", "data": names, "streaming": True, "steps": 1, **settings}
    return RecordStream(make(RunSettings, values), "conversation", PLUGINS)


def asked(records: RecordStream) -> list[str]:
    """Return the questions of one pass."""
    return [record.data.messages[-2].content for record in records.records()]  # type: ignore[union-attr]


# Records


def test_a_pass_has_the_records_that_reading_whole_gives(tmp_path):
    first, second = numbered(tmp_path / "a.jsonl", 7), numbered(tmp_path / "b.json.jsonl", 5, "b")
    table = tmp_path / "c.csv"
    table.write_text("input,output\nHi,Hello!\n", encoding="utf-8")
    names = [first, str(table), second]
    records = streamed(*names)
    for _ in range(2):  # and so has the next pass
        assert list(records.records()) == list(read(names, "conversation", PLUGINS).records)
    assert [(source.format, source.records) for source in records.sources] == [("text2text", None)] * 3


def test_records_are_read_when_they_are_asked_for(tmp_path):
    file = tmp_path / "a.jsonl"
    good = '{"input": "Hi", "output": "Hello!"}\n'
    file.write_text(good * 5000 + "not JSON", encoding="utf-8")
    reader = streamed(str(file)).records()
    assert len(list(itertools.islice(reader, 5000))) == 5000
    with pytest.raises(DataError, match=r"a\.jsonl:5001: "):
        next(reader)


def test_shares_are_kept_at_every_place_and_the_first_that_is_used_up_ends_a_pass(tmp_path):
    names = [numbered(tmp_path / "a.jsonl", 90, "a"), numbered(tmp_path / "b.jsonl", 100, "b")]
    found = asked(streamed(f"{names[0]}:0.75", f"{names[1]}:0.25", mix="interleave-first"))
    for end in range(1, len(found)):
        assert abs(sum(text[0] == "a" for text in found[:end]) - 0.75 * end) <= 1
    assert [text for text in found if text[0] == "a"] == [f"a{i}" for i in range(90)]
    assert [text for text in found if text[0] == "b"] == [f"b{i}" for i in range(len(found) - 90)]
    assert len(found) - 90 in (29, 30)


def test_interleaving_all_begins_the_shorter_data_again_until_the_longest_are_used_up(tmp_path):
    names = [numbered(tmp_path / "a.jsonl", 3, "a"), numbered(tmp_path / "b.jsonl", 10, "b")]
    found = Counter(asked(streamed(*names, mix="interleave-all")))
    assert [found[f"b{i}"] for i in range(10)] == [1] * 10
    assert sum(found[f"a{i}"] for i in range(3)) in (10, 11)
    assert max(found[f"a{i}"] for i in range(3)) == 4


def test_each_of_the_data_gets_its_system_message(tmp_path):
    names = [numbered(tmp_path / "a.jsonl", 1), numbered(tmp_path / "b.jsonl", 1)]
    found = streamed(*names, system=("Be brief.", "Be kind.")).records()
    assert [record.data.messages[0].content for record in found] == ["Be brief.", "Be kind."]  # type: ignore[union-attr]


def test_a_bad_record_that_may_be_left_out_is_counted(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"input": "Hi", "output": null}\n' * 30 + '{"input": "Hi", "output": "Yes."}\n', encoding="utf-8")
    records = streamed(str(file), on_bad_record="skip")
    assert (len(asked(records)), records.bad, len(records.first_bad)) == (1, 30, 20)
    assert records.first_bad[0] == f"{file}:1: output is null; it must be a text."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": "Hi", "output": null}\n', "a.jsonl:1: output is null; it must be a text."),
        ("", "a.jsonl is empty"),
        ('{"question": "Hi", "answer": "Hello!"}\n', "a.jsonl:1: no data format has the keys 'question', 'answer'."),
        ('{"text": "Hi"}\n', "a.jsonl:1: the record is a text (format text), and here conversations are learned."),
    ],
)
def test_data_of_which_nothing_can_be_used_are_refused_at_once(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        streamed(str(tmp_path / "a.jsonl"))
    assert message in str(refused.value)


def test_a_file_of_bad_records_is_refused_even_if_they_may_be_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input": "Hi", "output": null}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl holds no record that can be used; the first problem:\n.*:1: output"):
        streamed(str(tmp_path / "a.jsonl"), on_bad_record="skip")


def test_the_first_problem_of_a_file_is_told_and_each_once(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"output": 1}\n{"output": 2}\n')
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\n")
    with pytest.raises(DataError, match=r"bad\.jsonl holds no record that can be used; the first problem:\n.*:1: "):
        streamed(str(bad), on_bad_record="skip")
    good = numbered(tmp_path / "good.jsonl", 3)
    (tmp_path / "good.jsonl").write_text('{"output": 1}\n' + (tmp_path / "good.jsonl").read_text())
    with pytest.raises(DataError, match=r"blank\.jsonl holds no record that can be used\.$"):
        streamed(good, str(blank), on_bad_record="skip")
    records = streamed(good, on_bad_record="skip")
    for _ in range(2):
        assert len(list(records.records())) == 3
    assert records.bad == 2
    assert [problem.partition(": ")[0] for problem in records.first_bad] == [f"{good}:1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": None}, "--streaming: the data may have no end; say how long to train: --steps."),
        ({"dedup": True}, "--streaming and --dedup: that needs all records at once"),
        ({"max_samples": 3}, "--streaming and --max-samples: that needs all records at once"),
        ({"eval_split": 0.1}, "--streaming and --eval-split: records are never all there to choose from"),
        ({"data": ("-",)}, "--streaming reads the data once for every pass; standard input ends after one."),
    ],
)
def test_what_needs_all_records_at_once_is_refused(settings, message, tmp_path):
    names = settings.pop("data", (numbered(tmp_path / "a.jsonl", 3),))
    with pytest.raises(ConfigError) as refused:
        streamed(*names, **settings)
    assert str(refused.value).startswith(message)


# Examples


def stream(count: int = 50, block: int = 8, seed: int = 0, position: Position | None = None) -> Stream:
    """A stream of examples that are their numbers; those of block 3 have two of each."""

    def encode(numbers: list[int]) -> tuple[Examples, Survey]:
        times = 2 if 24 in numbers else 1
        found = Examples(Example([n], [n], str(n)) for n in numbers for _ in range(times))
        return found, Survey(
            name="", records=0, examples=0, tokens=0, trained=0, lengths={}, dropped={}, truncated=0, ends=0
        )

    made = Stream(lambda: iter(range(count)), encode, block, seed)  # type: ignore[arg-type]
    if position:
        made.position = position
    return made


def taken(examples: Stream, size: int, steps: int) -> list[list[int]]:
    return [[e.ids[0] for e in batch] for batch in itertools.islice(examples.batches(size), steps)]


def test_each_pass_has_every_example_and_another_order():
    found = list(itertools.chain.from_iterable(taken(stream(), 1, 58 * 3)))
    passes = [found[start : start + 58] for start in range(0, len(found), 58)]
    assert [sorted(each) for each in passes] == [sorted([*range(50), *range(24, 32)])] * 3
    assert len(set(map(tuple, passes))) == 3
    assert all(each != sorted(each) for each in passes)
    assert taken(stream(seed=1), 1, 58) != taken(stream(), 1, 58)


@pytest.mark.parametrize("size", [1, 5, 8, 70])
def test_a_run_that_goes_on_at_a_position_sees_what_it_would_have_seen(size):
    whole = stream()
    reader = whole.batches(size)
    seen = [([e.ids[0] for e in next(reader)], whole.position) for _ in range(150 // size)]
    assert len({position for _, position in seen}) == len(seen)
    for i, (_, position) in enumerate(seen):
        rest = taken(stream(position=position), size, len(seen) - i - 1)
        assert rest == [batch for batch, _ in seen[i + 1 :]]


def test_no_more_than_a_block_is_read_ahead():
    read_so_far = []

    def records():
        for number in range(1000):
            read_so_far.append(number)
            yield number

    empty = Survey(name="", records=0, examples=0, tokens=0, trained=0, lengths={}, dropped={}, truncated=0, ends=0)
    made = Stream(records, lambda numbers: (Examples(Example([n], [n], "") for n in numbers), empty), 10, 0)  # type: ignore[arg-type]
    for count, _ in enumerate(itertools.islice(made.batches(1), 500)):
        assert len(read_so_far) <= count + 10


# Runs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


STREAMED = {"streaming": True, "max_tokens": 256, "shuffle_buffer": 7, "batch_size": 3, "save_every": 4}


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(stop, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 20)
    whole = run(tiny, data, tmp_path / "whole", steps=12, **STREAMED)
    settings = {"steps": 12, **STREAMED}
    parts = run_in_two(stop, tiny, data, tmp_path / "parts", **settings)
    assert log(parts) == log(whole)
    assert apart(parts, whole) == {"loss": 0, "gradient_norm": 0, "weights": 0}
    assert [line["epoch"] for line in log(whole, "epoch")][::4] == [0, 0, 1]


def test_a_bad_record_ends_a_run_with_its_work_saved_and_it_goes_on_without_the_record(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 40)
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:20], '{"messages": []}', *lines[20:]]), encoding="utf-8")
    with pytest.raises(DataError) as stopped:
        run(tiny, data, tmp_path / "out", steps=9, **STREAMED)
    first, *_, saved, advice = str(stopped.value).splitlines()
    assert first.startswith(f"{data}:21: the conversation has no messages.")
    assert saved.startswith("Stopped after step 4 of 9; saved ")
    assert advice.endswith("--on-bad-record skip")
    report = Notes()
    out = run(tiny, data, tmp_path / "out", steps=9, resume="newest", on_bad_record="skip", report=report, **STREAMED)
    assert [line["step"] for line in log(out)] == [*range(1, 10)]
    assert "1 bad records were left out" in report.notes
    assert f"{data}: streamed, format messages" in report.notes
    assert json.loads((out / "lmf.json").read_text())["data"][0]["records"] is None


def test_a_bad_record_in_the_first_block_is_told_before_anything_is_written(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 3)
    data.write_text(data.read_text() + "{}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"talks\.jsonl:4: "):
        run(tiny, data, tmp_path / "out", steps=2, **STREAMED)
    assert not (tmp_path / "out").exists()


def test_too_many_dropped_examples_in_a_block_end_the_run(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 8)
    with pytest.raises(DataError, match=r"training examples would be dropped, more than --max-dropped 0\.05 allows"):
        run(tiny, data, tmp_path / "out", steps=2, **{**STREAMED, "max_tokens": 24})


def test_limits_hold_for_all_that_was_read_and_not_for_a_short_last_block(tiny, tmp_path):
    """The last block holds one record, which is too long; 1 of 41 may be dropped."""
    data = talks(tmp_path / "talks.jsonl", 40)
    long = {"messages": [{"role": "user", "content": "a " * 200}, {"role": "assistant", "content": "b"}]}
    data.write_text(data.read_text() + json.dumps(long) + "\n", encoding="utf-8")
    report = Notes()
    settings = {**STREAMED, "shuffle_buffer": 20, "max_tokens": 100, "batch_size": 4}
    out = run(tiny, data, tmp_path / "out", steps=13, report=report, **settings)
    assert log(out)[-1]["epoch"] == 1
    assert any("1 examples of them dropped" in note for note in report.notes)


def test_a_run_does_not_go_on_with_other_data(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 20)
    with pytest.raises(Interrupted):
        run(tiny, data, tmp_path / "out", steps=4, report=stop_at(2), **STREAMED)
    data.write_text(data.read_text() + data.read_text().splitlines()[0], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"began with something else:\n  data: talks\.jsonl"):
        plan(tiny, data, tmp_path / "out", steps=4, resume="newest", **STREAMED)
