"""``lmf generate``: replies of a model to one message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from lmf import Message, Plugins, Sampling
from lmf.config import option

from . import flags
from .learn import quiet

if TYPE_CHECKING:
    from lmf.generate.engine import Engine
    from lmf.generate.opening import Chatter

LOOKUP = "lookup"  # the drafter that needs no model
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Output folder of a run, or anything that --model takes.")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to say to it.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What a model is asked."""

    system: str | None = option(None, "A system message.")
    prefill: str | None = option(None, "How the reply begins; the model goes on from there.")
    n: int = option(1, "Replies to write.", min=1, max=32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """How a model is opened."""

    template: str = option("auto", "A template by name, or a Jinja file; auto is the model's own.")
    context: int | None = option(None, "Most tokens of a prompt and its reply; what the model reads by default.", min=2)
    draft_model: str | None = option(
        None, "A smaller model with the same tokens that guesses ahead, or lookup, to guess what the text had before."
    )
    draft_tokens: int = option(5, "Tokens that are guessed at a time.", min=1, max=64)


def generate(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf generate``."""

    def run(model: str, prompt: str, asking: Asking, sampling: Sampling, opening: Opening, _: Any) -> None:
        check(plugins, model, opening)
        chatter, engine = start(plugins, model, opening)
        roles = [("system", asking.system), ("user", prompt)]
        said = [Message(role, text) for role, text in roles if text is not None]  # type: ignore[arg-type]
        prefill = asking.prefill or ""
        ids = chatter.ids(said, prefill)
        alone = asking.n == 1  # then it is shown while it is written
        show = write if alone else None
        replies = engine.submit(ids, sampling, n=asking.n, show=show, continues=chatter.goes_on(prefill))
        if alone:
            write(prefill)
        engine.finish(replies)
        for number, reply in enumerate(replies, 1):
            print("" if alone else f"--- {number}\n{prefill}{reply.text}")

    kinds = {"Question": Asking, "Reply": Sampling, "Model": Opening}
    return flags.command(kinds, run, arguments={"model": Model, "prompt": Prompt})


def write(text: str) -> None:
    """Show a part of a reply at once."""
    print(text, end="", flush=True)


def check(plugins: Plugins, model: str, opening: Opening) -> None:
    """Refuse what is misspelt before torch is imported.

    Raises:
        LmfError: There is no such model or template.
    """
    from lmf.runs import RUN_FILE
    from lmf.sources import find_model
    from lmf.templates.choose import named_template

    named_template(opening.template, plugins)
    for name in filter(None, (model, opening.draft_model)):
        if not (Path(name) / RUN_FILE).exists() and not (name == LOOKUP == opening.draft_model):
            find_model(name, plugins)


def start(plugins: Plugins, model: str, opening: Opening) -> tuple[Chatter, Engine]:
    """Open a model, and return it with what writes its replies.

    Raises:
        LmfError: It cannot be opened so.
    """
    quiet()
    from lmf.generate.caches import runner_for
    from lmf.generate.drafts import Lookup
    from lmf.generate.opening import drafts_of, open_model

    chatter = open_model(model, plugins, opening.template)
    options: dict[str, Any] = {"guesses": opening.draft_tokens}
    if opening.draft_model == LOOKUP:
        options["draft"] = lambda sampling, chance: Lookup()
    elif opening.draft_model:
        options["draft"] = drafts_of(chatter, open_model(opening.draft_model, plugins))
    return chatter, chatter.engine(runner_for(chatter.model), context=opening.context, **options)
