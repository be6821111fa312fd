import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lmf import Problem, Written
from lmf.errors import LmfError
from lmf_eval import code
from lmf_eval.benchmarks.writing import TASKS, gsm8k, humaneval
from lmf_eval.code import pass_at, passes, with_tests

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs run on Linux and macOS only")


def namespaces():
    """Return whether the system lets this user have namespaces, asked in a process of its own."""
    ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x78020000) != 0)"
    return sys.platform == "linux" and subprocess.run([sys.executable, "-c", ask]).returncode == 0


ALONE = namespaces()
THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(50,)).start()"
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do it")
alone = pytest.mark.skipif(not ALONE, reason="this system gives users no namespaces")


def test_a_program_that_comes_to_its_end_passes():
    assert passes("def f(x):\n    return x + 1\n\nassert f(1) == 2\n") is None


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("x = 1\nassert x == 2", "line 2: AssertionError"),
        ("def f():\n    raise ValueError('no')\nf()", "line 2: ValueError: no"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("undefined", "line 1: NameError: name 'undefined' is not defined"),
        ("class E(OSError):\n    def __str__(self): 1 / 0\nraise E", "line 3: program.E: <exception str() failed>"),
        ("input()", "line 1: EOFError: EOF when reading a line"),
        ("import sys\nassert sys.stdin.read() == 'x'", "line 2: AssertionError"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("import os\nos.abort()", "was ended by SIGABRT"),
        ("raise KeyboardInterrupt", "line 1: KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_a_program_that_fails_says_why(program, why):
    assert passes(program) == why


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys\nsys.exit(0)\nassert False", "line 2: SystemExit: 0"),
        ("raise SystemExit", "line 1: SystemExit"),
        ("quit()", "SystemExit"),
        ("import os\nos._exit(0)", "ended before its end, with exit status 0"),
        ("import os\nos.execv('/bin/true', ['true'])", "ended before its end, with exit status 0"),
        ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "line 3: AssertionError"),
        ("import os\nos.closerange(3, 100)", "ended before its end, with exit status 1"),
        ("print('passed')\nimport os\nos._exit(0)", "ended before its end, with exit status 0"),
    ],
)
def test_a_program_that_leaves_early_does_not_pass(program, why):
    assert why in passes(program)


def test_an_endless_loop_is_stopped():
    began = time.monotonic()
    assert passes("while True:\n    pass", 1) == "took more than 1 seconds of processor time"
    assert passes("while True:\n    try:\n        while True: pass\n    except BaseException: pass", 1)
    assert time.monotonic() - began < 20


def test_a_program_that_sleeps_is_stopped():
    began = time.monotonic()
    assert passes("import time\ntime.sleep(100)", 0.1) == "took more than 1.3 seconds"
    assert time.monotonic() - began < 10


def test_a_program_that_wants_too_much_memory_fails():
    assert passes("data = bytearray(8 << 30)") == "line 1: MemoryError"
    assert "MemoryError" in passes("data = []\nwhile True:\n    data.append(bytes(64 << 20))")


@linux
def test_a_fork_bomb_ends_and_leaves_nothing():  # its bound is for systems that set none
    program = """
import os, time
for _ in range(200):
    try:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
    except OSError:
        raise SystemExit(f"refused after {_}")
"""
    why = passes(program)
    if ALONE or os.getuid() == 0:
        assert "refused after" in why
        assert int(why.rpartition(" ")[2]) < 64
    assert passes(THREAD) is None  # which would be refused if any were left


@linux
def test_a_process_that_leaves_the_group_does_not_survive():
    before = processes()
    assert passes("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)") is None
    left = {*filter(is_ours, processes() - before)}
    wait_until(lambda: not any(map(is_ours, left)))


def processes():
    return {path.name for path in Path("/proc").iterdir() if path.name.isdigit()}


def is_ours(name):
    try:
        return b"confined.py" in Path("/proc", name, "cmdline").read_bytes()
    except OSError:
        return False


def wait_until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@linux
def test_programs_end_with_lmf():
    start = "from lmf_eval.code import passes; passes('import time; time.sleep(60)', 20)"
    process = subprocess.Popen([sys.executable, "-c", start])
    ours = set()
    try:
        wait_until(lambda: ours.update(filter(is_ours, children(process.pid))) or ours)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(map(is_ours, ours)))


def children(parent):
    found = set()
    for name in processes():
        try:
            if Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                found.add(name)
        except OSError:
            continue
    return found


def test_huge_output_goes_nowhere():
    assert passes("import sys\nfor _ in range(100):\n    print('x' * 10**6)\n    sys.stderr.write('y' * 10**6)") is None


def test_a_program_cannot_write_a_large_file():
    assert "File too large" in passes("with open('large', 'wb') as file:\n    file.write(bytes(100 << 20))")


def test_a_program_has_a_folder_of_its_own_that_is_empty_and_goes():
    program = "import os\nassert os.listdir() == []\nopen('x', 'w').write('1')\nassert open('x').read() == '1'"
    assert passes(program) is None
    assert passes(program) is None


@alone
def test_files_outside_cannot_be_written(tmp_path):
    file = tmp_path / "kept"
    file.write_text("kept")
    assert "Read-only file system" in passes(f"open({str(file)!r}, 'w')")
    assert "Read-only file system" in passes(f"import os\nos.remove({str(file)!r})")
    assert file.read_text() == "kept"


@alone
def test_its_own_folder_holds_little():
    program = "for number in range(10):\n    open(str(number), 'wb').write(bytes(10 << 20))"
    assert "No space left on device" in passes(program)


@alone
def test_there_is_no_network():
    assert "Network is unreachable" in passes("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)")


def test_a_program_sees_no_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert passes("import os\nassert 'secret' not in str(os.environ) and 'PATH' not in os.environ") is None


def test_the_order_of_sets_is_the_same_each_time():
    program = "raise ValueError(hash('a'))"
    assert passes(program) == passes(program)


def test_threads_that_go_on_do_not_hold_it_up():
    assert passes(THREAD) is None


def test_a_block_for_scripts_is_not_run():
    assert passes("if __name__ == '__main__':\n    raise ValueError") is None


def test_text_that_is_no_unicode_fails_and_is_no_error():
    assert "SyntaxError" in passes("x = '\ud800'")
    assert "null bytes" in passes("x = '\0'")


def test_windows_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(code.os, "name", "nt")
    with pytest.raises(LmfError, match="needs Linux or macOS"):
        passes("")


@pytest.fixture
def judged(monkeypatch):
    """Replies that pass are called "right"; returns what was run."""
    ran = []

    def passed(program, seconds):
        ran.append(program)
        return program == "right"

    monkeypatch.setattr(code, "_passed", passed)
    return ran


@pytest.mark.parametrize(
    ("k", "right", "wrong", "value"),
    [(1, 3, 7, 0.3), (1, 0, 5, 0.0), (1, 1, 0, 1.0), (2, 1, 3, 0.5), (10, 1, 9, 1.0), (5, 2, 8, 7 / 9), (3, 2, 2, 1)],
)  # fmt: skip
def test_pass_at_k_is_the_chance_that_one_of_k_drawn_passes(judged, k, right, wrong, value):
    metric = pass_at(k, program=lambda problem, reply: reply)
    sums = metric.sums(Problem(), Written(("right",) * right + ("wrong",) * wrong))
    assert metric.name == f"pass@{k}"
    assert metric.total(sums) == pytest.approx(value)


def test_pass_at_k_counts_no_problem_with_fewer_replies(judged):
    assert pass_at(10).sums(Problem(), Written(("right",) * 9)) == (0.0, 0.0)
    assert judged == []


def test_where_no_program_runs_it_is_an_error_and_no_failure(monkeypatch):
    monkeypatch.setattr(code, "COMMON", "import nothing_of_this_name")
    code._check.cache_clear()
    with pytest.raises(LmfError, match="Programs cannot be run here: one that only imports common modules failed"):
        pass_at(1).sums(Problem(), Written(("",)))


RECORD = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Return twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "double",
}


def test_a_problem_of_humaneval_is_judged_by_its_tests():
    (problem,) = humaneval(RECORD)
    assert problem.prompt == RECORD["prompt"]
    replies = (problem.answer, "    return x * x", "    return 5", "    import sys; sys.exit(0)", "", "    return 2 *")
    metric = pass_at(1)
    assert metric.sums(problem, Written(replies)) == (pytest.approx(2 / 6), 1.0)
    assert with_tests(problem, "    return 5") == (
        'def double(x):\n    """Return twice x."""\n    return 5\n'
        "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
    )


def test_the_tasks_ask_what_the_harness_asks():
    yaml = pytest.importorskip("yaml")
    spec = pytest.importorskip("importlib.util").find_spec("lm_eval")
    if spec is None:
        pytest.skip("needs lm-eval")
    folder = Path(spec.origin).parent / "tasks"
    ours = {task.name: task for task in TASKS}
    theirs = yaml.safe_load((folder / "gsm8k/gsm8k.yaml").read_text())
    assert ours["gsm8k"].stop == tuple(theirs["generation_kwargs"]["until"])
    assert ours["gsm8k"].shots == theirs["num_fewshot"]
    assert ours["gsm8k"].max_tokens == 256  # its default for a model of transformers
    question = {"question": "How many?", "answer": "Two.\n#### 2"}
    (problem,) = gsm8k(question)
    assert problem.prompt == theirs["doc_to_text"].replace("{{question}}", "How many?")
    assert problem.shown == theirs["doc_to_target"].replace("{{answer}}", question["answer"])
    text = (folder / "humaneval/humaneval.yaml").read_text().replace("!function", "")
    theirs = yaml.safe_load(text)
    assert ours["humaneval"].stop == tuple(theirs["generation_kwargs"]["until"])
    assert ours["humaneval"].max_tokens == theirs["generation_kwargs"]["max_gen_toks"]
    assert ours["humaneval"].runs_code and theirs["unsafe_code"]
    assert sum(task.name.startswith("accuracy_") for task in TASKS) == 20
