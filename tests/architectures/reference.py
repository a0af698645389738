#!/usr/bin/env python3
"""Writes reference.json: what transformers computes for tiny encoders with made-up weights.

    pip install torch transformers
    python3 tests/architectures/reference.py > tests/architectures/reference.json

The weights follow from the names of the tensors alone (see `fill`), so that none are kept.
"""
import json

import torch
from transformers import (
    BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel,
    XLMRobertaConfig, XLMRobertaModel,
)

MASK = (1 << 64) - 1
SHAPE = dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
             intermediate_size=40, layer_norm_eps=1e-5)
ROBERTA = dict(SHAPE, max_position_embeddings=44, pad_token_id=1, type_vocab_size=1)
MODELS = {
    "bert": (BertModel, BertConfig(**SHAPE, max_position_embeddings=42)),
    "bert-relu": (BertModel, BertConfig(**SHAPE, max_position_embeddings=42, hidden_act="relu")),
    "bert-tanh": (BertModel, BertConfig(
        **SHAPE, max_position_embeddings=42, hidden_act="gelu_new")),
    "roberta": (RobertaModel, RobertaConfig(**ROBERTA)),
    "roberta-silu": (RobertaModel, RobertaConfig(**ROBERTA, hidden_act="silu")),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**ROBERTA)),
    "distilbert": (DistilBertModel, DistilBertConfig(
        vocab_size=50, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=42)),
}


def split_mix(state):
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def fnv(name):
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def fill(name, tensor):
    """Values in -0.5..0.5 without a pattern; those of norms are near 1."""
    seed = fnv(name)
    values = [split_mix((seed + i) & MASK) / 2.0 ** 64 - 0.5 for i in range(tensor.numel())]
    values = torch.tensor([float(torch.tensor(v, dtype=torch.float32)) for v in values])
    is_norm = "norm" in name.lower() and name.endswith("weight")
    tensor.copy_((values + 1 if is_norm else values).reshape(tensor.shape))


def ids(seed, length):
    return [5 + split_mix(seed * 1000 + i) % 45 for i in range(length)]


def main():
    texts = [ids(seed, length) for seed, length in enumerate([1, 2, 7, 13, 40, 16])]
    out = {"texts": texts, "models": {}}
    for name, (kind, config) in MODELS.items():
        model = kind(config).eval()
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    fill(key, tensor)
            vectors = []
            for text in texts:
                hidden = model(input_ids=torch.tensor([text])).last_hidden_state[0]
                vector = hidden.mean(0)
                vectors.append([round(float(x), 7) for x in vector / vector.norm()])
        shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()
                  if tensor.is_floating_point() and "pooler" not in key}
        out["models"][name] = {"config": config.to_dict(), "shapes": shapes, "vectors": vectors}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
