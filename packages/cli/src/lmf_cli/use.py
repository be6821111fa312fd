"""``lmf generate``: one reply of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from lmf import ConfigError, Plugins

from .learn import quiet


def generate(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf generate``."""

    def run(
        model: Annotated[str, typer.Argument(help="Output folder of a run, or anything that --model takes.")],
        prompt: Annotated[str, typer.Argument(help="What to say to it.")],
        system: Annotated[str | None, typer.Option(help="A system message.")] = None,
        prefill: Annotated[str, typer.Option(help="How the reply begins; the model goes on from there.")] = "",
        max_new_tokens: Annotated[int, typer.Option(help="Longest reply in tokens.")] = 256,
        temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")] = 0.0,
        template: Annotated[
            str, typer.Option(help="A template by name, or a Jinja file; auto is the model's own.")
        ] = "auto",
    ) -> None:
        from lmf.runs import RUN_FILE
        from lmf.sources import find_model
        from lmf.templates.choose import named_template

        if max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {max_new_tokens}; it must be at least 1.")
        if not 0 <= temperature <= 10:
            raise ConfigError(f"--temperature is {temperature}; it must be from 0 to 10.")
        named_template(template, plugins)
        if not (Path(model) / RUN_FILE).exists():
            find_model(model, plugins)
        from lmf.generate import open_model, reply  # torch is imported here, after what is misspelt was found

        quiet()
        chatter = open_model(model, plugins, template)
        print(prefill, end="", flush=True)
        reply(
            chatter.model,
            chatter.tokenizer,
            chatter.encoder,
            prompt,
            system=system,
            prefill=prefill,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stream=lambda text: print(text, end="", flush=True),
        )
        print()

    return run
