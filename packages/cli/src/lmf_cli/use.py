"""``lmf generate``: replies of a model to one message, or to each record of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from lmf import ConfigError, Message, Opening, Plugins, Sampling

from . import flags
from .batch import Asking, Filing, Order, answer_file

if TYPE_CHECKING:
    from lmf.generate.engine import Reply

Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to say to it.")]
In = Annotated[
    str | None, typer.Option("--in", metavar="DATA", help="Say what each record asks: a file, folder or data set.")
]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH", help="File for the replies, a line of JSON each.")]


def generate(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf generate``."""

    def run(
        model: flags.Model,
        question: Asking,
        reply: Sampling,
        opening: Opening,
        file: Filing,
        prompt: Prompt = None,
        source: In = None,
        out: Out = None,
    ) -> None:
        if (prompt is None) == (source is None) or (source is None) != (out is None):
            raise ConfigError("Give a PROMPT, or --in with the prompts and --out for the replies.")
        if prompt is None:
            answer_file(plugins, str(source), str(out), Order(model, question, reply, opening, file))
        elif file != Filing():
            raise ConfigError("--logprobs and --force are about the file of --out; a single reply is printed.")
        else:
            answer(plugins, model, prompt, question, reply, opening)

    return run


def answer(plugins: Plugins, model: str, prompt: str, asking: Asking, sampling: Sampling, opening: Opening) -> None:
    """Print the replies to one message; a single one while it is written."""
    from lmf.plan import check_opening

    check_opening(model, opening, plugins)
    from lmf.generate.opening import start  # torch is imported here

    chatter, engine = start(model, plugins, opening)
    roles = [("system", asking.system), ("user", prompt)]
    said = [Message(role, text) for role, text in roles if text is not None]  # type: ignore[arg-type]
    prefill = asking.prefill or ""
    ids = chatter.ids(said, prefill)
    alone = asking.n == 1
    replies = engine.submit(
        ids, sampling, n=asking.n, show=write if alone else None, continues=chatter.goes_on(prefill)
    )
    if alone:
        print(prefill, end="", flush=True)
    engine.finish(replies)
    for number, reply in enumerate(replies, 1):
        print("" if alone else f"--- {number}\n{prefill}{reply.text}")


def write(_: Reply, text: str) -> None:
    """Show a part of a reply at once."""
    print(text, end="", flush=True)
