"""A template under a name that another package has, and one under a name of its own."""

from dataclasses import replace

import lmf

CHATML = lmf.Template(
    name="chatml",
    source="https://acme.example/chatml",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    reply="{content}<|im_end|>",
    stop=("<|im_end|>",),
)


@lmf.hookimpl
def lmf_templates() -> list[lmf.Template]:
    return [CHATML, replace(CHATML, name="acme-chatml")]
