"""A small causal language model as a teacher, and the text it writes: stories260K where it lies beside the repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

_REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260k_lm"
_BEGIN = 1
_MADE_SCALE = 12.0
"""How much more sure of itself a network of random weights is made, so that its rows are about as peaked as those of stories260K."""


@dataclass(frozen=True, kw_only=True)
class StoryTeacher:
    """A frozen model.

    Attributes:
        origin: where it is from, for the report.
    """

    model: LlamaForCausalLM
    origin: str

    @property
    def num_classes(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.model.config.vocab_size)

    @torch.inference_mode()
    def logits(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return float32 [sequences, tokens, classes]; those at a position are of the token behind it."""
        found: torch.Tensor = self.model(torch.from_numpy(tokens)).logits
        return found

    @torch.inference_mode()
    def write(self, *, num_sequences: int, num_tokens: int, seed: int) -> npt.NDArray[np.int64]:
        """Return int64 [sequences, tokens], text drawn from the model token by token, each sequence from the beginning."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.full((num_sequences, 1), _BEGIN)
        newest, past = tokens, None
        for _ in range(num_tokens - 1):
            output = self.model(newest, past_key_values=past, use_cache=True)
            past = output.past_key_values
            newest = torch.multinomial(output.logits[:, -1].softmax(dim=1), 1, generator=generator)
            tokens = torch.cat([tokens, newest], dim=1)
        return tokens.numpy()


def make_llama(
    *, num_classes: int, width: int, hidden: int, layers: int, heads: int, kv_heads: int, length: int, seed: int
) -> LlamaForCausalLM:
    """Return a model of random weights."""
    config = LlamaConfig(
        vocab_size=num_classes,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_teacher() -> StoryTeacher:
    """Return stories260K, or, where it is not there, a model of random weights."""
    if not (_REAL / "config.json").exists():
        model = make_llama(num_classes=512, width=64, hidden=172, layers=2, heads=8, kv_heads=4, length=512, seed=0).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(_MADE_SCALE)
        return StoryTeacher(model=model, origin="MADE (the real one is not here): a Llama of random weights, 512 tokens")
    sizes = json.loads((_REAL / "config.json").read_text())
    model = make_llama(
        num_classes=sizes["vocab"],
        width=sizes["dim"],
        hidden=sizes["hidden"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        length=sizes["seq"],
        seed=0,
    ).eval()
    stored = load_file(_REAL / "stories260K.safetensors")
    model.load_state_dict(_renamed(stored, heads=sizes["heads"], kv_heads=sizes["kv_heads"]))
    return StoryTeacher(model=model, origin="real: stories260K, a Llama of 260,000 parameters over 512 tokens")


def _renamed(stored: dict[str, torch.Tensor], *, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """Return tensors under the names of transformers, which turns halves of a head where llama2.c turns neighbours."""

    def halves(weight: torch.Tensor, *, num: int) -> torch.Tensor:
        rows, width = weight.shape
        return weight.view(num, rows // num // 2, 2, width).transpose(1, 2).reshape(rows, width)

    names = {
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
        "att": "input_layernorm",
        "ffn": "post_attention_layernorm",
    }
    tensors = {
        "model.embed_tokens.weight": stored["emb"],
        "model.norm.weight": stored["norm"],
        "lm_head.weight": stored["out"],
    }
    for layer in range(len(stored["wq"])):
        for name, target in names.items():
            tensors[f"model.layers.{layer}.{target}.weight"] = stored[name][layer]
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = halves(stored["wq"][layer], num=heads)
        tensors[f"model.layers.{layer}.self_attn.k_proj.weight"] = halves(stored["wk"][layer], num=kv_heads)
    return tensors
