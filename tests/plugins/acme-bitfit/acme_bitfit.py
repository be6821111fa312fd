"""BitFit (https://arxiv.org/abs/2106.10199): train the biases, freeze everything else."""

from collections.abc import Sequence
from dataclasses import dataclass

import lmf


@dataclass(frozen=True, kw_only=True)
class BitFitOptions:
    """What is trained."""

    norms: bool = lmf.option(True, "Train the scales of the norms too; models like Llama have no biases.")


class BitFit(lmf.Tuner):
    """Trains every parameter whose name ends like a bias."""

    def __init__(self, options: BitFitOptions, spec: lmf.ModelSpec):
        self.endings = ("bias", "norm.weight") if options.norms else ("bias",)

    def prepare(self, model, new_tokens: Sequence[int] = ()):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(self.endings)
        if new_tokens:
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(True)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise lmf.ConfigError("bitfit: the model has no biases, so --no-norms leaves nothing to train.")
        return model


@lmf.hookimpl
def lmf_methods() -> list[lmf.TuningMethod]:
    return [lmf.TuningMethod(name="bitfit", summary="Train only the biases.", options=BitFitOptions, build=BitFit)]
