"""``lmf templates``."""

import json
from pathlib import Path

import pytest
import samples
from lmf import Plugins, Template
from terminal import Done, lmf, lmf_without_torch, tree
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]

PLUGINS = Plugins()
CHATML = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    samples.write(tmp_path)
    Path("own.jinja").write_text(CHATML)
    return tmp_path


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that brings a chat template."""
    from lmf.testing import tiny_checkpoint

    model = tiny_checkpoint(tmp_path_factory.mktemp("model") / "speaking")
    (model / "chat_template.jinja").write_text(CHATML)
    return str(model)


def done(*args: str) -> str:
    """What a command of ``lmf templates`` prints that succeeds without torch."""
    result = lmf_without_torch("templates", *args)
    assert (result.code, result.err) == (0, "")
    return result.out


def templates(*args: str) -> Done:
    return lmf("templates", *args)


# list and show


def test_the_list_says_what_each_template_has_a_place_for(folder):
    lines = {line.split()[0]: line.split()[1:] for line in done("list").splitlines()}
    assert set(lines) == {"template", *PLUGINS.templates}
    assert lines["chatml"] == ["lmf-templates", "fields", "yes", "-", "-", "<|im_end|>"]
    assert lines["qwen3"] == ["lmf-templates", "Jinja", "yes", "yes", "yes", "<|im_end|>"]
    assert lines["empty"][2:5] == ["-", "-", "-"]
    assert lines["vicuna"][2] == "default"


def test_the_list_comes_as_json(folder):
    found = {each["name"]: each for each in json.loads(done("list", "--json"))}
    assert set(found) == set(PLUGINS.templates)
    for name, template in PLUGINS.templates.items():
        assert found[name]["stop"] == list(template.stop)
        assert found[name]["tools"] in (True, False)
    assert found["qwen2"]["default_system"] == "You are a helpful assistant."


def test_a_name_that_two_packages_define_is_listed_with_both():
    import lmf_cli.app

    plugins = Plugins()
    rival = Template(name="chatml", source="x", user="{content}", assistant="", reply="{content}!", stop=("!",))
    plugins.templates.add(rival, "rival")
    app = lmf_cli.app.build(plugins)
    shown = json.loads(CliRunner().invoke(app, ["templates", "list", "--json"]).output)
    assert {"lmf-templates:chatml", "rival:chatml"} <= {each["name"] for each in shown}
    assert '"{content}!"' in CliRunner().invoke(app, ["templates", "show", "rival:chatml"]).output
    refused = CliRunner().invoke(app, ["templates", "show", "chatml"])
    assert "2 packages define the template 'chatml'" in str(refused.exception)


def test_show_gives_the_parts_of_a_template(folder):
    lines = [" ".join(line.split()) for line in done("show", "llama2").splitlines()]
    template = PLUGINS.templates["llama2"]
    assert isinstance(template, Template)
    assert f"user {json.dumps(template.user)}" in lines
    assert f"reply {json.dumps(template.reply)}" in lines
    assert f"source {template.source}" in lines
    assert "package lmf-templates" in lines
    assert not any(line.startswith("default_system") for line in lines)


def test_show_gives_the_text_of_a_template_in_jinja(folder):
    assert PLUGINS.templates["qwen3"].jinja() in done("show", "qwen3")
    assert done("show", "own.jinja").endswith(f"{CHATML}\n")


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_show_prints_what_is_saved_with_a_model(folder, name):
    assert done("show", name, "--jinja") == f"{PLUGINS.templates[name].jinja()}\n"


def test_show_finds_the_template_of_a_model(folder, speaking):
    text = templates("show", speaking).out
    assert "a reply ends with  <|im_end|>" in text
    assert templates("show", speaking, "--jinja").out == f"{CHATML}\n"


# render


def test_render_shows_a_sample_with_its_replies_marked(folder):
    assert done("render", "chatml").splitlines() == [
        "> is learned, [ ] is a control token, ↵ ends a line",
        "",
        "  [<|im_start|>]system↵",
        "  You answer in one sentence.[<|im_end|>]↵",
        "  [<|im_start|>]user↵",
        "  Which number is larger, 9.9 or 9.11?[<|im_end|>]↵",
        "  [<|im_start|>]assistant↵",
        "> 9.9 is larger.[<|im_end|>]",
        "  ↵",
        "  [<|im_start|>]user↵",
        "  And 8.12 or 8.3?[<|im_end|>]↵",
        "  [<|im_start|>]assistant↵",
        "> 8.3 is.[<|im_end|>]",
        "  ↵",
    ]


def test_render_shows_tools_where_there_is_a_place_for_them(folder):
    assert '"name": "get_weather"' in done("render", "qwen2_5")


@pytest.mark.parametrize("name", ["chatml", "qwen3", "mistral"])
def test_the_pieces_are_the_text_of_the_template(folder, name):
    shown = json.loads(done("render", name, "--data", "alpaca_en.json", "--record", "2", "--json"))
    pieces = [piece for each in shown for piece in each["pieces"]]
    message = samples.NAMED
    from lmf import Message

    talk = [Message("user", message["instruction"]), Message("assistant", message["output"])]
    expected = PLUGINS.templates[name].render(talk, bos="<BOS>", eos="<EOS>")
    assert "".join(piece["text"] for piece in pieces) == "".join(piece.text for piece in expected)
    trained = "".join(piece["text"] for piece in pieces if piece["trained"])
    assert trained == "".join(piece.text for piece in expected if piece.learned)
    assert all(piece["weight"] == 1 for piece in pieces)


@pytest.mark.parametrize("name", ["chatml", "qwen2_5"])
def test_a_message_that_spells_a_token_stays_text(folder, name):
    Path("a.jsonl").write_text(samples.lines({"input": "Say <|im_end|> now", "output": "No."}))
    assert "  Say <|im_end|> now[<|im_end|>]↵" in done("render", name, "--data", "a.jsonl").splitlines()
    pieces = json.loads(done("render", name, "--data", "a.jsonl", "--json"))[0]["pieces"]
    assert sum(piece["control"] and piece["text"] == "<|im_end|>" for piece in pieces) >= 2


def test_both_replies_of_a_pair_are_rendered(folder):
    shown = json.loads(done("render", "chatml", "--data", "dpo_en.json", "--json"))
    assert [each["what"] for each in shown] == ["chosen", "rejected"]
    assert "rejected:\n" in done("render", "chatml", "--data", "dpo_en.json")


def test_a_template_that_rewrites_earlier_turns_shows_each_reply_by_itself(folder):
    shown = json.loads(done("render", "qwen3", "--json"))
    assert [each["what"] for each in shown] == ["reply 1 of 2", "reply 2 of 2"]


def test_a_thought_in_the_content_is_shown_as_reasoning_where_its_tags_are_special_tokens():
    from lmf import Conversation, Message
    from lmf.testing import tiny_tokenizer
    from lmf_cli.templates import rendered

    tokenizer = tiny_tokenizer(special=("<|endoftext|>", "<think>", "</think>", "<|im_start|>", "<|im_end|>"))
    asked = Message("user", "a")
    inside, outside = (
        rendered(PLUGINS.templates["qwen3"], Conversation((asked, reply)), tokenizer)
        for reply in (
            Message("assistant", "<think>\nHm.\n</think>\n\nb"),
            Message("assistant", "b", reasoning="Hm."),
        )
    )
    assert inside == outside


def test_tools_of_a_file_are_declared(folder):
    tool = {"name": "ring_bell", "description": "Ring.", "parameters": {"type": "object", "properties": {}}}
    Path("tools.json").write_text(json.dumps([tool]))
    text = done("render", "qwen2_5", "--data", "alpaca_en.json", "--tools", "tools.json")
    assert '"name": "ring_bell"' in text


def test_with_a_model_the_tokens_of_its_tokenizer_stand_for_beginning_and_end(folder, speaking):
    assert "[<BOS>][INST]" in done("render", "llama2")
    result = templates("render", "llama2", "--model", speaking)
    assert (result.code, result.err) == (0, "")
    assert "[<|endoftext|>][INST]" in result.out


def test_a_file_is_rendered_with_the_tokens_of_a_model(folder, speaking):
    assert templates("render", "own.jinja", "--model", speaking).out == templates("render", speaking).out
    text = templates("render", "own.jinja", "--model", speaking).out
    assert text == templates("render", "chatml", "--model", speaking).out


# diff and test


def test_templates_that_write_the_same_have_no_difference(folder):
    assert done("diff", "chatml", "yi") == (
        "chatml and yi write the same for the 5 samples that they have a place for, and the same of it is learned\n"
    )


@pytest.mark.parametrize(
    ("name", "other", "samples"),
    [
        ("lmflow_llama2", "llama2_for_tool", ["the result of a call in words"]),
        ("chatml", "qwen2_for_tool", ["the result of a call in words"]),
        (
            *("llama3", "llama3_for_tool"),
            [
                "the result of a call in words",
                "white space around contents",
                "white space around a system message",
            ],
        ),
    ],
)
def test_templates_that_differ_in_tool_results_or_outer_white_space_are_told_apart(folder, name, other, samples):
    result = lmf_without_torch("templates", "diff", name, other)
    assert (result.code, result.err) == (1, "")
    *lines, last = result.out.splitlines()
    assert [line for line in lines if line.startswith("---")] == [f"--- {name}, {sample}" for sample in samples]
    assert last == f"{name} and {other} differ for {len(samples)} of the 6 samples that either has a place for"


def test_a_difference_is_shown_and_is_the_exit_code(folder):
    result = lmf_without_torch("templates", "diff", "chatml", "qwen2")
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert lines[:2] == ["--- chatml, one turn", "+++ qwen2, one turn"]
    assert "+  You are a helpful assistant.[<|im_end|>]↵" in lines
    assert not any(line.startswith("-") and not line.startswith("---") for line in lines)
    assert "--- chatml, a system message" not in lines  # there both write the same


def test_a_place_that_only_one_has_is_a_difference(folder):
    lines = lmf_without_torch("templates", "diff", "chatml", "qwen2_5").out.splitlines()
    assert "-! it has no place for this conversation" in lines[lines.index("--- chatml, a tool call") :]


def test_what_is_learned_differs_even_if_the_text_is_the_same(folder):
    import lmf_cli.app

    chatml = PLUGINS.templates["chatml"]
    assert isinstance(chatml, Template)
    parts = {"system": chatml.system, "user": chatml.user, "tool": chatml.tool, "tokens": chatml.tokens}
    shift = {"assistant": "<|im_start|>assistant", "reply": "\n{content}<|im_end|>", "after_reply": "\n"}
    plugins = Plugins()
    plugins.templates.add(Template(name="shifted", source="x", stop=("<|im_end|>",), **parts, **shift), "acme")
    done = CliRunner().invoke(lmf_cli.app.build(plugins), ["templates", "diff", "chatml", "shifted"])
    assert done.exit_code == 1
    assert "-  [<|im_start|>]assistant↵" in done.output
    assert "+> ↵" in done.output


def test_a_model_is_compared_with_a_template(folder, speaking):
    result = templates("diff", "qwen2_for_tool", speaking)
    assert (result.code, result.err) == (0, "")
    assert templates("diff", speaking, "zephyr").code == 1
    assert templates("diff", "own.jinja", speaking).code == 0


def test_a_template_that_keeps_its_promises_passes(folder, speaking):
    for name in ("chatml", "qwen3"):
        result = templates("test", name)
        assert (result.code, result.err) == (0, "")
        assert len(result.out.splitlines()) >= 2
        assert all(line.startswith("ok   ") for line in result.out.splitlines())
    with_model = templates("test", "chatml", "--model", speaking).out.splitlines()
    assert len(with_model) == 3
    assert with_model[2].startswith("ok   with this tokenizer the ids are those of transformers")
    assert templates("test", speaking).out.count("ok   ") == 3


def test_the_tokens_that_a_tokenizer_was_given_are_named(folder, speaking):
    lines = templates("test", "zephyr", "--model", speaking).out.splitlines()
    assert len(lines) == 3
    given = templates("test", "gemma", "--model", speaking).out
    assert "with this tokenizer (it was given <start_of_turn>, <end_of_turn>) the ids" in given


def test_a_template_that_breaks_a_promise_fails(folder, speaking):
    twice = CHATML.replace(
        "{{ message.content }}", "{{ message.content }}{% if loop.first %} {{ message.content }}{% endif %}"
    )
    Path("twice.jinja").write_text(twice)
    result = templates("test", "twice.jinja", "--model", speaking)
    assert result.code == 1
    first = result.out.splitlines()[0]
    assert first.startswith("BAD  every message is rendered once; ")
    assert first.endswith(": 'Ping?' is not rendered once")


# What is refused


@pytest.mark.parametrize(
    ("code", "line", "told"),
    [
        (2, "show chatlm", "No template is called 'chatlm'. Did you mean 'chatml'?\nInstalled: "),
        (2, "show nosuch:chatml", "No template is called 'nosuch:chatml'."),
        (1, "show nosuch.jinja", "nosuch.jinja cannot be read: "),
        (2, "show ./nosuch", "./nosuch: no such folder ("),
        (2, "show alpaca_en.json", "alpaca_en.json is a file; it must be a folder, "),
        (
            2,
            "render own.jinja",
            "own.jinja does not say which token ends a reply; name a model that has it: --model",
        ),
        (2, "render chatml --model nosuch", "No model is called 'nosuch'."),
        (4, "render chatml --data nosuch.jsonl", "No file, folder or data set is called 'nosuch.jsonl': "),
        (2, "render chatml --data alpaca_en.json --record 0", "--record is 0; it must be at least 1."),
        (2, "render chatml --data alpaca_en.json --record 3", "--record is 3; alpaca_en.json has 2 records."),
        (4, "render chatml --data text.txt", "text.txt:1: the record is a text; a template renders conversations."),
        (
            4,
            "render chatml --data glaive_toolcall_en.json",
            "glaive_toolcall_en.json:2: the template 'chatml' has no place for tools.",
        ),
        (4, "render qwen3 --tools nosuch.json", "nosuch.json cannot be read: No such file or directory."),
        (4, "render qwen3 --tools text.txt", "text.txt: not valid JSON at column 1: "),
        (4, "render qwen3 --tools five.json", "five.json: tools is the number 5; it must be a list."),
        (4, "render qwen3 --tools nameless.json", "nameless.json: tools[0] has no key 'name'"),
        (2, "diff chatml chatlm", "No template is called 'chatlm'. Did you mean 'chatml'?"),
        (2, "diff own.jinja chatml", "own.jinja does not say which token ends a reply; name a model"),
        (2, "test nosuch", "No template is called 'nosuch'."),
        (2, "test own.jinja", "own.jinja does not say which token ends a reply; name a model"),
    ],
)
def test_a_line_that_is_refused(folder, code, line, told):
    Path("text.txt").write_text("Once upon a time.")
    Path("five.json").write_text("5")
    Path("nameless.json").write_text('[{"description": "x"}]')
    before = tree(folder)
    result = lmf_without_torch("templates", *line.split())
    assert (result.code, result.out) == (code, "")
    assert result.err.removeprefix("error: ").startswith(told)
    assert "Traceback" not in result.err
    assert tree(folder) == before


def test_a_file_that_is_no_jinja_is_refused_with_its_line(folder, speaking):
    Path("broken.jinja").write_text("{% for %}")
    result = templates("render", "broken.jinja", "--model", speaking)
    assert result.code == 1
    assert "is not valid Jinja: line 1" in result.err


def test_a_model_without_a_template_is_told(folder, tiny):
    result = templates("show", str(tiny))
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: {tiny} brings no chat template. Templates with a name: alpaca, ")


# The page


def test_the_page_of_commands_names_them_all_and_its_examples_have_flags_that_exist(tmp_path, monkeypatch):
    import re
    import shlex

    page = (ROOT / "docs/commands.md").read_text()
    for group in ("data", "templates"):
        listed = set(re.findall(r"^  ([a-z]+)  ", lmf(group, "--help").out, re.M))
        assert listed == set(re.findall(rf"`lmf {group} ([a-z]+)", page))
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"^\$ lmf (.*)$", page, re.M):
        result = lmf_without_torch(*shlex.split(line.partition(" | ")[0].partition(" < ")[0]), "--help")
        assert (result.code, result.err) == (0, ""), line
