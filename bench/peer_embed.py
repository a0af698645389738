#!/usr/bin/env python3
"""What a user would run instead of Vecmill's embedder, on the same texts and the same machine.

Parts:
  roofline     the machine's ceilings in matrix products, float32 and bfloat16, by PyTorch
  onnxruntime  ONNX Runtime, float32, graph fused for transformers, batches of like length;
               the best of batch sizes 1, 8 and 32
  torch        sentence-transformers on PyTorch, float32 and bfloat16, batches of 32
  short        ONNX Runtime, one short text at a time, warm

Tokenisation is included in all but the first. Prints one JSON object a line.

    python peer_embed.py --model DIR --onnx FILE --corpus FILE.jsonl --texts 1024
"""
import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
from tokenizers import Tokenizer

BATCH_SIZES = (1, 8, 32)
TORCH_BATCH_SIZE = 32
WARM_UP_TEXTS = 64
# Rows and columns of a product like those of the default model's widest layer.
ROOFLINE_SHAPE = (3072, 384, 1536)
ROOFLINE_RUNS = 30


def main():
    args = arguments()
    parts = {"roofline": roofline, "onnxruntime": onnxruntime, "torch": torch_peers, "short": short}
    for part in args.only.split(","):
        parts[part](args)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the model's directory")
    parser.add_argument("--onnx", required=True, help="the exported graph; made if it is not there")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="roofline,onnxruntime,torch,short")
    parser.add_argument("--short-text", default="", help="the text of the part `short`")
    parser.add_argument("--short-runs", type=int, default=500)
    return parser.parse_args()


def say(**figures):
    print(json.dumps(figures), flush=True)


def texts_of(args):
    with open(args.corpus, encoding="utf-8") as lines:
        return [json.loads(line)["props"]["text"] for _, line in zip(range(args.texts), lines)]


def tokenizer_of(args):
    tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
    tokenizer.enable_truncation(args.max_tokens)
    tokenizer.no_padding()
    return tokenizer


def say_rate(peer, args, seconds, **more):
    """The median of the rounds, as rates."""
    texts = texts_of(args)
    tokens = sum(len(encoding.ids) for encoding in tokenizer_of(args).encode_batch(texts))
    median = statistics.median(seconds)
    say(
        peer=peer, texts=len(texts), tokens=tokens, seconds=round(median, 3),
        texts_per_s=round(len(texts) / median, 1), tokens_per_s=round(tokens / median), **more,
    )


def roofline(args):
    import torch

    torch.set_num_threads(args.threads)
    rows, inner, columns = ROOFLINE_SHAPE
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        best = float("inf")
        for _ in range(ROOFLINE_RUNS):
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best = min(best, time.perf_counter() - start)
        say(peer=f"ceiling-{name}", gflop_per_s=round(2 * rows * inner * columns / best / 1e9))


def export(args):
    """Makes the ONNX graph of the model, with the attention and layer norms fused."""
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model, attn_implementation="eager").eval()

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    ids = torch.ones(2, 16, dtype=torch.long)
    inputs, output = ["input_ids", "attention_mask", "token_type_ids"], "last_hidden_state"
    Path(args.onnx).parent.mkdir(parents=True, exist_ok=True)
    raw = args.onnx + ".raw"
    torch.onnx.export(
        Encoder(), (ids, ids, torch.zeros_like(ids)), raw, input_names=inputs,
        output_names=[output], opset_version=17, dynamo=False,
        dynamic_axes={name: {0: "batch", 1: "length"} for name in [*inputs, output]},
    )
    fused = optimizer.optimize_model(
        raw, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    fused.save_model_to_file(args.onnx)
    os.remove(raw)


class OnnxRuntime:
    """A session, and what stands around it: padding, mean pooling, length 1."""

    def __init__(self, args):
        import onnxruntime

        if not os.path.exists(args.onnx):
            export(args)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(
            args.onnx, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [node.name for node in self.session.get_inputs()]

    def embed(self, batch):
        ids = np.zeros((len(batch), max(len(encoding.ids) for encoding in batch)), "i8")
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(batch):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self.session.run(None, {name: feed[name] for name in self.inputs})[0]
        vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def onnxruntime(args):
    texts, tokenizer, runtime = texts_of(args), tokenizer_of(args), OnnxRuntime(args)

    def seconds(batch_size):
        start = time.perf_counter()
        encodings = sorted(tokenizer.encode_batch(texts), key=lambda encoding: -len(encoding.ids))
        for first in range(0, len(encodings), batch_size):
            runtime.embed(encodings[first : first + batch_size])
        return time.perf_counter() - start

    runtime.embed(tokenizer.encode_batch(texts[:WARM_UP_TEXTS]))
    rounds = {size: [seconds(size) for _ in range(args.rounds)] for size in BATCH_SIZES}
    best = min(BATCH_SIZES, key=lambda size: statistics.median(rounds[size]))
    say_rate("onnxruntime-float32", args, rounds[best], batch=best)


def torch_peers(args):
    import torch
    from sentence_transformers import SentenceTransformer

    texts, reference = texts_of(args), None
    torch.set_num_threads(args.threads)
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        model = SentenceTransformer(args.model, device="cpu", model_kwargs={"dtype": dtype})
        model.max_seq_length = args.max_tokens

        def embed(texts):
            return model.encode(
                texts, batch_size=TORCH_BATCH_SIZE, normalize_embeddings=True,
                show_progress_bar=False,
            )

        embed(texts[:WARM_UP_TEXTS])
        seconds = []
        for _ in range(max(1, args.rounds - 1)):
            start = time.perf_counter()
            vectors = embed(texts).astype("f4")
            seconds.append(time.perf_counter() - start)
        if reference is None:
            reference = vectors
        min_cosine = round(float((reference * vectors).sum(1).min()), 6)
        say_rate(f"sentence-transformers-{name}", args, seconds, min_cosine=min_cosine)


def short(args):
    tokenizer, runtime = tokenizer_of(args), OnnxRuntime(args)
    times = []
    for run in range(args.short_runs + WARM_UP_TEXTS):
        start = time.perf_counter()
        encoding = tokenizer.encode(args.short_text)
        runtime.embed([encoding])
        if run >= WARM_UP_TEXTS:
            times.append((time.perf_counter() - start) * 1000)
    times.sort()
    say(
        peer="onnxruntime-short", tokens=len(encoding.ids), runs=len(times),
        p50_ms=round(times[len(times) // 2], 3), p99_ms=round(times[len(times) * 99 // 100], 3),
    )


if __name__ == "__main__":
    main()
