"""Mixing keeps its promises: shares, counts, order, and the same records for the same seed."""

import json
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from lmf import ConfigError, Conversation, DataError, Message, Preference, Ranking, Record, Unpaired
from lmf.data.mixture import draws, held_out_data, interleave, sample, training_data, unique, weighted, with_system
from lmf.settings import RunSettings


def records(name, count):
    """Records that are all different."""
    said = [Conversation((Message("user", f"{name} {n}"), Message("assistant", "Hello!"))) for n in range(count)]
    return [Record(f"{name}:{n}", data) for n, data in enumerate(said)]


# Weights


def test_weights_are_taken_off_the_names():
    assert weighted(["a.jsonl:0.7", "b:3", "hf:o/n:test:.5"]) == (["a.jsonl", "b", "hf:o/n:test"], ["0.7", "3", ".5"])
    assert weighted(["a.jsonl", "package:name", "hf:o/n:train[:10]"])[1] == []


def test_a_path_that_exists_is_no_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:1", "a:1:2"):
        Path(name).touch()
    assert weighted(["a:1"]) == (["a:1"], [])
    assert weighted(["a:1:2"]) == (["a:1:2"], [])
    assert weighted(["a:1:3"]) == (["a:1"], ["3"])


def test_weights_for_some_and_weights_of_nothing_are_refused():
    with pytest.raises(
        ConfigError, match=r"^--data b has no weight and others have one; write b:WEIGHT, or none at all"
    ):
        weighted(["a:1", "b"])
    with pytest.raises(ConfigError, match=r"^--data a:0\.0: the weight is 0; it must be greater"):
        weighted(["a:0.0", "b:1"])


MIXTURES = [
    ([10, 10], ["1", "1"]),
    ([7, 3], ["0.7", "0.3"]),
    ([1000, 90, 3], ["0.6", "0.3", "0.1"]),
    ([5, 1000], ["9", "1"]),
    ([17, 31, 1], ["1", "2", "3"]),
    ([1], ["0.25"]),
]


@pytest.mark.parametrize(("lengths", "weights"), MIXTURES)
def test_shares_are_the_weights_up_to_a_fraction_of_a_record(lengths, weights):
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    for repeat in (False, True):
        counts = draws(lengths, [Fraction(weight) for weight in weights], repeat=repeat)
        total = (max if repeat else min)(length / share for length, share in zip(lengths, shares, strict=True))
        for count, length, share in zip(counts, lengths, shares, strict=True):
            assert abs(count - total * share) < 1
            assert count >= length if repeat else count <= length
        assert any(count == length for count, length in zip(counts, lengths, strict=True))


@pytest.mark.parametrize(("lengths", "weights"), MIXTURES)
@pytest.mark.parametrize("repeat", [False, True], ids=["first", "all"])
def test_a_mixture_holds_what_was_to_be_drawn_and_is_spread_evenly(lengths, weights, repeat):
    sources = [records(str(number), length) for number, length in enumerate(lengths)]
    counts = draws(lengths, list(map(Fraction, weights)), repeat=repeat)
    mixed = list(interleave(sources, counts, seed=3))
    times = Counter(record.where for record in mixed)
    for source, count in zip(sources, counts, strict=True):
        drawn = [times[record.where] for record in source]
        assert max(drawn) - min(drawn) <= 1  # none is repeated before all were drawn
        assert sum(drawn) == count
    so_far = [0] * len(sources)
    for place, record in enumerate(mixed, 1):
        so_far[int(record.where.partition(":")[0])] += 1
        for had, count in zip(so_far, counts, strict=True):
            assert abs(had - count * place / len(mixed)) <= len(sources)


def test_a_source_keeps_its_order_and_the_seed_chooses_from_it():
    sources = [records("a", 100), records("b", 10)]
    mixed = {seed: list(interleave(sources, [10, 10], seed)) for seed in (0, 0, 1)}
    assert mixed[0] == list(interleave(sources, [10, 10], 0))
    assert mixed[0] != mixed[1]
    for each in mixed.values():
        for source in sources:
            places = [source.index(record) for record in each if record in source]
            assert places == sorted(places)
        assert [record for record in each if record in sources[1]] == sources[1]


def test_a_sample_keeps_the_order_and_is_a_function_of_the_seed():
    all_ = list(range(1000))
    for seed in range(5):
        part = list(sample(all_, 100, seed))
        assert part == sorted(set(part))
        assert len(part) == 100
        assert part == list(sample(all_, 100, seed))
    assert list(sample(all_, 100, 0)) != list(sample(all_, 100, 1))
    assert list(sample(all_, 1000, 0)) == all_
    means = [sum(sample(all_, 100, seed)) / 100 for seed in range(200)]
    assert abs(sum(means) / 200 - 499.5) < 10  # of all of them: the deviation of this mean is 2


# Duplicates and system messages


def test_exact_duplicates_are_left_out_wherever_they_stand():
    a, b = records("a", 3), records("b", 2)
    again = [Record("c:1", a[1].data), Record("c:2", b[0].data)]
    nearly = Record("c:3", Conversation((*a[0].data.messages[:1], Message("assistant", "Hello"))))
    assert [*map(list, unique([[*a, a[0]], [*b, *again, nearly]]))] == [a, [*b, nearly]]


def test_what_differs_only_in_a_tool_or_a_weight_is_no_duplicate():
    said = (Message("user", "Hi"), Message("assistant", "Hello!"))
    different = [
        Conversation(said),
        Conversation(said, ({"type": "function", "function": {"name": "a"}},)),
        Conversation((said[0], Message("assistant", "Hello!", weight=0.5))),
        Conversation((said[0], Message("assistant", "Hello!", reasoning="x"))),
        "Hi",
    ]
    kept = [Record(f"a:{n}", data) for n, data in enumerate(different)]
    assert [*map(list, unique([kept + kept]))] == [kept]


ASKED, TOLD, OWN = Message("user", "Hi"), Message("system", "Be brief."), Message("system", "Be kind.")
REPLY = (Message("assistant", "Hello!"),)


def test_conversations_without_a_system_message_are_given_one():
    def each(*messages):
        talked = Conversation((*messages, *REPLY))
        asked = Conversation(messages)
        yield talked
        yield Preference(asked, REPLY, REPLY)
        yield Ranking(asked, ("a", "b"))
        yield Unpaired(talked, True)

    for without, told, own in zip(each(ASKED), each(TOLD, ASKED), each(OWN, ASKED), strict=True):
        assert with_system(Record("a:1", without), "Be brief.") == Record("a:1", told)
        assert with_system(Record("a:1", own), "Be brief.") == Record("a:1", own)


# By the settings of a run


@dataclass
class Files:
    """Three files of data, with 10, 4 and 2 records; the last is one of the first, and is twice there."""

    a: str
    b: str
    c: str


@pytest.fixture
def files(write):
    def lines(name, texts):
        rows = [json.dumps({"input": text, "output": "Hello!"}) for text in texts]
        return write(f"{name}.jsonl", "\n".join(rows).encode())

    return Files(
        lines("a", [f"a {n}" for n in range(10)]), lines("b", [f"b {n}" for n in range(4)]), lines("c", ["a 3", "a 3"])
    )


def train(plugins, *data, kind="conversation", **settings):
    return training_data(RunSettings(model="m", data=data, **settings), kind, plugins)


def asked(data):
    return [next(m.content for m in record.data.messages if m.role == "user") for record in data.records]


def test_without_more_words_all_records_are_taken_in_order(plugins, files):
    data = train(plugins, files.a, files.c, files.b, files.a)
    assert asked(data) == [*(f"a {n}" for n in range(10)), "a 3", "a 3", *(f"b {n}" for n in range(4))] + [
        f"a {n}" for n in range(10)
    ]
    assert [source.weight for source in data.sources] == [""] * 4


def test_shares_until_the_first_source_is_used_up(plugins, files):
    data = train(plugins, f"{files.a}:3", f"{files.b}:1", mix="interleave-first")
    assert Counter(text[0] for text in asked(data)) == {"a": 10, "b": 3}
    assert data.notes[2:] == [
        "a.jsonl: 10 records drawn of 10, 76.9% of the mixture",
        "b.jsonl: 3 records drawn of 4, 23.1% of the mixture",
    ]
    assert [source.weight for source in data.sources] == ["3", "1"]


def test_shares_until_all_sources_are_used_up(plugins, files):
    data = train(plugins, f"{files.a}:0.5", f"{files.b}:0.5", mix="interleave-all")
    assert asked(data)[:4] == ["a 0", "b 0", "a 1", "b 1"]
    assert Counter(text[0] for text in asked(data)) == {"a": 10, "b": 10}
    assert set(Counter(text for text in asked(data) if text[0] == "b").values()) == {2, 3}


def test_sources_that_are_interleaved_without_weights_have_equal_shares(plugins, files):
    data = train(plugins, files.a, files.b, mix="interleave-first")
    assert [text[0] for text in asked(data)] == ["a", "b"] * 4


def test_a_folder_is_one_source(plugins, files, write):
    for name in (files.a, files.b):
        write(f"d/{name}", Path(name).read_bytes())
    data = train(plugins, "d:1", f"{files.b}:1", mix="interleave-all")
    assert len(data.records) == 28
    assert [(source.path.name, source.weight) for source in data.sources] == [
        *(("a.jsonl", "1"), ("b.jsonl", "1")),
        ("b.jsonl", "1"),
    ]


def test_weights_that_no_mixing_was_asked_for_are_refused(plugins, files):
    with pytest.raises(ConfigError) as caught:
        train(plugins, f"{files.a}:0.7", f"{files.b}:0.3")
    assert str(caught.value) == (
        "--data gives weights, and --mix concat takes all records of all data. Choose --mix interleave-first, which "
        "ends with the first data that are used up, or --mix interleave-all, which repeats the shorter ones."
    )


def test_repeats_are_not_held_out_from_themselves(plugins, files):
    with pytest.raises(
        ConfigError, match=r"^--mix interleave-all repeats records, so --eval-split would hold out some"
    ):
        train(plugins, files.a, files.b, mix="interleave-all", eval_split=0.1)


def test_a_source_of_which_nothing_would_be_drawn_is_refused(plugins, files):
    with pytest.raises(
        DataError, match=r"^--mix interleave-first: no record of a.jsonl would be drawn; give it a larger"
    ):
        train(plugins, f"{files.a}:0.1", f"{files.b}:0.9", mix="interleave-first")
    for mix in ("interleave-first", "interleave-all"):
        with pytest.raises(
            DataError, match=rf"^--mix {mix}: all records of c\.jsonl stand in other data; leave it out"
        ):
            train(plugins, files.a, files.c, mix=mix, dedup=True)


def test_duplicates_are_left_out_and_counted(plugins, files):
    data = train(plugins, files.a, files.c, files.b, dedup=True)
    assert asked(data) == [*(f"a {n}" for n in range(10)), *(f"b {n}" for n in range(4))]
    assert data.notes[-1] == "2 duplicates left out"


def test_a_limit_holds_for_the_mixture_and_the_seed_chooses(plugins, files):
    part = train(plugins, files.a, files.b, max_samples=5, seed=1)
    every = asked(train(plugins, files.a, files.b))
    assert asked(part) == [text for text in every if text in asked(part)]
    assert part.notes[-1] == "5 of 14 records chosen by --seed 1"
    assert asked(part) == asked(train(plugins, files.a, files.b, max_samples=5, seed=1))
    assert asked(part) != asked(train(plugins, files.a, files.b, max_samples=5, seed=2))
    assert len(train(plugins, files.a, max_samples=50).records) == 10


def test_a_system_message_for_all_is_for_held_out_data_too(plugins, files):
    settings = RunSettings(model="m", data=(files.a, files.b), eval_data=(files.c,), system=("Be brief.",))
    for data in (training_data(settings, "conversation", plugins), held_out_data(settings, "conversation", plugins)):
        assert {record.data.messages[0] for record in data.records} == {TOLD}


def test_a_system_message_for_each_source_is_for_that_one(plugins, files):
    data = train(plugins, files.b, files.c, system=("Be brief.", "Be kind."))
    assert [record.data.messages[0] for record in data.records] == [TOLD] * 4 + [OWN] * 2


def test_system_messages_that_have_no_place_are_refused(plugins, files, write):
    for settings, message in (
        ({"system": ("x", "y")}, "--system is given 2 times and --data 3 times; give one for all, or one for each."),
        ({"system": ("x",), "kind": "text"}, "--system: texts are learned here, and a text has no system message."),
        (
            {"system": ("x", "y", "z"), "eval_data": (files.c,)},
            "--system is given for each of --data, so --eval-data would have none; give one for all, or use "
            "--eval-split.",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            train(plugins, files.a, files.b, files.c, **settings)
        assert str(caught.value) == message


def test_columns_formats_and_bad_records_are_settings_of_a_run(plugins, write):
    write("a.jsonl", b'{"question": "Hi", "answer": "Hello!"}\n{"question": "Hi"}')
    settings = {"columns": ("prompt=question", "response=answer"), "on_bad_record": "skip", "format": "alpaca"}
    data = train(plugins, "a.jsonl", eval_data=("a.jsonl",), **settings)
    assert asked(data) == ["Hi"]
    assert data.skipped[0].startswith("a.jsonl:2: the record has no column 'answer' for 'output'")
    held_out = RunSettings(model="m", data=("x",), eval_data=("a.jsonl",), **settings)
    assert list(held_out_data(held_out, "conversation", plugins).records) == list(data.records)
    assert not held_out_data(RunSettings(model="m", data=("x",)), "conversation", plugins).records
    with pytest.raises(ConfigError, match=r"^--columns has the part 'question'; write KEY=COLUMN"):
        train(plugins, "a.jsonl", columns=("question",))
