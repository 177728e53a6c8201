"""Low-rank fine-tuning: the encoder's attention projections stay as they are, and small updates of them are trained.

    W x  becomes  W x + B A x,   A [rank, in] drawn, B [out, rank] zero at first

The adapters are those of the library peft, with its scaling lora_alpha / rank = 1. They live while a federation trains:
a checkpoint holds plain weights, into which they have been merged, and nothing that reads one knows of them.

References:
    Hu et al. (2021), LoRA: low-rank adaptation of large language models, section 4.1.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers import GPT2Model

from metarec_shared.errors import SettingsError
from metarec_shared.model import BertRecommender

_BASE, _DOWN, _UP = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"
_BERT_PROJECTIONS = r".*attention\.(self\.(query|key|value)|output\.dense)"
_GPT2_PROJECTIONS = r".*attn\.c_(attn|proj)"
_TRANSPOSED = (".c_attn", ".c_proj")
"""Layers of GPT-2 that keep their weights as [in, out]."""


def add_adapters(model: BertRecommender, rank: int) -> None:
    """Give every attention projection of the encoder an adapter; draws from torch's global generator.

    Raises:
        SettingsError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError("federation.lora-rank needs peft: pip install 'metarec[peft]'") from error
    causal = isinstance(model.encoder, GPT2Model)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=causal,
        target_modules=_GPT2_PROJECTIONS if causal else _BERT_PROJECTIONS,
    )
    inject_adapter_in_model(config, model.encoder)
    model.has_adapters = True


def is_frozen(name: str) -> bool:
    """Return whether a parameter of a model with adapters stays as it is: the encoder's own."""
    return name.startswith("encoder.") and ".lora_" not in name


def adapted(plain: Mapping[str, Tensor], model: BertRecommender) -> dict[str, Tensor]:
    """Return plain weights under the names they have in a model with adapters, with that model's own adapters."""
    return {
        name: value.detach() if ".lora_" in name else plain[name.replace(_BASE, "")]
        for name, value in model.named_parameters()
    }


def merged(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return plain weights, W + B A, of parameters with adapters; those without pass through."""
    plain = {}
    for name, value in parameters.items():
        layer, base, which = name.rpartition(_BASE)
        if base and which == ".weight" and layer + _DOWN in parameters:
            update = parameters[layer + _UP] @ parameters[layer + _DOWN]
            value = value + (update.T if layer.endswith(_TRANSPOSED) else update)
        if ".lora_" not in name:
            plain[name.replace(_BASE, "")] = value
    return plain
