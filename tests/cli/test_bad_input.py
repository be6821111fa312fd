"""Bad input: one clear message with what, where and what to do, the documented exit code, and nothing written.

Nearly all of it is found before torch is imported; ``refused`` checks that too.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from lmf import Plugins
from terminal import Done, batch, distribution, fresh, hollow_model, lmf, lmf_without_torch, talk, tree

USER, REPLY = {"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}
RUN = ("train", "full", "--model", "./model", "--data", "data.jsonl")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which a run could start."""
    monkeypatch.chdir(tmp_path)
    hollow_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(talk())
    return tmp_path


def check(done: Done, code: int) -> str:
    """Check the form of a refusal and return its message."""
    assert (done.code, done.out) == (code, ""), done
    assert "Traceback" not in done.err
    assert 1 <= len(done.err.splitlines()) <= 30
    assert done.err.startswith("error: ") or "\nError: " in f"\n{done.err}"  # ours, or Typer's after the usage
    return done.err.removeprefix("error: ").rstrip("\n")


def refused(code: int, *args: str) -> str:
    """Run a command that has to fail without importing torch or writing anything; return its message."""
    before = tree(Path())
    message = check(lmf_without_torch(*args), code)
    assert tree(Path()) == before
    return message


def planned(*args: str) -> str:
    """What ``lmf plan`` prints for a run that is all right."""
    done = lmf_without_torch("plan", *args)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_what_the_tests_below_spoil_is_all_right(folder):
    planned(*RUN)


# Data


def messages(*turns: Any, **more: Any) -> str:
    return json.dumps({"messages": turns, **more}) + "\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "data.jsonl is empty."),
        (b" \n\n", "data.jsonl holds no records."),
        (talk() + '{"messages": [\n', "data.jsonl:2: "),
        (talk() + "\n{'messages': []}\n", "data.jsonl:3: "),
        (talk() + "5\n", "data.jsonl:2: the record is the number 5; it must be an object."),
        (talk().encode("utf-16"), "data.jsonl is UTF-16 text; convert it to UTF-8."),
        (talk("Größe").encode("latin-1"), "data.jsonl:1: byte "),
        (b"PK\x03\x04 and so on", "data.jsonl is a ZIP archive; unpack it."),
        (
            '{"question": "Ping?", "answer": "Pong!"}\n',
            "data.jsonl:1: no data format has the keys 'question', 'answer'.",
        ),
        ('{"prompt": "Ping?", "answer": "Pong!"}\n', "data.jsonl:1: the record is a prompt (format prompt), and here"),
        ('{"text": "Once upon a time."}\n', "data.jsonl:1: the record is a text (format text), and here conversation"),
        (messages(), "data.jsonl:1: the conversation has no messages."),
        (messages(USER, REPLY | {"content": None}), "data.jsonl:1: messages[1].content is null; it must be a text."),
        (messages(USER, REPLY | {"content": 7}), "data.jsonl:1: messages[1].content is the number 7"),
        (messages(USER, REPLY | {"content": " "}), "data.jsonl:1: messages[1] is empty; there is no reply to learn."),
        (messages(USER, REPLY | {"role": "asistant"}), "data.jsonl:1: messages[1].role is the text 'asistant'; roles"),
        (messages(USER, {"role": "assistant"}), "data.jsonl:1: messages[1] has no key 'content'"),
        (messages(REPLY, USER), "data.jsonl:1: messages[0]: a conversation cannot begin with a message of the role"),
        (messages(USER, USER, REPLY), "data.jsonl:1: messages[1]: the role user cannot follow user; assistant comes"),
        (messages(USER), "data.jsonl:1: the conversation ends with a user message; there is no reply to learn."),
        (messages(USER, REPLY, tools=5), "data.jsonl:1: tools is the number 5; it must be a list."),
    ],
    ids=repr,
)
def test_data_that_cannot_be_learned_from(folder, content, told):
    Path("data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(4, *RUN).startswith(told)


def test_malformed_json_is_told_with_its_line(folder):
    Path("data.json").write_text('[\n  {"instruction": "Ping?", "output": "Pong!"},\n  {"instruction": "Ping?",}\n]\n')
    assert refused(4, "train", "full", "--model", "./model", "--data", "data.json").startswith("data.json:3: ")


def test_many_bad_records_are_one_short_message(folder):
    Path("data.jsonl").write_text(messages(USER) * 500)
    told = refused(4, *RUN).splitlines()
    assert told[0] == "500 problems in the data; the first 20:"
    assert told[20].startswith("data.jsonl:20: ")
    assert len(told) == 21


def test_a_byte_order_mark_is_accepted(folder):
    Path("data.jsonl").write_bytes(b"\xef\xbb\xbf" + talk().encode())
    Path("run.toml").write_bytes(b'\xef\xbb\xbfmodel = "./model"\ndata = "data.jsonl"\n')
    assert "data: data.jsonl: 1 records" in planned("train", "full", "--config", "run.toml")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dat.jsonl", "No file, folder or data set is called 'dat.jsonl': "),
        ("nosuch/data.jsonl", "No file, folder or data set is called 'nosuch/data.jsonl': "),
        ("table.csv", "table.csv holds no records."),
        ("table.xlsx", "table.xlsx has the suffix '.xlsx'; lmf reads .json, "),
        ("model/tokens", "model/tokens holds no data files; lmf reads .json, "),
    ],
)
def test_data_that_are_not_there(folder, name, told):
    Path("table.csv").write_text("a,b\n")
    Path("table.xlsx").write_bytes(b"PK")
    Path("model/tokens").mkdir()
    told_by = refused(4, "train", "full", "--model", "./model", "--data", name)
    assert told_by.startswith(told)
    assert ("Did you mean 'data.jsonl'?" in told_by) == (name == "dat.jsonl")


# Flags


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--template chatlm", "No template is called 'chatlm'. Did you mean 'chatml'?\nInstalled: alpaca, "),
        ("--optimizer adamww", "No optimizer is called 'adamww'. Did you mean 'adamw'?\nInstalled: adamw"),
        ("--attention flash-atn", "No kernel is called 'flash-atn'."),
        ("--log tensorbord", "--log tensorbord: no such tracker. Did you mean 'tensorboard'? Trackers: tensorboard"),
        ("--schedule cosin", "--schedule is 'cosin'; it must be one of linear, cosine, constant. Did you mean 'cosin"),
        ("--dtype float16", "--dtype is 'float16'; it must be one of auto, float32, bfloat16. Did you mean 'bfloat16'"),
        (
            "--on-overflow ignore",
            "--on-overflow is 'ignore'; it must be one of error, drop, truncate-left, truncate-right, ",
        ),
        ("--learning-rate fast", "--learning-rate is 'fast'; it must be a number."),
        ("--learning-rate nan", "--learning-rate is nan; it must be a finite number."),
        ("--learning-rate -1e-4", "--learning-rate is -0.0001; it must be greater than 0."),
        ("--learning-rate 20", "--learning-rate is 20.0; it must be at most 1."),
        ("--epochs inf", "--epochs is inf; it must be a finite number."),
        ("--epochs 0", "--epochs is 0.0; it must be greater than 0."),
        ("--steps 0", "--steps is 0; it must be at least 1."),
        ("--steps 1e3", "--steps is '1e3'; it must be a whole number."),
        ("--steps 1.5", "--steps is '1.5'; it must be a whole number."),
        ("--batch-size -8", "--batch-size is -8; it must be at least 1."),
        ("--max-tokens 1", "--max-tokens is 1; it must be at least 2."),
        ("--seed -1", "--seed is -1; it must be at least 0."),
        ("--seed 123456789012345678901234567890", "--seed is 123456789012345678901234567890; it must be at most "),
        ("--eval-split 0.9", "--eval-split is 0.9; it must be at most 0.5."),
        ("--patience 3", "--patience needs held-out data: give --eval-data or --eval-split."),
        ("--eval-data data.jsonl --eval-split 0.1", "--eval-data and --eval-split are two ways to the same thing;"),
        ("--resume", "--resume: there is no run in out."),
        ("--resume --steps 3", "--resume: there is no run in out."),
        ("--resume step-000020", "--resume: there is no run in out."),
        ("--resume --overwrite", "--resume continues a run and --overwrite deletes it; give one of them."),
        ("--rank 8", "--rank is a flag of lora, not of full."),
        ("--config nosuch.toml", "--config nosuch.toml does not exist."),
        ("--config model", "--config model cannot be read: Is a directory."),
        ("--config=", "--config is empty."),
    ],
)
def test_a_flag_with_a_wrong_value(folder, words, told):
    assert refused(2, *RUN, *words.split()).startswith(told)


@pytest.mark.parametrize("flag", ["--model", "--data", "--output", "--template", "--optimizer", "--sample", "--log"])
def test_an_empty_text(folder, flag):
    assert refused(2, *RUN, flag, "") == f"{flag} is empty."


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--learnig-rate 1", ["--learnig-rate", "--learning-rate"]),
        ("--learning_rate 1", ["--learning_rate", "--learning-rate"]),
        ("--no-dedu", ["--no-dedu", "--no-dedup"]),
        ("-s 3", ["-s"]),
        ("extra", ["unexpected", "(extra)"]),
        ("-- --steps 3", ["unexpected", "(--steps 3)"]),
        ("--steps", ["'--steps' requires an argument"]),
        ("--dedup=yes", ["'--dedup' does not take a value"]),
    ],
)
def test_a_line_that_cannot_be_parsed(folder, words, told):
    last = refused(2, *RUN, *words.split()).splitlines()[-1]
    assert all(each in last for each in told), last


@pytest.mark.parametrize("flag", ["--model", "--data"])
def test_a_flag_that_is_required(folder, flag):
    place = RUN.index(flag)
    assert refused(2, *RUN[:place], *RUN[place + 2 :]).startswith(f"{flag} is required: ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "trian full",
            "No command is called 'trian'. Did you mean 'train'?\nInstalled: bench, chat, data, doctor, eval, export, ",
        ),
        ("nosuch", "No command is called 'nosuch'.\nInstalled: bench, chat, data, doctor, eval, export, "),
        ("train ful", "No tuning method is called 'ful'. Did you mean 'full'?\nInstalled: freeze, full"),
        ("plan trian full", "No objective is called 'trian'. Did you mean 'train'?\nInstalled: "),
        ("plan train nosuch", "No tuning method is called 'nosuch'.\nInstalled: freeze, full"),
        ("generate nosuch hi", "No model is called 'nosuch'.\nInstalled: smollm2-135m"),
        ("generate ./model hi --temperature nan", "--temperature is nan; it must be a finite number."),
        ("generate ./model hi --max-tokens 0", "--max-tokens is 0; it must be at least 1."),
        ("generate ./model hi --draft-model nosuch", "No model is called 'nosuch'.\nInstalled: smollm2-135m"),
        ("generate ./model hi --template chatlm", "No template is called 'chatlm'. Did you mean 'chatml'?"),
    ],
)
def test_a_name_that_does_not_exist(folder, line, told):
    assert refused(2, *line.split()).startswith(told)


# Run files


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("steps = \n", "run.toml is not valid TOML: Invalid value (at line 3, column 9)."),
        ("steps = 3\nsteps = 4\n", "run.toml is not valid TOML: Cannot overwrite a value (at line 4, column 10)."),
        ("learnig_rate = 1e-4\n", "run.toml: no setting is called 'learnig_rate'. Did you mean 'learning_rate'?"),
        ("learning-rat = 1e-4\n", "run.toml: no setting is called 'learning_rat'. Did you mean 'learning_rate'?"),
        ("learning_rate = '1e-4'\n", "learning_rate in run.toml is '1e-4'; it must be a number."),
        ("learning_rate = -1.0\n", "learning_rate in run.toml is -1.0; it must be greater than 0."),
        ("learning_rate = nan\n", "learning_rate in run.toml is nan; it must be a finite number."),
        ("epochs = inf\n", "epochs in run.toml is inf; it must be a finite number."),
        ("steps = 0\n", "steps in run.toml is 0; it must be at least 1."),
        ("steps = 2.0\n", "steps in run.toml is 2.0; it must be a whole number."),
        ("steps = true\n", "steps in run.toml is True; it must be a whole number."),
        ("dedup = 'yes'\n", "dedup in run.toml is 'yes'; it must be true or false."),
        ("schedule = 'cosin'\n", "schedule in run.toml is 'cosin'; it must be one of linear, cosine, constant. Did"),
        ("sample = ''\n", "sample in run.toml is empty."),
        ("eval_data = 3\n", "eval_data in run.toml is 3; it must be a list."),
        ("eval_data = ['']\n", "eval_data in run.toml is empty."),
        ("[train]\nsteps = 3\n", "run.toml: no setting is called 'train'."),
        ("rank = 8\n", "run.toml: no setting is called 'rank'."),
        ("eval-split = 0.1\neval_split = 0.2\n", "run.toml sets 'eval_split' twice, once with '-' and once with '_'."),
        ("template = 'chatlm'\n", "No template is called 'chatlm'. Did you mean 'chatml'?"),
    ],
)
def test_a_run_file_with_a_mistake(folder, content, told):
    Path("run.toml").write_text('model = "./model"\ndata = "data.jsonl"\n' + content)
    assert refused(2, "train", "full", "--config", "run.toml").startswith(told)


def test_a_run_file_that_is_not_utf_8(folder):
    Path("run.toml").write_bytes('sample = "Größe"\n'.encode("latin-1"))
    assert refused(2, *RUN, "--config", "run.toml") == "run.toml is not UTF-8 text (byte 12)."


# Models


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("config.json", "model holds no model: config.json is missing."),
        ("tokenizer.json", "model holds no tokenizer: tokenizer.json is missing. Copy it from the base model."),
        ("model.safetensors", "model holds no weights: neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_model_folder_that_lacks_something(folder, missing, told):
    Path("model", missing).unlink()
    assert refused(1, *RUN).startswith(told)


def test_a_model_whose_weights_are_cut(folder):
    file = Path("model/model.safetensors")
    file.write_bytes(file.read_bytes()[:-2])
    assert "its header tells of" in refused(1, *RUN)


def test_a_model_whose_weights_are_pickled(folder):
    Path("model/model.safetensors").rename("model/pytorch_model.bin")
    assert "add --allow-pickle if you trust where it comes from" in refused(1, *RUN)


def test_an_adapter_is_no_model(folder):
    Path("model/config.json").unlink()
    Path("model/adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    assert refused(1, *RUN) == "model holds an adapter for 'base', not a model. Give that model to --model."


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./modle", "--model ./modle: no such folder ("),
        ("smollm2-135", "No model is called 'smollm2-135'. Did you mean 'smollm2-135m'?"),
        ("data.jsonl", "--model data.jsonl is a file; it must be a folder, a GGUF file, a checkpoint name or a hub id"),
    ],
)
def test_a_model_that_does_not_exist(folder, name, told):
    assert refused(2, "train", "full", "--model", name, "--data", "data.jsonl").startswith(told)


# The output folder


def test_an_output_folder_that_holds_a_run(folder):
    Path("out").mkdir()
    Path("out/lmf.json").write_text('{"settings": {}}')
    told = refused(2, *RUN)
    assert told.startswith("--output out holds a run already.\nAdd --resume to continue it, --overwrite to replace it")


def test_an_output_folder_with_foreign_files_is_never_overwritten(folder):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    for more in ([], ["--overwrite"]):
        told = refused(2, *RUN, *more)
        assert told == "--output out holds files that are not a run of lmf. Choose another folder."


@pytest.mark.parametrize("output", ["data.jsonl", "data.jsonl/out"])
def test_an_output_folder_that_is_a_file(folder, output):
    assert "data.jsonl is a file; it must be a folder." in refused(2, *RUN, "--output", output)


def test_an_output_folder_that_cannot_be_written(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert refused(2, *RUN, "--output", "a/b") == f"--output a/b: {folder} is not writable."


# Plugins

BROKEN = {
    "import": ("import acme_nothing\n", "ModuleNotFoundError: No module named 'acme_nothing'"),
    "exit": ("raise SystemExit(5)\n", "SystemExit: 5"),
    "hook": ("import lmf\n@lmf.hookimpl\ndef lmf_methods(): raise OSError('gone')\n", "OSError: gone"),
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a plugin that cannot be used, and return what is told of it."""
    code, cause = BROKEN[request.param]
    module = f"acme_{request.param}"
    site = folder.parent / f"{folder.name}-site"
    distribution(site, "acme-bad", f"[lmf.v1]\nmain = {module}\n", **{module: code})
    monkeypatch.syspath_prepend(site)
    return f"acme-bad 1.0 is installed but unusable: entry point main = {module}: {cause}"


def test_a_broken_plugin_disturbs_nothing_else(broken):
    planned(*RUN)
    for line in (["--help"], ["train", "--help"], ["train", "full", "--help"], ["plugins"], ["models"]):
        done = lmf_without_torch(*line)
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    "line", [["train", "acme"], ["acme"], [*RUN, "--template", "acme"], [*RUN, "--optimizer", "acme"], ["plan", "acme"]]
)
def test_a_broken_plugin_is_named_to_who_asks_for_something_missing(broken, line):
    assert broken in refused(2, *line).splitlines()


def test_what_lmf_plugins_leaves_out_is_named(folder, monkeypatch):
    others = sorted({p.package for p in Plugins().installed} - {"lmf-core", "lmf-full"})
    monkeypatch.setenv("LMF_PLUGINS", "lmf-full")
    hint = f"Left out by LMF_PLUGINS or LMF_DISABLE_PLUGINS: {', '.join(others)}."
    told = refused(2, *RUN).splitlines()
    assert told[0] == "No command is called 'train'."
    assert told[-1] == hint
    assert lmf("plugins").code == 0


def test_an_objective_without_methods_says_so(folder, monkeypatch):
    monkeypatch.setenv("LMF_PLUGINS", "lmf-sft")
    assert refused(2, *RUN).startswith("No tuning method is called 'full'.\nInstalled: none.\nLeft out by LMF_PLUGINS")
    assert lmf("train", "--help").code == 0


def test_the_trace_of_plugins_does_not_mix_with_the_output(folder, monkeypatch):
    monkeypatch.setenv("LMF_TRACE", "1")
    done = lmf("plugins", "--json")
    assert {row["package"] for row in json.loads(done.out)} == {line.split()[1] for line in done.err.splitlines()}


# What only a loaded model and tokenizer can tell


LATE = {
    "--max-tokens 4 --on-overflow truncate-right": (4, "None of the 2 training examples can be learned from:"),
    "--max-tokens 16": (
        *(
            4,
            "None of the 2 training examples can be learned from:\n  2 longer than --max-tokens 16, first data.jsonl:1",
        ),
    ),
    "--max-tokens 16 --on-overflow error": (4, "2 of 2 training examples are longer than --max-tokens 16; the longest"),
    "--eval-split 0.5 --data one.jsonl": (4, "--eval-split 0.5 leaves nothing to train on: there are 1 examples."),
}


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What the runs above tell; together they leave nothing behind."""
    folder = tmp_path_factory.mktemp("late")
    (folder / "data.jsonl").write_text(talk() * 2)
    (folder / "one.jsonl").write_text(talk())
    lines = []
    for words in LATE:
        data = [] if "--data" in words else ["--data", "data.jsonl"]
        lines.append(["train", "full", "--model", "./model", "--template", "chatml", *data, *words.split()])
    done = dict(zip(LATE, batch(folder, lines), strict=True))
    assert sorted(path.name for path in folder.iterdir()) == ["data.jsonl", "model", "one.jsonl"]
    return done


@pytest.mark.parametrize("words", LATE)
def test_data_that_the_tokenizer_shows_to_be_useless(late, words):
    code, told = LATE[words]
    assert late[words].code == code
    assert late[words].err.startswith(f"error: {told}")
    assert "Traceback" not in late[words].err


# Not the user's fault


def test_a_bug_keeps_its_traceback(folder, monkeypatch):
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("lmf.plan.make_plan", fail)
    with pytest.raises(ZeroDivisionError, match=r"^a bug$"):
        lmf(*RUN)


def test_an_interrupt_ends_the_command_in_silence(folder, monkeypatch):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmf.plan.make_plan", interrupt)
    assert lmf(*RUN) == Done(130, "", "")
    monkeypatch.setattr("lmf_cli.Plugins", interrupt)
    assert lmf(*RUN) == Done(130, "", "interrupted\n")


def test_a_file_name_that_is_not_unicode_is_told_in_any_locale(folder):
    name = b"d\xff.jsonl".decode("utf-8", "surrogateescape")
    for encoding in ("ascii", "utf-8"):
        done = fresh(*RUN[:4], "--data", name, environment={"PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: --data is 'd\\udcff.jsonl'; it must be valid Unicode.\n"
