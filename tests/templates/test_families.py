"""What the families claim, checked on tiny models that transformers builds."""

import lmf_templates
import pytest
from lmf import ModelSpec
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

FAMILIES = {family.name: family for family in lmf_templates.lmf_models()}
MODEL_TYPES = [(family, kind) for family in FAMILIES.values() for kind in sorted(family.model_types)]
LAYERS = 3

each_model_type = pytest.mark.parametrize(("family", "model_type"), MODEL_TYPES, ids=[kind for _, kind in MODEL_TYPES])


def tiny(model_type: str) -> PreTrainedModel:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config)


@each_model_type
def test_layers_leads_to_every_decoder_layer(family: ModelSpec, model_type: str) -> None:
    model = tiny(model_type)
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == model.config.num_hidden_layers == LAYERS


@each_model_type
def test_projections_are_the_linear_layers_of_every_decoder_layer(family: ModelSpec, model_type: str) -> None:
    for layer in tiny(model_type).get_submodule(family.layers).children():
        linear = {
            name.rpartition(".")[2] for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)
        }
        assert set(family.projections) == linear


@each_model_type
def test_projections_leave_the_rest_of_the_model_alone(family: ModelSpec, model_type: str) -> None:
    for name, _ in tiny(model_type).named_modules():
        if name.rpartition(".")[2] in family.projections:
            assert name.startswith(f"{family.layers}.")


def test_no_model_type_has_two_families() -> None:
    kinds = [kind for _, kind in MODEL_TYPES]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_template_of_a_family_exists(family: ModelSpec) -> None:
    assert family.template in {template.name for template in lmf_templates.lmf_templates()}
