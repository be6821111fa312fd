"""``lmf runs``: what was run, and how it went."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from lmf import LmfError, Plugins
from lmf.runs import find_runs, read_log, read_run

from .groups import application
from .listings import Json, table

Folder = Annotated[Path, typer.Argument(help="Output folder of a run.")]
Curve = Sequence[tuple[int, float]]  # (optimizer step, loss in nats per token)

app = application(no_args_is_help=True)


def run_group(_: Plugins) -> typer.Typer:
    """Return the commands ``lmf runs ...``, which need no plugins."""
    return app


@app.command("list")
def list_runs(folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path(), json: Json = False) -> None:
    """List the runs in and under a folder."""
    found = [{"folder": str(path), **_summary(path)} for path in find_runs(folder)]
    if json:
        print(jsonlib.dumps(found, indent=2))
    elif found:
        table([name.replace("_", " ") for name in found[0]], [list(map(_shown, run.values())) for run in found])
    else:
        raise LmfError(f"There is no run of lmf in {folder.absolute()}.")


@app.command()
def show(folder: Folder, json: Json = False) -> None:
    """Show the settings, versions and result of a run."""
    run = read_run(folder)
    if json:
        print(jsonlib.dumps(run, indent=2))
        return
    parts = {
        "result": {"status": run.get("status"), "steps": run.get("steps"), **(run.get("best") or {})},
        "settings": {k: v for k, v in run["settings"].items() if v not in (None, [], False)},
        "plugins": run.get("plugins") or {},
        "versions": run.get("versions") or {},
    }
    for title, part in parts.items():
        table([title, ""], [[key, _shown(value)] for key, value in part.items()])
        print()


@app.command()
def plot(
    folder: Folder, file: Annotated[Path | None, typer.Option(help="PNG file; loss.png in the run's folder.")] = None
) -> None:
    """Draw the loss of a run, in the terminal and as a PNG file."""
    read_run(folder)
    log = read_log(folder)
    train = [(e["step"], e["loss"]) for e in log if "loss" in e]
    held_out = [(e["step"], e["eval_loss"]) for e in log if "eval_loss" in e]
    if not train:
        raise LmfError(f"{folder} has no logged steps to draw.")
    print("\n".join(sketch(train)))
    if held_out:
        print("held-out loss " + ", ".join(f"{loss:.4f} at step {step}" for step, loss in (held_out[0], held_out[-1])))
    file = file or folder / "loss.png"
    draw(file, train, held_out)
    print(f"saved {file}")


def sketch(curve: Curve, width: int = 60, height: int = 10) -> Iterator[str]:
    """Yield the lines of a loss curve drawn with characters; a column is the mean of the steps that it stands for."""
    steps = -(-len(curve) // width)
    columns = [fmean(loss for _, loss in curve[i : i + steps]) for i in range(0, len(curve), steps)]
    low, high = min(columns), max(columns)
    rows = [round((loss - low) / ((high - low) or 1) * (height - 1)) for loss in columns]
    for row in reversed(range(height)):
        level = low + (high - low) * row / (height - 1)
        yield f"{level:9.4f} |{''.join('*' if each == row else ' ' for each in rows)}".rstrip()
    yield f"     loss +{'-' * len(rows)}  steps {curve[0][0]} to {curve[-1][0]}"


def draw(file: Path, train: Curve, held_out: Curve) -> None:
    """Write loss curves as a PNG file.

    Raises:
        LmfError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LmfError("The PNG file needs matplotlib: pip install lmf-cli[plot]") from None
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), label="training", linewidth=1)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), label="held out", marker="o")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.legend()
    try:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise LmfError(f"--file {file} cannot be written: {error.strerror}.") from None


def _summary(folder: Path) -> dict[str, Any]:
    try:
        run = read_run(folder)
    except LmfError:
        run = {"status": "damaged", "settings": {}}
    names = {name: str(run["settings"].get(name, "-")).rpartition(":")[2] for name in ("objective", "method")}
    return {
        **names,
        "model": run["settings"].get("model"),
        "status": run.get("status"),
        "steps": run.get("steps"),
        "held_out_loss": (run.get("best") or {}).get("loss"),
        "updated": run.get("updated"),
    }


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
