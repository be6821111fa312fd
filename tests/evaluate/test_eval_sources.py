"""From the names of tasks to their problems: what is found, and how what cannot be used is named."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lmf import ConfigError, DataError, DataSet, EvalTask, LmfError, Plugins, Problem, Remote, hookimpl
from lmf.errors import UnknownName
from lmf.evaluate.sources import FILE, find_tasks, groups_of, limited, read_items

TASK = {"source": "s", "version": 1, "data": "", "asks": "choices"}
GOOD = {"q": "Q?", "options": ["a", "b"], "gold": 1}
LINES = """
name = "capitals"
asks = "choices"
data = "data.jsonl"
prompt = "{q}"
choices = "options"
answer = "gold"
"""
MODULE = """
from lmf import EvalTask, Problem, hookimpl

def problems(record):
    return [Problem(prompt=record["q"], choices=tuple(record["options"]), right=(record["gold"],))]

@hookimpl
def lmf_tasks():
    return [EvalTask(name=name, source="s", version=1, data="", asks="choices", problems=problems)
            for name in ("mine", "mine-too")]
"""
NOTHING = "from lmf import hookimpl\n@hookimpl\ndef lmf_tasks():\n    return []\n"


def task(name: str, **more: Any) -> EvalTask:
    return EvalTask(**{**TASK, "name": name, **more})


def plugins_with(*tasks: EvalTask, datasets: tuple[DataSet, ...] = ()) -> Plugins:
    module = ModuleType("stub")
    module.lmf_tasks = hookimpl(lambda: tasks)  # type: ignore[attr-defined]
    module.lmf_datasets = hookimpl(lambda: datasets)  # type: ignore[attr-defined]
    found = Plugins(only=())
    found.register("acme", module)
    return found


PLUGINS = plugins_with(task("arc_easy", groups=("arc",)), task("arc_hard", groups=("arc", "hard")), task("piqa"))


def written(folder: Path, *records: Any, name: str = "data.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(file)


def asked(record: Any) -> list[Problem]:
    return [Problem(prompt=record["q"], choices=tuple(record["options"]), right=(record["gold"],))]


def refusal(given: EvalTask, data: str | None = None, plugins: Plugins = PLUGINS) -> str:
    with pytest.raises(DataError) as told:
        read_items(given, plugins, data)
    return str(told.value)


# Which tasks a name stands for


def test_a_name_a_group_and_several_of_them_are_found():
    assert list(find_tasks(["piqa"], PLUGINS)) == ["piqa"]
    assert list(find_tasks(["arc"], PLUGINS)) == ["arc_easy", "arc_hard"]
    assert list(find_tasks(["hard", "piqa", "arc"], PLUGINS)) == ["arc_hard", "piqa", "arc_easy"]
    assert find_tasks(["arc"], PLUGINS)["arc_hard"] == (PLUGINS.tasks["arc_hard"], "arc")
    assert {name: len(tasks) for name, tasks in groups_of(PLUGINS).items()} == {"arc": 2, "hard": 1}


def test_a_task_goes_before_a_group_of_its_name():
    plugins = plugins_with(task("arc", groups=("other",)), task("piqa", groups=("arc",)))
    assert list(find_tasks(["arc"], plugins)) == ["arc"]


@pytest.mark.parametrize(("name", "nearest"), [("arc-easy", "arc_easy"), ("hrad", "hard"), ("PIQA", "piqa")])
def test_an_unknown_name_is_told_the_nearest_task_or_group_and_all_of_them(name, nearest):
    with pytest.raises(UnknownName) as told:
        find_tasks([name], PLUGINS)
    assert str(told.value) == (
        f"No eval task is called {name!r}. Did you mean {nearest!r}?\nInstalled: arc, arc_easy, arc_hard, hard, piqa."
    )
    assert told.value.exit_code == 2


def test_a_toml_file_is_a_task_on_the_data_beside_it(tmp_path):
    written(tmp_path, GOOD)
    file = tmp_path / "capitals.toml"
    file.write_text(LINES)
    ((found, name),) = find_tasks([str(file)], PLUGINS).values()
    assert (found.name, found.data, name) == ("capitals", str(tmp_path / "data.jsonl"), str(file))
    (item,) = read_items(found, PLUGINS).items
    assert item.problem == Problem(prompt="Q?", choices=("a", "b"), right=(1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('answer = "gold"', 'answr = "gold"'), "no setting is called 'answr'; there are name, asks, data"),
        (('"choices"', '"choice"'), "choice"),
        (('name = "capitals"', ""), "name"),
        (('name = "capitals"', 'name = "Capitals!"'), "Capitals!"),
        (('answer = "gold"', 'metrics = "ac"'), "Did you mean 'acc'"),
        (('answer = "gold"', "answer ="), "--task"),
    ],
    ids=["unknown setting", "unknown way to ask", "no name", "bad name", "unknown figure", "no TOML"],
)
def test_a_toml_file_that_is_wrong_is_named(change, message, tmp_path):
    file = tmp_path / "capitals.toml"
    file.write_text(LINES.replace(*change))
    with pytest.raises(ConfigError) as told:
        find_tasks([str(file)], PLUGINS)
    assert str(file) in str(told.value) and message in str(told.value)


@pytest.mark.parametrize("answer", [1, "1", "b", "B", ["B"]], ids=repr)
def test_the_answer_in_a_toml_task_is_a_number_a_text_or_a_letter(answer, tmp_path):
    file = tmp_path / "capitals.toml"
    file.write_text(LINES)
    written(tmp_path, {**GOOD, "gold": answer})
    (item,) = read_items(find_tasks([str(file)], PLUGINS)["capitals"][0], PLUGINS).items
    assert item.problem.right == (1,)


def test_a_python_file_gives_the_tasks_of_its_hook(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    plugins = plugins_with()
    found = find_tasks([str(file)], plugins)
    assert list(found) == ["mine", "mine-too"]
    assert len(read_items(found["mine"][0], plugins, written(tmp_path, GOOD)).items) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "cannot be used: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("tasks = []", "cannot be used: PluginError: defines no hook"),
        (NOTHING, "defines no task; return some of the hook lmf_tasks."),
        ("def lmf_tasks(:", "cannot be used: SyntaxError"),
    ],
)
def test_a_python_file_that_is_wrong_is_named(text, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(LmfError) as told:
        find_tasks([str(file)], plugins_with())
    assert str(told.value).startswith(f"--task {file} ") and message in str(told.value)


@pytest.mark.parametrize("name", ["mine.py", "mine.toml"])
def test_a_file_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"--task nowhere/{name}: there is no such file"):
        find_tasks([f"nowhere/{name}"], PLUGINS)


# The problems of a task


def test_every_record_is_a_problem_with_its_place(tmp_path):
    data = written(tmp_path, GOOD, {**GOOD, "q": "P?"})
    found = read_items(task("t", problems=asked), PLUGINS, data)
    assert [item.where for item in found.items] == [f"{data}:1", f"{data}:2"]
    assert [item.problem.prompt for item in found.items] == ["Q?", "P?"]
    assert found.items is found.examples or found.items == found.examples
    assert [(str(file.path), file.records) for file in found.sources] == [(data, 2)]


def test_a_key_is_that_of_what_the_problem_holds_wherever_it_stands(tmp_path):
    one = read_items(task("t", problems=asked), PLUGINS, written(tmp_path, GOOD, {**GOOD, "q": "P?"}))
    other = read_items(
        task("u", problems=asked), PLUGINS, written(tmp_path, {**GOOD, "more": 1, "q": "P?"}, GOOD, name="o.jsonl")
    )
    assert [item.key for item in one.items] == [item.key for item in other.items][::-1]
    assert len({item.key for item in one.items}) == 2


def test_a_task_learns_the_name_of_the_file(tmp_path):
    def problems(record: Any) -> list[Problem]:
        return [Problem(prompt=record[FILE], choices=("a", "b"), right=(0,))]

    found = read_items(task("t", problems=problems), PLUGINS, written(tmp_path, {}, name="law-test.jsonl"))
    assert found.items[0].problem.prompt == "law-test.jsonl"


BAD = {
    "no answer": ({"q": "Q?", "options": ["a", "b"]}, "the key 'gold' is missing"),
    "no choices": ({"q": "Q?", "gold": 0}, "the key 'options' is missing"),
    "one choice": ({**GOOD, "options": ["a"], "gold": 0}, "there is nothing to choose: 1 choice"),
    "none at all": ({**GOOD, "options": []}, "there is nothing to choose: 0 choice"),
    "an empty choice": ({**GOOD, "options": ["a", "", "b"]}, "choice 2 is empty"),
    "a wrong gold": ({**GOOD, "gold": 2}, "the right choice is number 2, of 2 counted from 0"),
    "a negative gold": ({**GOOD, "gold": -1}, "the right choice is number -1, of 2 counted from 0"),
    "a gold of a wrong type": ({**GOOD, "gold": None}, "'<=' not supported between instances of 'int' and 'NoneType'"),
    "no question": ({**GOOD, "q": ""}, "it asks nothing: the prompt is empty"),
    "choices of a wrong type": ({**GOOD, "options": 5}, "'int' object is not iterable"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_record_that_cannot_be_asked_is_named(what, tmp_path):
    record, message = BAD[what]
    data = written(tmp_path, GOOD, record)
    told = refusal(task("t", problems=asked), data)
    assert told == f"{data}:2: {message}\n1 of the records cannot be asked as t."


def test_all_records_that_cannot_be_asked_are_named_at_once(tmp_path):
    bad = [record for record, _ in BAD.values()]
    data = written(tmp_path, *(record for each in bad for record in (GOOD, each)))
    lines = refusal(task("t", problems=asked), data).splitlines()
    expected = [f"{data}:{2 * number}: {message}" for number, (_, message) in enumerate(BAD.values(), 1)]
    assert lines == [*expected, f"{len(bad)} of the records cannot be asked as t."]


def test_of_very_many_bad_records_some_are_named_and_all_counted(tmp_path):
    told = refusal(task("t", problems=asked), written(tmp_path, *[{}] * 1500))
    assert "... and 1,480 more\n1,500 of the records cannot be asked as t." in told


@pytest.mark.parametrize(
    ("line", "message"), [("{", ":2"), ("5", ":2"), ("[1]", ":2")], ids=["no JSON", "a number", "a list"]
)
def test_a_line_that_is_no_record_is_named(line, message, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    assert f"{file}{message}" in refusal(task("t", problems=asked), str(file))


def test_no_problems_at_all_are_told(tmp_path):
    data = written(tmp_path, GOOD)
    assert refusal(task("t", problems=lambda record: []), data) == f"{data} holds no problem of the task t."


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"asks": "reply"}, "it has no answer"),
        ({"asks": "likelihood"}, "it has no answer"),
        ({"prompts": ("one",), "prompt": ""}, "1 prompts for 2 choices"),
        ({"right": ()}, "no choice is said to be right"),
    ],
    ids=["a reply", "a likelihood", "too few prompts", "nothing right"],
)
def test_what_a_task_makes_of_a_record_is_checked(more, message, tmp_path):
    asks = more.get("asks", "choices")
    rest = {key: value for key, value in more.items() if key != "asks"}

    def problems(record: Any) -> list[Problem]:
        usual: dict[str, Any] = {"prompt": "Q?"}
        if asks == "choices":
            usual |= {"choices": ("a", "b"), "right": (0,)}
        return [Problem(**usual | rest)]

    data = written(tmp_path, GOOD)
    assert refusal(task("t", asks=asks, problems=problems), data).startswith(f"{data}:1: {message}\n")


def test_data_in_any_format_are_read_where_the_task_has_none_of_its_own(tmp_path):
    found = read_items(task("t", asks="likelihood"), PLUGINS, written(tmp_path, {"input": "Hi", "output": "Hello!"}))
    (item,) = found.items
    assert [message.content for message in item.problem.prompt] == ["Hi"]  # type: ignore[union-attr]
    assert item.problem.answer == "Hello!"
    found = read_items(task("t", asks="likelihood"), PLUGINS, written(tmp_path, {"text": "Once."}, name="t.jsonl"))
    assert found.items[0].problem == Problem(answer="Once.")


def test_a_text_has_no_reply_to_be_compared(tmp_path):
    told = refusal(task("t", asks="reply"), written(tmp_path, {"text": "Once."}))
    assert "data.jsonl:1: it asks nothing: the prompt is empty" in told


def test_texts_read_as_one_are_one_problem(tmp_path):
    data = written(tmp_path, {"text": "One."}, {"text": "Two."})
    found = read_items(task("t", asks="likelihood", joined="\n\n"), PLUGINS, data)
    (item,) = found.items
    assert (item.where, item.problem) == (f"{data}:1 to {data}:2", Problem(answer="One.\n\nTwo."))


def test_examples_of_their_own_are_read_only_where_some_are_shown(tmp_path):
    data = written(tmp_path, GOOD)
    more = {"problems": asked, "examples": written(tmp_path, {**GOOD, "q": "E?"}, name="examples.jsonl")}
    shown = read_items(task("t", shots=1, **more), PLUGINS, data)
    assert [item.problem.prompt for item in shown.examples] == ["E?"]
    assert len(shown.sources) == 2


# Data that are not there


def test_a_task_without_data_asks_for_some():
    with pytest.raises(ConfigError, match=r"^The task piqa has no data of its own; name some: --data PATH"):
        read_items(PLUGINS.tasks["piqa"], PLUGINS)


def test_data_that_were_not_downloaded_are_named_with_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LMF_CACHE", str(tmp_path))
    remote = (Remote(url="https://example.org/quiz.jsonl", path="quiz.jsonl"),)
    dataset = DataSet(name="quiz", summary="-", source="there", remote=remote)
    plugins = plugins_with(task("t", data="quiz", problems=asked), datasets=(dataset,))
    assert refusal(plugins.tasks["t"], plugins=plugins).startswith(
        "quiz is not downloaded; lmf data download quiz fetches "
    )


def test_data_of_an_unknown_name_are_refused(tmp_path):
    assert "nowhere.jsonl" in refusal(task("t", problems=asked), str(tmp_path / "nowhere.jsonl"))


# Fewer problems


def test_the_first_problems_are_taken_or_drawn_ones(tmp_path):
    data = written(tmp_path, *({**GOOD, "q": str(number)} for number in range(50)))
    found = read_items(task("t", problems=asked), PLUGINS, data)

    def prompts(*how: Any) -> list[Any]:
        return [item.problem.prompt for item in limited(found, *how).items]

    assert prompts(3) == ["0", "1", "2"]
    assert prompts(None) == prompts(80) == [str(number) for number in range(50)]
    assert prompts(9, 1) == prompts(9, 1) == sorted(prompts(9, 1), key=int)
    assert len({tuple(prompts(9, seed)) for seed in range(5)}) == 5
    assert limited(found, 3).examples == found.examples
