#!/usr/bin/env python3
"""Writes models.json: what sentence-transformers makes of model directories as they come.

    pip install torch "sentence-transformers==6.2.0"
    python3 tests/architectures/models.py > tests/architectures/models.json

Each model is saved by that library itself, or changed by hand into what earlier versions wrote,
loaded again and asked for the vectors of all texts, without any argument. Kept are the small
files; the weights follow from the names of the tensors (see reference.py).
"""
import json
import os
import shutil
import sys
import tempfile

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel,
)

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from reference import fill

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "##s", "One", "Two",
         "passage", "query", ":", "tw", "##o"]
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
PIECES += [(c, -6.0 - i / 100) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")]
PIECES += [("ha", -5.1), ("haha", -6.3), ("hahaha", -8.0), ("aa", -7.0), ("aaa", -8.2),
           ("aaaa", -8.9), ("aaaaaaaa", -10.1), ("▁ha", -6.1), ("▁a", -4.0), ("▁the", -4.0)]

# Each text is pieces, and how often each stands there.
BERT_TEXTS = [
    [["", 1]], [["one", 1]], [["one two three", 1]], [["One TWO Three fours", 1]],
    [["one [SEP] two [PAD] three", 1]], [["one two three fours ", 9]],
    [[" ", 300000], ["three", 1]], [["\u200b", 100000], ["two ", 1], ["one", 1]],
    [["\n \t", 100000], ["[SEP] four", 1]], [["x", 20000], [" one", 1]],
    [["x", 20000], ["\u200b", 20000], [" ", 70000], ["one two", 1]],
    [["one", 1], [" ", 200000], ["two", 1], ["\u200b", 200000], [" three", 1]],
    [["o\u0301ne two O\u0301ne One", 1]], [["one\u6f22two", 1]], [["one,two.", 3], [" ", 20000], ["three", 1]],
]
ROBERTA_TEXTS = [
    [["", 1]], [["ha", 1]], [["the <pad> pump", 1]], [["<pad>", 1]], [["<pad> <pad>the</s>ha<s>", 1]],
    [["a<pad>", 30]], [["ha", 20000]], [["a", 9000]], [["a", 9001]], [["a", 9003]], [["haa", 5000]],
    [["ha", 20000], [" the", 1]], [[" ", 100000], ["the", 1]], [["the ", 1], ["a", 90005]],
    [["the", 1], [" ", 90000], ["a", 40001]], [["ha a ", 40]],
]


def bert_tokenizer(lowercase, length):
    kind = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    kind.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    kind.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    kind.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=kind, model_max_length=length, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]")


def roberta_tokenizer(length):
    kind = Tokenizer(models.Unigram(PIECES, 3))
    kind.normalizer = normalizers.Sequence([normalizers.Replace("\n", " ")])
    kind.pre_tokenizer = pre_tokenizers.Metaspace()
    kind.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=kind, model_max_length=length, pad_token="<pad>", unk_token="<unk>",
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>")


def network(directory, family, lowercase, length):
    shape = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    if family == "bert":
        model = BertModel(BertConfig(
            **shape, vocab_size=len(WORDS), max_position_embeddings=20), add_pooling_layer=False)
        tokenizer = bert_tokenizer(lowercase, length)
    else:
        model = XLMRobertaModel(XLMRobertaConfig(
            **shape, vocab_size=len(PIECES), max_position_embeddings=42, pad_token_id=1,
            type_vocab_size=1), add_pooling_layer=False)
        tokenizer = roberta_tokenizer(length)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fill(key, tensor)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()
            if tensor.is_floating_point()}


def edit(path, change):
    with open(path) as file:
        content = json.load(file)
    change(content)
    with open(path, "w") as file:
        json.dump(content, file)


def save(directory, name, family="bert", pooling="mean", include_prompt=True, normalise=True,
         lowercase=True, length=12, do_lower_case=False, config=None, change=None, plain=False):
    with tempfile.TemporaryDirectory() as base:
        shapes = network(base, family, lowercase, length)
        if plain:
            shutil.copytree(base, directory, dirs_exist_ok=True)
        else:
            transformer = Transformer(base, do_lower_case=do_lower_case)
            modules = [transformer, Pooling(
                transformer.get_embedding_dimension(), pooling_mode=pooling,
                include_prompt=include_prompt)]
            if normalise:
                modules.append(Normalize())
            SentenceTransformer(modules=modules).save(directory)
    if config:
        edit(f"{directory}/config_sentence_transformers.json", lambda c: c.update(config))
    if change:
        change(directory)
    model = SentenceTransformer(directory, device="cpu")
    sources = BERT_TEXTS if family == "bert" else ROBERTA_TEXTS
    texts = ["".join(piece * count for piece, count in text) for text in sources]
    vectors = [model.encode(text) for text in texts]
    files = {}
    for root, _, names in os.walk(directory):
        for file in names:
            if file.endswith(".json"):
                path = os.path.join(root, file)
                with open(path) as opened:
                    files[os.path.relpath(path, directory)] = json.load(opened)
    unit = [vector / (vector ** 2).sum() ** 0.5 for vector in vectors]
    return {"name": name, "family": family, "max_tokens": min(
                model.max_seq_length, 20 if family == "bert" else 40),
            "files": files, "shapes": shapes,
            "vectors": [[round(float(x), 6) for x in vector] for vector in unit]}


def move_transformer(directory):
    os.makedirs(f"{directory}/0_Transformer")
    for file in os.listdir(directory):
        if file not in ("modules.json", "config_sentence_transformers.json", "1_Pooling",
                        "2_Normalize", "0_Transformer", "README.md"):
            shutil.move(f"{directory}/{file}", f"{directory}/0_Transformer/{file}")
    edit(f"{directory}/modules.json", lambda modules: modules[0].update(path="0_Transformer"))


def old_pooling(mode):
    def change(directory):
        with open(f"{directory}/1_Pooling/config.json", "w") as file:
            json.dump({"word_embedding_dimension": 8, f"pooling_mode_{mode}": True}, file)
    return change


def sentence_config(file, content):
    def change(directory):
        os.remove(f"{directory}/sentence_bert_config.json")
        with open(f"{directory}/{file}", "w") as opened:
            json.dump(content, opened)
    return change


def tokenizer_config(**members):
    return lambda directory: edit(
        f"{directory}/tokenizer_config.json", lambda config: config.update(members))


PROMPTS = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
MODELS = {
    "saved": dict(),
    "without-normalize": dict(normalise=False),
    "no-length": dict(length=int(1e30)),
    "plain": dict(plain=True, length=7),
    "old-mean": dict(change=old_pooling("mean_tokens")),
    "old-last": dict(change=old_pooling("lasttoken")),
    "list": dict(pooling=["mean", "max"]),
    "list-of-one": dict(pooling=["cls"]),
    "prompt": dict(config=PROMPTS),
    "prompt-empty": dict(config=dict(PROMPTS, default_prompt_name="document")),
    "prompt-merges": dict(config={"prompts": {"p": "tw"}, "default_prompt_name": "p"}),
    "truncated": dict(config={"truncate_dim": 3}),
    "truncated-prompt": dict(config=dict(PROMPTS, truncate_dim=5), normalise=False),
    "0-transformer": dict(change=move_transformer),
    "lower": dict(lowercase=False, do_lower_case=True),
    "cased": dict(lowercase=False),
    "tokenizers-case": dict(change=tokenizer_config(
        tokenizer_class="BertTokenizer", do_lower_case=False, tokenize_chinese_chars=False)),
    "tokenizers-accents": dict(change=tokenizer_config(
        tokenizer_class="BertTokenizerFast", do_lower_case=True, strip_accents=False)),
    "tokenizer-as-it-is": dict(change=tokenizer_config(do_lower_case=False)),
    "sentence-roberta": dict(change=sentence_config(
        "sentence_roberta_config.json", {"max_seq_length": 6, "do_lower_case": None})),
    "sentence-xlnet": dict(change=sentence_config(
        "sentence_xlnet_config.json", {"max_seq_length": None, "do_lower_case": False})),
    "roberta": dict(family="roberta", length=40),
    "roberta-short": dict(family="roberta", length=9),
    "roberta-prompt": dict(family="roberta", length=9, include_prompt=False, config={
        "prompts": {"q": "the "}, "default_prompt_name": "q"}),
}
for mode in ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]:
    MODELS[mode] = dict(pooling=mode)
for mode in ["mean", "cls", "max", "weightedmean", "lasttoken"]:
    MODELS[f"prompt-left-out-{mode}"] = dict(pooling=mode, include_prompt=False, config=PROMPTS)


def main():
    out = []
    for name, options in MODELS.items():
        with tempfile.TemporaryDirectory() as directory:
            out.append(save(directory, name, **options))
    # Most files are in most models.
    contents = []
    for model in out:
        for file, content in model["files"].items():
            if content not in contents:
                contents.append(content)
            model["files"][file] = contents.index(content)
    shapes = {model["family"]: model.pop("shapes") for model in out}
    texts = {"bert": BERT_TEXTS, "roberta": ROBERTA_TEXTS}
    print(json.dumps({"texts": texts, "shapes": shapes, "contents": contents, "models": out}))


if __name__ == "__main__":
    main()
