"""``lmf runs``: what was run, and how it went."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from lmf import LmfError
from lmf.runs import find_runs, read_log, read_run

from .listings import Json, _table

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show finished and interrupted runs.")
Folder = Annotated[Path, typer.Argument(help="Output folder of a run.")]


@app.command("list")
def list_runs(folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path(), json: Json = False) -> None:
    """List the runs in and under a folder."""
    found = [(path, read_run(path)) for path in find_runs(folder)]
    if json:
        print(jsonlib.dumps([{"folder": str(path), **_summary(run)} for path, run in found], indent=2))
        return
    if not found:
        raise LmfError(f"There is no run of lmf in {folder.absolute()}.")
    rows = [[str(path), *(str(v) for v in _summary(run).values())] for path, run in found]
    _table(["folder", *_summary(found[0][1])], rows)


@app.command()
def show(folder: Folder, json: Json = False) -> None:
    """Show the settings, versions and result of a run."""
    run = read_run(folder)
    if json:
        print(jsonlib.dumps(run, indent=2))
        return
    result = {"status": run["status"], "steps": run["steps"], **(run["best"] or {})}
    settings = {k: v for k, v in run["settings"].items() if v not in (None, [], False)}
    for title, part in (
        ("result", result),
        ("settings", settings),
        ("plugins", run["plugins"]),
        ("versions", run["versions"]),
    ):
        _table([title, ""], [[key, str(value)] for key, value in part.items()])
        print()


@app.command()
def plot(
    folder: Folder, file: Annotated[Path | None, typer.Option(help="PNG file; loss.png in the run's folder.")] = None
) -> None:
    """Draw the loss of a run, in the terminal and as a PNG file."""
    log = read_log(folder)
    train = [(e["step"], e["loss"]) for e in log if "loss" in e]
    held_out = [(e["step"], e["eval_loss"]) for e in log if "eval_loss" in e]
    if not train:
        raise LmfError(f"{folder} has no logged steps to draw.")
    try:
        import matplotlib
        import plotext
    except ImportError as error:
        raise LmfError(f"lmf runs plot needs {error.name}: pip install lmf-cli[plot]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    file = file or folder / "loss.png"
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*zip(*train, strict=True), label="training", linewidth=1)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), label="held out", marker="o")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=str(folder))
    axes.legend()
    figure.savefig(file, dpi=150, bbox_inches="tight")
    plotext.plot(*zip(*train, strict=True), label="training")
    if held_out:
        plotext.plot(*zip(*held_out, strict=True), label="held out", marker="o")
    plotext.plotsize(80, 20)
    plotext.xlabel("optimizer step")
    plotext.theme("clear")
    plotext.show()
    print(f"saved {file}")


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    settings = run["settings"]
    best = run.get("best") or {}
    return {
        "objective": settings["objective"].rpartition(":")[2],
        "method": settings["method"].rpartition(":")[2],
        "model": settings["model"],
        "status": run["status"],
        "steps": run["steps"],
        "held-out loss": round(best["loss"], 4) if best else "-",
        "updated": run["updated"],
    }
