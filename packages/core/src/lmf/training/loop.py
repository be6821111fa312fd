"""One training run, from a plan to a saved model, read top to bottom."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..encoding.encoder import Example
from ..encoding.material import Material, encode_data
from ..errors import ConfigError, DataError, Interrupted, LmfError
from ..evaluate.running import Evaluator, score, totals
from ..generate.caches import reading
from ..generate.opening import Chatter, reply
from ..guard import Stop, ignore_signals, lock
from ..memory import machine
from ..memory.largest import sized
from ..memory.shortage import explained
from ..parallel.mapping import mapped
from ..parallel.processes import Processes, lost, processes_of
from ..parallel.sharing import begin, share
from ..parallel.words import LOST, say
from ..plan import Plan, check_output
from ..report import Reporter
from ..runs import FOLDER, LOG_FILE, checkpoints, read_log, resume_command, step_of, write_file
from ..settings import AUTO, NEWEST, Evaluation, Sampling
from ..sources import Source
from . import checkpoint, packing
from .background import Background
from .learner import Learner, check_tuner, load_learner, stored_dtype
from .output import check_saving, clear, save_model
from .packing import Batch
from .record import Record
from .supply import supply_of

SAMPLE = Sampling(max_tokens=128)  # of --sample
LARGE = 2**28  # bytes of a checkpoint whose hashes and sync take long enough to train meanwhile (benchmarks/saving.py)
UNSAVED = 1 << 16  # above the number of any signal


def train(plan: Plan, report: Reporter | None = None) -> Path:
    """Run a plan and return its output folder.

    Raises:
        LmfError: The run cannot be done, diverged, or was interrupted; the message says what is left.
    """
    report = report or Reporter()
    settings, output = plan.settings, plan.settings.output
    check_tuner(plan)
    accelerator = begin(plan, log_with=list(settings.log) or None, project_dir=str(output))
    processes = processes_of(accelerator)
    if settings.step_in_backward and processes.count > 1:
        processes.wait()  # the first to leave would cut the others off
        raise ConfigError("--step-in-backward runs in one process: others would have to wait for every gradient.")
    set_seed(settings.seed)
    first = accelerator.is_local_main_process  # of this machine; the others find in its cache what it has encoded
    early = processes.each(lambda: encode_data(plan, report) if first else None)
    material = processes.each(lambda: early or encode_data(plan, report))
    plan = sized(plan, report, processes, material)
    with mapped(
        plan, stored_dtype(plan, processes.device), processes, processes.rank - accelerator.local_process_index
    ) as source:
        learner = processes.each(lambda: _load(plan, material, processes, report, source))
    processes.on_main(lambda: check_saving(learner, material, plan))
    run = explained(
        lambda: _Run(plan, material, learner, accelerator, report),
        plan,
        material,
        processes,
        lambda: "before the first step",
    )
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(lock(output))
            check_output(plan)  # again: another run may have come and gone while the model was loaded
            if settings.overwrite or settings.resume == AUTO:
                clear(output)

        processes.on_main(take)
        try:
            with run.together():
                explained(run.work, plan, material, processes, run.place, run.left)
        except BaseException:
            if processes.main and not (run.done or settings.continues):
                with contextlib.suppress(OSError):
                    clear(output)  # a run that never took a step leaves nothing behind
            raise
        finally:
            run.close()
    return output


def _load(plan: Plan, material: Material, processes: Processes, report: Reporter, source: Source) -> Learner:
    def load() -> Learner:
        settled = plan.sharing.way == "ddp"
        return load_learner(plan, material, processes.device, report, settled, source)

    return explained(load, plan, material, processes, lambda: "while the model was loaded")


class _Run:
    """The loop and what it keeps from step to step."""

    def __init__(self, plan: Plan, material: Material, learner: Learner, accelerator: Accelerator, report: Reporter):
        self.plan, self.settings, self.output = plan, plan.settings, plan.settings.output
        self.material, self.learner, self.report = material, learner, report
        self.accelerator = accelerator
        self.device = accelerator.device
        self.model = learner.model
        self.record = Record(plan, material, learner, processes_of(accelerator))
        assert self.settings.learning_rate is not None  # the plan has filled it in
        self.rate = self.settings.learning_rate
        self.shared = share(plan, learner, material.criterion, accelerator, self._optimizer)
        self.processes, self.optimizer = self.shared.processes, self.shared.optimizer
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.saving = Background(self.processes)
        self.supply = supply_of(material.train, plan)
        self.steps = self.supply.steps
        self.warmup = min(math.ceil(round(self.settings.warmup * self.steps, 6)), self.steps - 1)
        self.done = 0
        self.best: dict[str, Any] | None = None  # {"step", "loss"} of the lowest held-out loss
        self.since_best = 0  # evaluations since then
        self.kept = learner.rows.digest() if learner.rows else ""
        self.checked = False  # whether the optimizer has shown that it leaves these rows alone

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.plan.optimizer.build(self.learner.groups(self.rate, self.settings.weight_decay))

    def work(self) -> None:
        """Train until the last step, an early stop or a signal, and save."""
        self.record.check_processes()
        if self.settings.continues:
            self._resume()
        self.record.write("running", self.done, self.best)
        self.record.write_skipped(self.report)
        if self.settings.log:
            self.accelerator.init_trackers("lmf", config={k: str(v) for k, v in self.plan.values().items()})
        if not self.done:
            self._sample("before")
            self._evaluate()
        status = "finished"
        self.report.start(self.done, self.steps)
        try:
            with Stop().listening() as stop:
                status = self._loop(stop)
        finally:
            self.report.end()
        self._finish(status)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Have the loss of another process, while the block runs, end the run with an error that says what is left."""
        try:
            yield
        except (RuntimeError, TimeoutError) as error:  # gloo has no error of its own
            reason = " ".join(str(error).split())
            if self.processes.count == 1 or not lost(error):
                raise
            ignore_signals()  # a launcher stops this process now, but what it has to say is worth more
            raise LmfError(
                f"{LOST} has ended, or has not answered for {self.settings.timeout} s, {self.place()}: {reason[:200]}\n"
                f"{self.left()}"
            ) from None

    def place(self) -> str:
        """Return how far the run is."""
        return f"after step {self.done} of {self.steps}"

    def left(self) -> str:
        """Return what is left of the run if it ends now."""
        self.saving.settle()
        folder, _ = checkpoint.find(self.output)
        if folder is None:
            return "There is no checkpoint."
        return f"The newest whole checkpoint is {folder}. Continue: {self.again()}"

    def again(self) -> str:
        """Return the command that goes on with this run."""
        return resume_command(self.plan.objective.name, self.output)

    def close(self) -> None:
        """End the trackers, the group of processes and what is still being saved."""
        self.saving.close()
        self.shared.close()
        self.accelerator.end_training()

    def _loop(self, stop: Stop) -> str:
        settings, tuner = self.settings, self.learner.tuner
        self.shared.wrapped.train()
        for chunk in self._chunks():
            if settings.patience and self.since_best >= settings.patience:
                self.report.note(f"stopped early: {settings.patience} evaluations without a lower held-out loss")
                return "stopped early"
            start = time.perf_counter()
            tuner.before_step(self.done, self.optimizer)
            self.shared.follow()
            factor = schedule(settings.schedule, self.done, self.steps, self.warmup)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            say(f"computing step {self.done + 1}")
            entry = self._step(chunk)
            self.done += 1
            self._check_rows(once=True)
            tokens = sum(len(e.ids) for e in chunk)
            entry = {
                "step": self.done,
                "epoch": self.supply.epoch(self.done),
                **entry,
                "learning_rate": self.rate * factor,
                "tokens": tokens,
                "trained_tokens": sum(e.trained for e in chunk),
                "tokens_per_second": round(tokens / (time.perf_counter() - start), 1),
                "memory_bytes": machine.peak(self.device),
            }
            self._log(entry)
            self.report.step(entry)
            improved = self._due(settings.eval_every) and self._evaluate()
            signal = self.processes.largest(UNSAVED if self.saving.failed else stop.signal or 0)
            if signal == UNSAVED:
                self.saving.finish()
            if signal and self.done < self.steps:  # what one process was told, all obey
                self._stop(signal)
            if self._due(settings.save_every) or (improved and settings.save_best):
                self._save(beside=True)
        return "finished"

    def _chunks(self) -> Iterator[list[Example]]:
        """Yield the examples of each step that is left to do."""
        try:
            yield from self.supply.batches(self.done)
        except DataError as error:
            if not self.done:
                raise
            self.record.write("interrupted", self.done, self.best)
            raise DataError(
                f"{error}\nStopped after step {self.done} of {self.steps}; saved {self._save()}.\n"
                f"Continue without such records: {self.again()} --on-bad-record skip"
            ) from None

    def _step(self, chunk: Sequence[Example]) -> dict[str, float]:
        """Do one optimizer step over the examples of all devices. Returns its loss and gradient norm."""
        settings = self.settings
        weight = sum(e.weight for e in chunk)
        parts, own = self._parts(chunk)
        batches = [self._batch(part) for part in parts]
        losses = []
        for number, batch in enumerate(batches, 1):
            with self.shared.passing(last=number == len(batches)):
                loss = self.shared.loss(batch) / weight
                loss = loss if number <= own else loss * 0
                if settings.step_in_backward and not loss.isfinite():  # what comes now could not be taken back
                    what = f"the loss is {loss.item()}; the step was not taken"
                    self._diverged(f"Step {self.done + 1}: {what}.", [loss], [batch.where])
                self.shared.backward(loss)
            losses.append(loss.detach())
        say(f"waiting for the others in step {self.done + 1}")
        norm = self.shared.norm()
        total, size = torch.stack([self._sum(losses).to(norm), norm]).tolist()  # the one wait for the device
        if not (math.isfinite(total) and math.isfinite(size)):
            taken = "taken in part" if settings.step_in_backward else "not taken"
            what = f"the loss is {total} and the norm of its gradient {size}; the step was {taken}"
            self._diverged(f"Step {self.done + 1}: {what}.", losses, [b.where for b in batches])
        self.shared.step(norm)
        return {"loss": total, "gradient_norm": size}

    def _parts(self, examples: Sequence[Example]) -> tuple[list[list[Example]], int]:
        """Return the examples of each forward pass of this process, and how many of these passes count.

        One that has less to do than others takes part all the same, with a weight of nothing.
        """
        ranks, tokens = range(self.processes.count), self.settings.micro_batch_tokens
        shares = [
            packing.micro_batches(packing.share(examples, rank, len(ranks)), tokens, self.learner.packed)
            for rank in (ranks if self.shared.lockstep else [self.processes.rank])
        ]
        mine = shares[self.processes.rank if self.shared.lockstep else 0]
        passes = max(1, *map(len, shares))
        spare = [min(examples, key=lambda e: len(e.ids))]
        return mine + [spare] * (passes - len(mine)), len(mine)

    def _sum(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add up the losses of all processes."""
        return self.processes.sum(torch.stack(list(losses)).sum())

    def _batch(self, examples: Sequence[Example]) -> Batch:
        return self.learner.batch(examples).to(self.device)

    def _evaluate(self) -> bool:
        """Measure the held-out loss in nats per token, and benchmarks; tell whether the loss is the lowest so far."""
        examples = self.material.held_out
        figures = (self.shared.within(self._measure) or {}) if self.plan.tasks else {}
        if not examples:
            if figures:
                self._evaluated({"step": self.done, **figures})
            return False
        self.shared.wrapped.eval()
        losses = [torch.zeros((), dtype=torch.float64, device=self.device)]
        where: list[Sequence[str]] = [()]
        parts, own = self._parts(examples)
        with torch.no_grad():
            for number, part in enumerate(parts):
                loss = self.shared.loss(self._batch(part)).double()
                if number < own:
                    losses.append(loss)
                    where.append([e.where for e in part])
        self.shared.wrapped.train()
        loss = self._sum(losses).item() / sum(e.weight for e in examples)
        if not math.isfinite(loss):
            self._diverged(f"Step {self.done}: the held-out loss is {loss}.", losses, where)
        self._evaluated({"step": self.done, "eval_loss": loss, **figures})
        if self.best is not None and not loss < self.best["loss"]:
            self.since_best += 1
            return False
        self.best, self.since_best = {"step": self.done, "loss": loss}, 0
        return self.done > 0

    def _evaluated(self, entry: dict[str, Any]) -> None:
        self._log(entry)
        self.report.evaluated(entry)

    def _measure(self) -> dict[str, float]:
        """Return the figures of the benchmarks, as TASK/FIGURE; the model is afterwards what it was before."""
        chatter = Chatter(self.model, self.material.tokenizer, self.material.encoder)
        found = {}
        with self.learner.precision(self.device), reading(self.model) as runner:
            for items in self.plan.tasks:
                done = dict(one for some in Evaluator(items, Evaluation(), chatter, runner).run() for one in some)
                sums = [score(items.task, items.items[number], done[number]) for number in sorted(done)]
                found |= {f"{items.task.name}/{name}": value for name, value in totals(items.task, sums).items()}
        return found

    def _due(self, every: int | None) -> bool:
        return self.done % (every or self.supply.per_epoch or self.steps) == 0 or self.done == self.steps

    def _save(self, beside: bool = False) -> Path:
        """Write a checkpoint and return its place.

        Args:
            beside: Complete a large one while the training goes on.
        """
        self.saving.finish()
        if not self.shared.finite():
            self._diverged(f"Step {self.done}: the weights are not finite numbers.", [], [])
        state = {"best": self.best, "since_best": self.since_best, "position": self.supply.state()}
        best = self.best["step"] if self.best else None
        step, place = self.done, self._checkpoint(self.done)
        say(f"saving after step {step}")
        optimizer = self.shared.state()
        written = checkpoint.write(
            self.output, step, lambda folder: self._save_model(folder, place), optimizer, state, self.processes
        )

        def complete() -> None:
            written.complete()
            checkpoint.prune(self.output, step, self.settings.keep, best)

        self.saving.begin(complete)
        if not beside or written.size < LARGE:
            self.saving.finish()
        return place

    def _save_model(self, folder: Path, place: Path) -> None:
        """Write what the method gives out into a folder, for a place; all processes together."""
        tuner = self.learner.tuner

        def save() -> None:
            with checkpoint.writing(place):
                tuner.save(self.model, folder)

        with self.shared.whole(tuner.saved(self.model)):
            self.processes.on_main(save)

    def _load_model(self, folder: Path) -> None:
        """Put back what ``_save_model`` wrote."""
        tuner = self.learner.tuner
        with self.shared.whole(tuner.saved(self.model), change=True):
            self.processes.on_main(lambda: tuner.load(self.model, folder))

    def _checkpoint(self, step: int) -> Path:
        return self.output / FOLDER / checkpoint.name(step)

    def _resume(self) -> None:
        self.record.go_on(self.report)
        folder = self._chosen()
        self._load_model(folder)
        state, optimizer = checkpoint.load(folder, self.processes.rank)
        self.shared.restore(optimizer)
        self.done, self.best, self.since_best = state["step"], state["best"], state["since_best"]
        self.supply.restore(state["position"])
        if self.best and self.best["step"] and (problem := checkpoint.damage(self._checkpoint(self.best["step"]))):
            self.report.note(f"the best checkpoint, of step {self.best['step']}, is lost ({problem})")
            self.best = None
        if self.processes.main:
            checkpoint.sweep(self.output)
            if self.settings.resume != NEWEST:
                self._set_aside(folder)
            lines = [entry for entry in read_log(self.output) if entry["step"] <= self.done]
            with checkpoint.writing(self.output / LOG_FILE):
                write_file(self.output / LOG_FILE, "".join(json.dumps(line) + "\n" for line in lines))
        self.report.note(f"resumed from {folder.name}")

    def _chosen(self) -> Path:
        """Return the checkpoint to go on from: the one that was named, or else the newest whole one."""
        if self.settings.resume != NEWEST:
            folder = self.output / FOLDER / str(self.settings.resume)  # the plan has seen that it is there
            if problem := checkpoint.damage(folder):
                raise LmfError(
                    f"--resume {folder.name}: it is damaged: {problem}.\nResume without a name to find another."
                )
            return folder
        folder, skipped = checkpoint.find(self.output)
        for reason in skipped:
            self.report.note(reason)
        if folder is None:
            raise LmfError(f"{self.output} has no whole checkpoint to resume from. Start again with --overwrite.")
        return folder

    def _set_aside(self, folder: Path) -> None:
        """Give the checkpoints after one that was named other names: the run takes another course from here."""
        for later in checkpoints(self.output):
            if step_of(later) > step_of(folder):
                left = next(
                    p for n in itertools.count(1) if not (p := later.with_name(f"{later.name}.left{n}")).exists()
                )
                later.rename(left)
                self.report.note(f"{later.name} is of the earlier course of this run; it is kept as {left.name}")

    def _stop(self, signal: int) -> None:
        folder = self._save()
        self.record.write("interrupted", self.done, self.best)
        raise Interrupted(
            f"Stopped after step {self.done} of {self.steps}; saved {folder}.\nContinue: {self.again()}",
            signal,
        )

    def _diverged(self, what: str, losses: Sequence[torch.Tensor], where: Sequence[Sequence[str]]) -> NoReturn:
        """End the run, naming the records of the micro-batches whose loss is not finite, or else of them all."""
        bad = [name for loss, names in zip(losses, where, strict=True) if not loss.isfinite() for name in names]
        of_all = [name for names in where for name in names]
        names = _flat(self.processes.gather(bad)) or _flat(self.processes.gather(of_all))
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        parameter = next((name for name, grad in gradients.items() if not grad.isfinite().all()), None)
        self.saving.settle()
        folder, _ = checkpoint.find(self.output)
        self.record.write("diverged", self.done, self.best)
        raise LmfError(
            f"{what}\n"
            + (f"Records of that batch: {', '.join(names[:8])}{more}.\n" if names else "")
            + (f"First parameter with a bad gradient: {parameter}.\n" if parameter else "")
            + (f"The last good checkpoint is {folder}. " if folder else "There is no checkpoint yet. ")
            + "Try a lower --learning-rate, or look at these records."
        )

    def _finish(self, status: str) -> None:
        """Save the model that the run gives out, and close the record."""
        self.saving.finish()
        self._check_rows()
        if self.settings.save_best and self.best and self.best["step"] != self.done:
            self._load_best(self.best["step"])
        save_model(
            lambda folder: self._save_model(folder, self.output),
            self.learner,
            self.material,
            self.output,
            self.processes,
        )
        self._sample("after")
        for note in self.supply.notes():
            self.report.note(note)
        self.record.values["ended"] = status
        self.record.write("finished", self.done, self.best)

    def _check_rows(self, once: bool = False) -> None:
        """See that rows which are not trained are what they were; once means after the first step only."""
        rows = self.learner.rows
        if rows and not (once and self.checked):
            rows.check(self.kept)
            self.checked = True

    def _load_best(self, step: int) -> None:
        if step == 0:
            self.report.note("the held-out loss was lowest before training; giving out the last weights all the same")
        elif problem := checkpoint.damage(self._checkpoint(step)):
            self.report.note(f"the best checkpoint, of step {step}, is lost ({problem}); giving out the last weights")
        else:
            self._load_model(self._checkpoint(step))
            self.report.note(f"giving out the weights of step {step}, which had the lowest held-out loss")

    def _sample(self, when: str) -> None:
        prompt = self.settings.sample
        if not prompt:
            return

        def write() -> str:
            chatter = Chatter(self.model, self.material.tokenizer, self.material.encoder)
            with self.learner.precision(self.device):
                return reply(chatter, prompt, SAMPLE)

        text = self.shared.within(write)
        if text is not None:
            self.report.sample(when, prompt, text)
            self.record.values[f"sample_{when}"] = text

    def _log(self, entry: dict[str, Any]) -> None:
        if self.processes.main:
            file = self.output / LOG_FILE
            with checkpoint.writing(file), file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            if self.settings.log:
                self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])


def schedule(kind: str, step: int, steps: int, warmup: int) -> float:
    """Return the factor of the peak learning rate at a step counted from 0.

    It rises in equal parts to 1 at step ``warmup - 1``, then follows the kind down to 0 after
    the last step: ``linear``, ``cosine`` (half a wave, arXiv 1608.03983) or ``constant``.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if kind == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if kind == "cosine" else 1.0


def _flat(lists: Sequence[Sequence[str]]) -> list[str]:
    return [each for part in lists for each in part]
