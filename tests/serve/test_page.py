"""``lmf ui`` in a real browser: a chat, a run started from the page, and nothing asked of anybody else."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import browser as chromium
import httpx
import pytest
from lmf.runs import read_log, read_run
from lmf.testing import tiny_checkpoint
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from terminal import lmf_without_torch
from tinyrun import PLUGINS, talks

pytestmark = pytest.mark.timeout(600)
SHOTS = os.environ.get("LMF_SCREENSHOTS")  # a folder, to look at them


@contextlib.contextmanager
def started(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run ``lmf ui`` in a folder, and give its address."""
    command = [sys.executable, "-m", "lmf_cli", "ui", "--port", "0", *flags]
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+?(?=;)", line)
        assert found, line
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder to work in, with a model and data."""
    found = tmp_path_factory.mktemp("work")
    tiny_checkpoint(found / "tiny")
    (found / "tiny/chat_template.jinja").write_text(PLUGINS.templates["chatml"].jinja())
    tiny_checkpoint(found / "untold")  # without a chat template
    talks(found / "talks.jsonl", 12)
    return found


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with started(folder) as found:
        yield found


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[WebDriver]:
    if reason := chromium.why_not():
        pytest.skip(reason)
    found = chromium.start(tmp_path_factory.mktemp("chromium"))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture
def page(driver, address, request) -> Iterator[WebDriver]:
    driver.get(address)
    until(lambda: driver.find_elements(By.ID, "chat-load"))
    yield driver
    if SHOTS:
        driver.save_screenshot(str(Path(SHOTS) / f"{request.node.name}.png"))


def until(found: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.1)


def shows(page: WebDriver, name: str, words: str) -> None:
    """Wait until an element shows words."""
    end = time.monotonic() + 90
    while words not in (shown := text(page, name)):
        assert time.monotonic() < end, shown
        time.sleep(0.1)


def inside(page: WebDriver, name: str, tag: str):
    return page.find_element(By.CSS_SELECTOR, f"#{name} {tag}")


def choose(page: WebDriver, name: str, *values: str) -> None:
    """Write into a box with choices."""
    box = inside(page, name, "input")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", box)
    for value in values:
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value, Keys.ENTER)
    box.send_keys(Keys.ESCAPE)  # the list


def write(page: WebDriver, name: str, text: str) -> None:
    until(lambda: page.find_elements(By.CSS_SELECTOR, f"#{name} :is(textarea, input)"))
    box = inside(page, name, ":is(textarea, input)")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", box)
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text, Keys.TAB)


def click(page: WebDriver, name: str) -> None:
    button = page.find_element(By.ID, name)
    until(button.is_displayed)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def tab(page: WebDriver, name: str) -> None:
    page.find_element(By.XPATH, f"//button[@role='tab' and normalize-space()='{name}']").click()


def runs(page: WebDriver, name: str) -> None:
    """Start the command of a tab, and wait for its end."""
    click(page, f"{name}-start")
    shows(page, f"{name}-status", "Done.")


def text(page: WebDriver, name: str) -> str:
    return " ".join((page.find_element(By.ID, name).get_property("textContent") or "").split())


def value(page: WebDriver, name: str) -> str:
    return inside(page, name, "textarea").get_property("value")


@pytest.mark.real
def test_a_chat_with_two_models_side_by_side(page, folder):
    choose(page, "chat-model", "smollm2-135m")
    choose(page, "chat-other", "tiny")
    click(page, "chat-load")
    shows(page, "chat-status", "Ready: smollm2-135m and tiny.")
    write(page, "chat-system", "You answer in one sentence.")
    click(page, "chat-drawing")
    write(page, "chat-temperature", "0")
    write(page, "chat-tokens", "24")
    write(page, "chat-said", "What is the capital of France?")
    click(page, "chat-send")
    shows(page, "chat-talk", "The capital of France is Paris.")
    until(lambda: len(page.find_elements(By.CSS_SELECTOR, "#chat-other-talk [data-testid=bot]")) == 1)
    click(page, "chat-unload")
    shows(page, "chat-status", "No model is loaded.")


def test_a_model_that_does_not_answer_says_why_and_the_other_goes_on(page):
    choose(page, "chat-model", "tiny")
    choose(page, "chat-other", "untold")
    click(page, "chat-load")
    shows(page, "chat-status", "Ready: tiny and untold.")
    click(page, "chat-drawing")
    write(page, "chat-tokens", "8")
    write(page, "chat-said", "hello")
    click(page, "chat-send")
    until(lambda: "has no template to talk with" in page.find_element(By.TAG_NAME, "body").text)
    until(lambda: len(page.find_elements(By.CSS_SELECTOR, "#chat-talk [data-testid=bot]")) == 1)
    assert not page.find_elements(By.CSS_SELECTOR, "#chat-other-talk [data-testid=user]")


def test_a_run_from_the_page(page, folder):
    tab(page, "Train")
    choose(page, "train-model", "tiny")
    choose(page, "train-data", "talks.jsonl")
    choose(page, "train-template", "chatml")
    write(page, "train-batch_size", "2")
    shows(page, "train-command", "--batch-size 2")
    command = "lmf train lora --model tiny --data talks.jsonl --template chatml --batch-size 2"
    assert command in text(page, "train-command").replace("\n", " ")
    runs(page, "train")
    assert "saved out after" in value(page, "train-log")
    assert read_run(folder / "out")["status"] == "finished"
    assert len([each for each in read_log(folder / "out") if "loss" in each]) == 6
    assert page.find_elements(By.CSS_SELECTOR, "#train-plot canvas, #train-plot svg")


def test_the_records_as_the_model_reads_them(page):
    tab(page, "Train")
    choose(page, "train-model", "tiny")
    choose(page, "train-data", "talks.jsonl")
    choose(page, "train-template", "chatml")
    heading = page.find_element(By.XPATH, "//button[contains(., 'What the model reads of the data')]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", heading)
    click(page, "train-preview")
    until(lambda: "<|im_start|>" in value(page, "train-shown"))


def test_a_data_set_is_answered(page, folder):
    tab(page, "Answer")
    choose(page, "answer-model", "tiny")
    choose(page, "answer-data", "talks.jsonl")
    runs(page, "answer")
    assert "lmf generate --in talks.jsonl --out replies.jsonl tiny" in text(page, "answer-command")
    assert len((folder / "replies.jsonl").read_text().splitlines()) == 12
    until(lambda: "one hello" in text(page, "answer-table") or "messages" in text(page, "answer-table"))


def test_a_model_is_measured(page, folder):
    (folder / "said.toml").write_text(
        'name = "said"\nasks = "choices"\ndata = "said.jsonl"\nprompt = "{q}"\nchoices = ["one", "two"]\nanswer = "a"\n'
    )
    (folder / "said.jsonl").write_text('{"q": "the user says", "a": 0}\n{"q": "hello", "a": 1}\n')
    tab(page, "Evaluate")
    choose(page, "evaluate-model", "tiny")
    choose(page, "evaluate-task", "said.toml")
    runs(page, "evaluate")
    assert "lmf eval run --task said.toml --out eval/figures tiny" in text(page, "evaluate-command")
    figures = json.loads((folder / "eval/figures/results.json").read_text())["tasks"]["said"]["figures"]
    until(lambda: "acc_norm" in text(page, "evaluate-table"))
    assert f"{figures['acc']['value']:g}" in text(page, "evaluate-table")


def test_a_model_is_exported(page, folder):
    tab(page, "Export")
    choose(page, "export-model", "tiny")
    write(page, "export-out", "whole")
    runs(page, "export")
    assert (folder / "whole/model.safetensors").exists()


def test_a_command_that_fails_says_why(page):
    tab(page, "Train")
    choose(page, "train-model", "nothing-there")
    choose(page, "train-data", "talks.jsonl")
    click(page, "train-start")
    shows(page, "train-status", "It ended with code 2")
    assert "nothing-there" in value(page, "train-log")


def test_the_page_asks_nobody_else(page, address):
    for name in ("Train", "Evaluate", "Export", "Chat"):
        tab(page, name)
    time.sleep(2)
    assert chromium.requested(page) == {address.removeprefix("http://")}


def test_pages_of_other_sites_are_refused(address):
    with httpx.Client(base_url=address) as client:
        found = client.get("/")
        assert found.status_code == 200
        assert "default-src 'self'" in found.headers["content-security-policy"]
        assert "fonts.googleapis" not in found.text
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/", headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/", headers={"Origin": address}).status_code == 200
        for path in ("/gradio_api/file=https://evil.example/?q=secret", "/gradio_api/file=/etc/hostname"):
            assert client.get(path).text == "This page gives out no files."
        picture = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        assert client.get("/config", headers=picture).status_code == 403
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/", headers=link).status_code == 200


def test_a_key_is_needed_where_others_can_reach_it(folder):
    key = "a-key-of-some-length"
    with started(folder, "--host", "0.0.0.0", environment={"LMF_API_KEY": key}) as found, httpx.Client() as client:
        address = found.replace("0.0.0.0", "127.0.0.1")
        assert client.get(f"{address}/config").status_code == 401
        assert client.post(f"{address}/login", data={"username": "lmf", "password": "wrong"}).status_code == 400
        assert client.post(f"{address}/login", data={"username": "lmf", "password": key}).status_code == 200
        assert client.get(f"{address}/config").status_code == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "the page can start commands: give --api-key or LMF_API_KEY"),
        (["--api-key", "short"], "at least 16 characters"),
        (["--port", "70000"], "--port is 70000"),
    ],
)
def test_bad_input(flags, words, monkeypatch):
    monkeypatch.delenv("LMF_API_KEY", raising=False)
    done = lmf_without_torch("ui", *flags)
    assert done.code == 2
    assert words in done.err
