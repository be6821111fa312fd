"""Measures a model, task by task, and writes down what came of each item at once."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from lmf import Chosen, ConfigError, Likelihood, Written
from lmf.config import flag
from lmf.evaluate.lengths import at_lengths
from lmf.evaluate.metrics import metrics_of
from lmf.evaluate.running import Evaluator, score
from lmf.evaluate.sources import Item, Items
from lmf.evaluate.task import Outcome
from lmf.generate.caches import runner_for
from lmf.journal import journal, line
from lmf.models import fingerprint, quiet
from lmf.runs import replacing
from lmf.templates.jinja import AUTO

from .opening import open_for
from .order import Order
from .report import print_table, write_reports
from .results import RESULTS, items_file, parts_of, read_results, scores_of, write_results

EVERY = 5.0  # seconds between two reports


def measure(order: Order) -> None:
    """Measure all that is asked for, and report it.

    Raises:
        LmfError: The model or a problem cannot be used; what was measured stays.
    """
    quiet()
    chatter = open_for(order)
    runner = runner_for(chatter.model)
    results = _begun(order)
    weights = fingerprint(chatter.model)
    if results["tasks"] and results["weights"] != weights:
        raise ConfigError(f"{order.out} has figures of {results['model']} with other weights; name another --out.")
    results |= {"model": order.model, "weights": weights, **_circumstances(order)}
    made = [at_lengths(items, order.evaluation, chatter) for items in order.items]
    told = {items.task.name: notes for items, notes in made}
    pairs = [(items, Evaluator(items, order.evaluation, chatter, runner)) for items, _ in made]  # all, before the first
    asked_for = [_asked(order, items, evaluator, results["weights"]) for items, evaluator in pairs]
    for asked in asked_for:
        _check_same(order, asked, results["tasks"].get(asked["task"]))
    order.out.mkdir(parents=True, exist_ok=True)
    for (items, evaluator), asked in zip(pairs, asked_for, strict=True):
        if items.task.name in results["tasks"] and items_file(order.out, items.task.name).exists():
            print(f"{items.task.name}: the figures are there already", file=sys.stderr)
            continue
        result = _measured(order, items, evaluator, asked)
        result["notes"] = [*told[items.task.name], *result["notes"]]
        results["tasks"][items.task.name] = result
        write_results(order.out, results)
    for name in order.harness:
        from .harness import called, measure_harness

        before = results["tasks"].get(called(name))
        _check_same(order, {**order.settings(), "task": called(name)}, before)
        if before:
            print(f"{called(name)}: the figures are there already", file=sys.stderr)
            continue
        for task, result in measure_harness(order, name, chatter, runner):
            results["tasks"][task] = result
            write_results(order.out, results)
    write_reports(order.out, results)
    print_table(results)
    print(f"saved {order.out / RESULTS}")


def _begun(order: Order) -> dict[str, Any]:
    """Return the results that are in the folder already, of which those that are asked for again are used."""
    if order.wanted.force or not (order.out / RESULTS).exists():
        return {"tasks": {}}
    return read_results(order.out)


def _check_same(order: Order, asked: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    """Refuse to put figures in the place of others.

    Raises:
        ConfigError: The folder has figures of the task that were asked for otherwise.
    """
    if before is None:
        return
    for name in asked:
        if before["asked"].get(name) != asked[name]:
            called = "MODEL" if name == "model" else flag(name) if name in order.settings() else name
            raise ConfigError(
                f"{order.out} has figures of {asked['task']} with {called} {before['asked'].get(name)!r}, not "
                f"{asked[name]!r}. Name another --out, or --force to put these in their place."
            )


def _measured(order: Order, items: Items, evaluator: Evaluator, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Ask all problems of a task that were not asked, and return its result."""
    task, began = items.task, time.monotonic()
    file = items_file(order.out, task.name)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    with journal(partial, asked) as found:
        if order.wanted.force:
            found.begin_anew()
        lines: dict[int, dict[str, Any]] = {}
        for number, value in found.lines():
            if not (isinstance(value, dict) and isinstance(value.get("id"), int) and value["id"] < len(items.items)):
                raise found.foreign(number)
            lines[value["id"]] = value
        if lines:
            print(f"{partial}: {len(lines):,} of {len(items.items):,} are there; going on", file=sys.stderr)
        for value in _lines(evaluator, items, set(lines)):
            found.add(value)
            lines[value["id"]] = value
        with replacing(file) as whole:
            whole.writelines(line(lines[number]) for number in sorted(lines))
        found.begin_anew()
    ordered = [lines[number] for number in sorted(lines)]
    figures = scores_of(task, ordered)
    return {
        "asked": dict(asked),
        "source": task.source,
        "items": len(ordered),
        "shots": evaluator.asker.shots,
        "in": _form(order, evaluator),
        "figures": figures,
        "parts": parts_of(task, ordered),
        "by_length": task.of_length is not None,
        "notes": _notes(evaluator, ordered, [each.name for each in metrics_of(task) if each.name not in figures]),
        "seconds": round(time.monotonic() - began, 1),
    }


def _lines(evaluator: Evaluator, items: Items, done: set[int]) -> Iterator[dict[str, Any]]:
    """Yield the line of each item, as soon as it is there."""
    began = said = time.monotonic()
    count, total = 0, len(items.items) - len(done)
    for ready in evaluator.run(done):
        for number, outcome in ready:
            item = items.items[number]
            yield {
                "id": number,
                "key": item.key,
                "where": item.where,
                "part": item.problem.part,
                "prompt": evaluator.shown(number),
                **_told(item, outcome),
                "scores": score(items.task, item, outcome),
            }
        count += len(ready)
        now = time.monotonic()
        if now - said > EVERY or (count == total and ready):
            said = now
            rate = count / max(now - began, 1e-9)
            there = f"{len(done) + count:,} of {len(items.items):,}"
            print(f"{items.task.name}: {there}  {rate:,.1f} a second", file=sys.stderr)


def _told(item: Item, outcome: Outcome) -> dict[str, Any]:
    problem = item.problem
    match outcome:
        case Chosen():
            right = list(problem.right)
            return {"choices": problem.choices, "right": right, "logprobs": outcome.logprobs, "tokens": outcome.tokens}
        case Written():
            right = [problem.answer, *problem.references]
            told = {"replies": outcome.texts, "finish": outcome.finish, "references": right}
            called = [[{"name": call.name, "arguments": call.arguments} for call in calls] for calls in outcome.calls]
            return {**told, "calls": called} if called else told
        case Likelihood():
            return {"text": problem.answer, "windows": outcome.windows}


def _asked(order: Order, items: Items, evaluator: Evaluator, weights: str) -> dict[str, Any]:
    """Return all that decides on the figures of a task."""
    template = evaluator.chatter.template if evaluator.asker.templated else None
    return {
        **order.settings(),
        "weights": weights,
        "task": items.task.name,
        "version": items.task.version,
        "file": str(order.files[items.task.name]) if items.task.name in order.files else None,
        "data": [{"path": str(each.path), "sha256": each.sha256, "records": each.records} for each in items.sources],
        "items_sha256": _sha256(",".join(item.key for item in items.items)),
        "template_sha256": _sha256(template.jinja()) if template else None,
    }


def _form(order: Order, evaluator: Evaluator) -> str:
    """Return in one word how problems were put."""
    if evaluator.asker.templated and evaluator.chatter.template:
        name = evaluator.chatter.template.name
        return "its own template" if name == AUTO else name
    return "text" if order.evaluation.prompt_structure is None else "structure"


def _notes(evaluator: Evaluator, lines: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> list[str]:
    notes = [f"no item counts for {name}, or it is infinite" for name in missing]
    if evaluator.asker.cut:
        notes.append(f"{evaluator.asker.cut:,} prompts lost their beginning (--on-overflow cut)")
    if evaluator.task.asks == "reply":
        empty = sum(not reply.strip() for each in lines for reply in each["replies"])
        unfinished = sum(finish == "length" for each in lines for finish in each["finish"])
        notes += [f"{empty:,} replies are empty"] * bool(empty)
        notes += [f"{unfinished:,} replies were ended by --max-tokens {evaluator.limit}"] * bool(unfinished)
    return notes


def _circumstances(order: Order) -> dict[str, Any]:
    return {
        "adapter": None if order.wanted.adapter is None else str(order.wanted.adapter),
        "command": shlex.join(["lmf", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(order.evaluation),
        "plugins": {each.package: each.version for each in order.plugins.installed if not each.problem},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "python": platform.python_version(),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
