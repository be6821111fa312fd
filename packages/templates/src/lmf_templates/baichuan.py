"""Baichuan Chat: two reserved tokens say who speaks.

The models are taught to end a reply with the token that ends a text, but are shown earlier replies
without it. Here it stands behind every reply: what is learned and what is read are the same text.
"""

from dataclasses import replace

from lmf import Template

_BAICHUAN = Template(
    name="baichuan",
    source="https://huggingface.co/baichuan-inc/Baichuan-13B-Chat/blob/main/modeling_baichuan.py",
    system="{content}",
    user="<reserved_102>{content}",
    assistant="<reserved_103>",
    reply="{content}{eos}",
    stop=("{eos}",),
    tokens=("<reserved_102>", "<reserved_103>"),
)

TEMPLATES = [
    _BAICHUAN,
    replace(
        _BAICHUAN,
        name="baichuan2",
        source="https://huggingface.co/baichuan-inc/Baichuan2-7B-Chat/blob/main/generation_utils.py",
        user="<reserved_106>{content}",
        assistant="<reserved_107>",
        tokens=("<reserved_106>", "<reserved_107>"),
    ),
]
