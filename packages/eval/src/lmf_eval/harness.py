"""Tasks of the lm-evaluation-harness on our models: with our templates, adapters and batches.

The harness makes the requests and the figures; what it asks is answered by the scorer and the engine of lmf. A prompt
that it has rendered by ``apply_chat_template`` keeps its token ids, so special tokens come from the template alone.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmf import ConfigError, LmfError, Message, Sampling
from lmf.evaluate.asking import bare, following, opening
from lmf.evaluate.likelihood import Scored, Scorer, Text, batches, tokens_of
from lmf.evaluate.running import default_tokens
from lmf.generate.batch import in_order
from lmf.generate.caches import Runner
from lmf.generate.opening import Chatter
from lmf.journal import line
from lmf.runs import write_file

from .order import HARNESS, Order
from .results import items_file

try:
    from lm_eval.api.model import LM
except ImportError:
    raise LmfError("Tasks of the lm-evaluation-harness need it: pip install 'lmf-eval[harness]'") from None

YAML = (".yaml", ".yml")
TOKENS = 256  # of a reply, where the task does not say
KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Harnessed(LM):
    """A model of ours, as the harness sees one.

    Args:
        chatter: The model.
        runner: Runs it.
        batch_tokens: Most tokens in one forward pass.
        context: Most tokens of a prompt and its reply.
    """

    def __init__(self, chatter: Chatter, runner: Runner, batch_tokens: int | None, context: int | None):
        super().__init__()
        self.chatter, self.runner = chatter, runner
        self.most = batch_tokens or default_tokens(next(chatter.model.parameters()).device)
        self.context = min(context or chatter.context, chatter.context)
        self._rendered: dict[str, list[int]] = {}

    @property
    def tokenizer_name(self) -> str:
        """What keeps cached requests of the harness apart."""
        return f"lmf-{self.chatter.template.name if self.chatter.template else 'text'}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template, for the harness's own record."""
        return self.chatter.template.jinja() if chat_template and self.chatter.template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text, and remember its token ids."""
        messages = [Message(each["role"], each["content"]) for each in chat_history]  # type: ignore[arg-type]
        prefill = ""
        if not add_generation_prompt and messages[-1].role == "assistant":
            prefill = messages.pop().content
        ids = self.chatter.ids(messages, prefill)
        text = str(self.chatter.tokenizer.decode(ids))
        self._rendered[text] = ids
        return text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether the model would write it."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.args[0], []).append(number)
        found: dict[int, Scored] = {}
        work = [[self._pair(*requests[number].args) for number in numbers] for numbers in groups.values()]
        for numbers, scored in zip(groups.values(), self._scores(work), strict=True):
            found |= dict(zip(numbers, scored, strict=True))
        return [(math.fsum(found[number].logprobs), found[number].likeliest) for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-likelihood of each text, from its first token on."""
        texts = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._scores([[window] for windows in texts for window in windows]))
        return [math.fsum(value for _ in windows for value in next(scores)[0].logprobs) for windows in texts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return a reply to each prompt."""
        engine = self.chatter.engine(self.runner, context=self.context)
        prompts = []
        for request in requests:
            sampling = _sampling(request.args[1])
            ids = self._ids(request.args[0]) or opening(self.chatter)
            prompts.append((ids[-max(1, self.context - sampling.max_tokens) :], sampling))
        continues = not self._rendered
        return [replies[0].text for replies in in_order(engine, prompts, continues=continues)]

    def _scores(self, groups: Sequence[Sequence[Text]]) -> Iterator[list[Scored]]:
        """Score groups of texts in batches, longest first; yields in the order that was given."""
        scorer = Scorer(self.runner)
        order = sorted(range(len(groups)), key=lambda number: -tokens_of(groups[number]))
        found: dict[int, list[Scored]] = {}
        for batch in batches(order, [tokens_of(groups[number]) for number in order], self.most):
            found |= dict(zip(batch, scorer.score([groups[number] for number in batch]), strict=True))
        yield from (found[number] for number in range(len(groups)))

    def _pair(self, context: str, continuation: str) -> Text:
        """Return a continuation after its context, split as the harness splits them."""
        if context in self._rendered:
            before = self._rendered[context]
            ids = (*before, *bare(self.chatter, continuation))
        else:
            text = following(self.chatter, context, continuation)
            before, ids = text.ids[: text.start], text.ids
        over = max(0, len(ids) - 1 - self.context)
        return Text(ids[over:], max(1, len(before) - over))

    def _windows(self, text: str) -> list[Text]:
        """Return the windows of a text: each full, and as few as there can be."""
        ids, most = bare(self.chatter, text), self.context
        whole = (*opening(self.chatter), *ids)
        texts = [Text(whole[: most + 1], 1)] if ids else []
        done = most + 1
        while done < len(whole):
            end = min(done + most, len(whole))
            begin = max(0, end - most - 1)
            texts.append(Text(whole[begin:end], done - begin))
            done = end
        return texts

    def _ids(self, text: str) -> list[int]:
        return list(self._rendered.get(text) or self.chatter.encoder.plain(text))


def called(name: str) -> str:
    """Return what the results call a task: its name, or that in its YAML file."""
    return HARNESS + (_task_of(Path(name)) if name.endswith(YAML) else name)


def measure_harness(order: Order, name: str, chatter: Chatter, runner: Runner) -> Iterator[tuple[str, dict[str, Any]]]:
    """Have the harness measure a task or a group of them.

    Args:
        order: How it is asked.
        name: Its name, or its YAML file.
        chatter: The model.
        runner: Runs it.

    Yields:
        The name of each task and its result, as ``results.json`` has them.

    Raises:
        LmfError: There is no such task, or its data are not here.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    evaluate: Any = lm_eval.simple_evaluate
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    evaluation = order.evaluation
    if evaluation.prompt_structure is not None:
        raise ConfigError("--prompt-structure is for tasks of lmf; the harness makes its own prompts.")
    templated = evaluation.template not in (None, "none")
    if templated and chatter.template is None:
        raise ConfigError("This model has no template of its own; name one with --template, or --template none.")
    manager = TaskManager(include_path=str(Path(name).parent) if name.endswith(YAML) else None)
    wanted = called(name).removeprefix(HARNESS)
    if not manager.match_tasks([wanted]):
        raise ConfigError(f"--task {HARNESS}{name}: the harness {lm_eval.__version__} has no such task.")
    began = time.monotonic()
    try:
        found = evaluate(
            model=Harnessed(chatter, runner, evaluation.batch_tokens, evaluation.context),
            tasks=[wanted],
            num_fewshot=evaluation.shots,
            limit=evaluation.limit,
            bootstrap_iters=1000,
            log_samples=True,
            apply_chat_template=templated,
            task_manager=manager,
            confirm_run_unsafe_code=order.wanted.allow_code_execution,
        )
    except (ConnectionError, FileNotFoundError, OSError, ValueError) as error:  # what loads its data raises
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise LmfError(f"--task {HARNESS}{name}: the harness could not run it: {cause}") from error
    for task in found["results"]:
        yield HARNESS + task, _result(order, task, found, chatter, templated, time.monotonic() - began)


def _result(
    order: Order, task: str, found: Mapping[str, Any], chatter: Chatter, templated: bool, seconds: float
) -> dict[str, Any]:
    """Return what the harness found for a task, and write its items."""
    import lm_eval

    values = found["results"][task]
    higher = found.get("higher_is_better", {}).get(task) or {}
    figures: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, comma, filter = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{name}_stderr,{filter}")
            error = float(error) if isinstance(error, int | float) else None
            figures[_called(name, filter)] = {"value": value, "error": error, "higher": higher.get(name) is not False}
    samples = found.get("samples", {}).get(task, [])
    lines = list(_lines(samples, set(figures)))
    write_file(items_file(order.out, HARNESS + task), "".join(map(line, lines)))
    template = chatter.template.jinja() if templated and chatter.template else None
    return {
        "asked": {
            **order.settings(),
            "task": HARNESS + task,
            "version": found["versions"].get(task),
            "harness": lm_eval.__version__,
            "template_sha256": template and hashlib.sha256(template.encode()).hexdigest(),
        },
        "source": f"lm-evaluation-harness {lm_eval.__version__}",
        "items": len(lines),
        "shots": found.get("n-shot", {}).get(task) or 0,
        "in": chatter.template.name if templated and chatter.template else "text",
        "figures": figures,
        "parts": {},
        "notes": [],
        "seconds": round(seconds, 1),
    }


def _lines(samples: Sequence[Mapping[str, Any]], figures: set[str]) -> Iterator[dict[str, Any]]:
    """Yield a line for each item, with the figures of all filters."""
    items: dict[int, dict[str, Any]] = {}
    for sample in samples:
        first = {
            "id": sample["doc_id"],
            "key": sample["doc_hash"][:16],
            "where": f"item {sample['doc_id']}",
            "part": "",
            "prompt": next(iter(sample["arguments"]))[0],
            "responses": sample["filtered_resps"],
            "target": sample["target"],
            "scores": {},
        }
        item = items.setdefault(sample["doc_id"], first)
        for name in sample["metrics"]:
            value, called = sample[name], _called(name, sample["filter"])
            if called in figures and isinstance(value, int | float):
                item["scores"][called] = (float(value), 1.0)
    yield from items.values()


def _called(name: str, filter: str) -> str:
    return name if filter in ("none", "") else f"{name} ({filter})"


def _task_of(file: Path) -> str:
    """Return the name of the task in a YAML file of the harness."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--task {HARNESS}{file} cannot be read: {error}.") from None
    for text in lines:
        if text.startswith("task:"):
            return text.removeprefix("task:").strip().strip("\"'")
    raise ConfigError(f"--task {HARNESS}{file}: the file names no task.")


def _sampling(given: Mapping[str, Any]) -> Sampling:
    """Return how a reply is drawn, of what the harness calls generation arguments."""
    if unknown := [name for name in given if name not in KNOWN]:
        raise LmfError(f"The harness asks for {unknown[0]}={given[unknown[0]]!r}, which lmf does not have.")
    until = given.get("until") or ()
    draws = given.get("do_sample", False)
    more = {name: given[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty") if name in given and draws}
    return Sampling(
        max_tokens=int(given.get("max_gen_toks") or TOKENS),
        temperature=float(given.get("temperature") or 1.0) if draws else 0.0,
        seed=0,
        stop=(until,) if isinstance(until, str) else tuple(until),
        **more,
    )
