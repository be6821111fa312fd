"""LMF beside other tools that fine-tune: the same weights, records, order, learning rate and steps.

Usage: throughput.py [--peers FOLDER] [--rounds N] [--only TOOL[:METHOD] ...] [--report]

First make the environments with peers/install.py; a tool that has none is left out. Every run is
a fresh process on the CPU, in fp32, and the tools take turns. In the first round each runs all its
modes, with packing and without, and what it has learned is measured on held-out records; in the
others it runs the faster mode of each method. The results are written after every run: started
again, the command goes on where it was, and tries again what failed. At the end, or at once with
--report, the table in README.md and the plot are made of them. Measured are

- tokens/s: tokens of the records, without padding, by the time between the end of the first step
  and that of the last; for each second, and for each CPU second
- first step: seconds from the start of the process until the first step is reported
- peak: highest resident set of the largest process of the run
- loss: nats per token of the replies held out, by peers/evaluate.py for all
- --help: seconds of the bare command line
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from peers import report, watch
from peers.tools import LONGEST, TOOLS, Job, Tool

HERE = Path(__file__).parent
ROOT = HERE.parent

Run = dict[str, Any]  # a row of the file of results


class Results:
    """The file of results."""

    def __init__(self, file: Path, settings: Mapping[str, Any]):
        self.file = file
        self.found: dict[str, Any] = {"date": str(date.today()), "settings": dict(settings), "versions": {}, "runs": []}
        if file.exists():
            self.found = json.loads(file.read_text(encoding="utf-8"))
            if self.found["settings"] != settings:
                sys.exit(f"{file} was measured with {self.found['settings']}: give the same, or another --results.")

    def has(self, **what: Any) -> bool:
        return any(what.items() <= run.items() and "error" not in run for run in self.found["runs"])

    def add(self, run: Run) -> None:
        """Keep a run, in place of one of the same that failed, and write the file."""
        keys = ("tool", "method", "packed", "round")
        others = [other for other in self.found["runs"] if any(other[key] != run[key] for key in keys)]
        self.found["runs"] = [*others, run]
        partial = self.file.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)

    def modes(self, tool: Tool, method: str, round: int) -> list[bool]:
        """Return whether to pack: both in the first round, then what was faster in it."""
        both = [False, True] if tool.packs else [False]
        if round == 1:
            return both
        rates = {
            run["packed"]: run["rate_cpu"]
            for run in self.found["runs"]
            if (run["tool"], run["method"], run["round"]) == (tool.name, method, 1) and "error" not in run
        }
        return [max(rates, key=lambda packed: rates[packed])] if rates else []


class Bench:
    """Where the runs are done, and of what size."""

    def __init__(self, folder: Path, batch: int, steps: int, threads: int):
        self.folder, self.batch, self.steps, self.threads = folder, batch, steps, threads
        self.lengths = self._prepare()

    def _prepare(self) -> list[int]:
        """Make the weights and the records if they are not there. Returns the tokens of each record."""
        lengths = self.folder / "data" / "lengths.json"
        made = json.loads(lengths.read_text()) if lengths.exists() else {}
        size = {"batch": self.batch, "steps": self.steps}
        if made.get("size") != size:
            arguments = [str(HERE / "peers" / "prepare.py"), str(self.folder), str(self.batch), str(self.steps)]
            subprocess.run([sys.executable, *arguments], check=True, env=self._variables(TOOLS["lmf"]))
        return json.loads(lengths.read_text())["lengths"]

    def _variables(self, tool: Tool) -> dict[str, str]:
        return watch.environment(self.folder, tool.bin(self.folder), self.threads)

    def train(self, tool: Tool, method: str, packed: bool, learned: bool) -> Run:
        """Do a training run; with ``learned`` also measure its loss."""
        place = self.folder / "runs" / "-".join([tool.name, method, *["packed"] * packed])
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        total = sum(self.lengths)
        job = Job(
            folder=self.folder,
            output=place / "saved",
            method=method,
            packed=packed,
            batch=self.batch,
            rows=max(1, round(total / self.steps / LONGEST)),
            steps=self.steps,
        )
        load = round(os.getloadavg()[0], 2)  # what else the machine does
        done = watch.watch(tool.command(job), self._variables(tool), tool.step, place / "log.txt")
        run: Run = {"load": load, "status": done.status, "wall": done.wall, "cpu": done.cpu, "peak": done.peak}
        if done.status or len(done.ends) < 2:
            log = (place / "log.txt").relative_to(self.folder)
            return run | {"error": f"status {done.status} after {len(done.ends)} steps; see {log}"}
        # nobody tells which records are in a peer's packed row: each of its steps counts as much as another
        rows = packed and tool.name != "lmf"
        first = total / len(done.ends) if rows else sum(self.lengths[: self.batch])
        wall, cpu = (end - begin for begin, end in zip(done.ends[0], done.ends[-1], strict=True))
        run |= {"first_wall": done.ends[0][0], "first_cpu": done.ends[0][1]}
        run |= {"rate_wall": round((total - first) / wall, 2), "rate_cpu": round((total - first) / cpu, 2)}
        if learned:
            run |= self._loss(tool, job.output)
        shutil.rmtree(job.output, ignore_errors=True)
        return run

    def _loss(self, tool: Tool, saved: Path) -> Run:
        """Measure what a run has learned."""
        if tool.name == "litgpt":
            convert = [str(tool.bin(self.folder) / "litgpt"), "convert_from_litgpt", str(saved / "final")]
            subprocess.run([*convert, str(saved / "plain")], stdout=subprocess.DEVNULL, env=self._variables(tool))
            saved = saved / "plain"
        command = [sys.executable, str(HERE / "peers" / "evaluate.py"), str(self.folder), str(saved)]
        variables = self._variables(TOOLS["lmf"])
        result = subprocess.run(command, capture_output=True, text=True, env=variables)
        if result.returncode:
            return {"error": f"evaluate.py: {result.stderr.strip()[-300:]}"}
        return {"loss": float(result.stdout.split()[-1])}

    def help(self, tool: Tool) -> Run:
        """Measure the bare command line."""
        log = self.folder / "runs" / f"{tool.name}-help.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(tool.bin(self.folder) / tool.program), "--help"]
        done = watch.watch(command, self._variables(tool), tool.step, log)
        return {"status": done.status, "wall": done.wall, "cpu": done.cpu, "peak": done.peak}


def plan(results: Results, rounds: int, tools: Sequence[Tool], only: Sequence[str]) -> Iterator[tuple[Run, Tool]]:
    """Yield what is to be run and has not been; the tools take turns, in every other round backwards."""
    for number in range(1, rounds + 1):
        order = tools if number % 2 else tools[::-1]
        methods = ("full", "lora", "lisa", "lisa-embeddings", "help")
        for method, tool in ((m, t) for m in methods for t in order if m == "help" or m in t.methods):
            if only and tool.name not in only and f"{tool.name}:{method}" not in only:
                continue
            for packed in results.modes(tool, method, number) if method != "help" else [False]:
                what = {"tool": tool.name, "method": method, "packed": packed, "round": number}
                if not results.has(**what):
                    yield what, tool


def main() -> None:
    parser = argparse.ArgumentParser(description="LMF beside other tools that fine-tune.")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="what peers/install.py was given (.peers)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (3)")
    parser.add_argument("--only", nargs="*", default=[], help="such as trl or lmf:lora; all by default")
    parser.add_argument("--batch", type=int, default=4, help="records in an optimizer step (4)")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run (6)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each tool (all cores)")
    parser.add_argument("--results", type=Path, help="file of the runs (results/throughput-DATE.json)")
    parser.add_argument("--report", action="store_true", help="only make the tables and the plot, of the newest file")
    options = parser.parse_args()
    folder = options.peers.absolute()
    file = options.results or HERE / "results" / f"throughput-{date.today()}.json"
    if options.report and not options.results:
        file = max(file.parent.glob("throughput-*.json"), default=file)  # the newest
    settings = {"batch": options.batch, "steps": options.steps, "threads": options.threads}
    if not options.report:
        results = Results(file, settings)
        tools = [tool for tool in TOOLS.values() if (tool.bin(folder) / tool.program).exists()]
        print(f"measured: {', '.join(tool.name for tool in tools)}", flush=True)
        bench = Bench(folder, options.batch, options.steps, options.threads)
        results.found |= {"machine": watch.machine(), "lengths": bench.lengths}
        results.found["versions"] |= {t.name: watch.versions(t.python(folder), t.package) for t in tools}
        for what, tool in plan(results, options.rounds, tools, options.only):
            print(" ".join(f"{k} {v}" for k, v in what.items()), end=": ", flush=True)
            if what["method"] == "help":
                run = bench.help(tool)
            else:
                run = bench.train(tool, what["method"], what["packed"], what["round"] == 1)
            results.add(what | run)
            print(", ".join(f"{k} {v}" for k, v in run.items()), flush=True)
    report.main(file.absolute(), HERE / "README.md")


if __name__ == "__main__":
    main()
