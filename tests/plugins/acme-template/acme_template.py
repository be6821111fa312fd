"""The conversation format of the Acme models."""

import lmf


@lmf.hookimpl
def lmf_templates() -> list[lmf.Template]:
    return [
        lmf.Template(
            name="acme",
            source="https://acme.example/format",
            system="[system] {content}\n",
            user="[user] {content}\n",
            assistant="[acme] ",
            reply="{content}[end]",
            after_reply="\n",
            stop=("[end]",),
            tokens=("[end]",),
        )
    ]
