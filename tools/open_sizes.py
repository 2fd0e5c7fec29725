"""Transformers as they are exported: what can go with batch and tokens, or height and width, open, beside fixed sizes.

    python -m tools.open_sizes --out rows.jsonl [--only NAME ...] [--exporters torchscript dynamo] [--hold]

Small networks of `transformers` configs with random weights (pip install transformers); `--only timm:NAME` names one of timm's
(pip install timm), at 64 x 64 pixels. A row has the share of the MACs that
can go at most while every layer stays, at the sizes of the fixed export; `--hold` cuts at random and compares with the masked
original at two sizes of every open dim, as tests/oracle.py does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.run.analysis import Analysis, analyse_model

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_SHARED = {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_IMAGE = {**{k: v for k, v in _SMALL.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
_PAIR = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
_SPEECH = {
    **_SMALL, "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
# name: (network, config, options, kind of inputs)
NETWORKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**_SMALL, "embedding_size": 16}, "text"),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**_PAIR, "max_position_embeddings": 64}, "pair"),
    "bert": ("BertForSequenceClassification", "BertConfig", _SMALL, "text"),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "next"),
    "clip vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**_IMAGE, "projection_dim": 16}, "image"),
    "deberta": (
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        {**_SMALL, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
        "text",
    ),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _IMAGE, "image"),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, "text",
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**_SMALL, "embedding_size": 16}, "text"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_SHARED, "head_dim": 8}, "next"),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "next",
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL, "next"),
    "hubert": ("HubertForCTC", "HubertConfig", _SPEECH, "sound"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SHARED, "next"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _SHARED, "next"),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", _SMALL, "text"),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
         "max_position_embeddings": 64, "word_embed_proj_dim": 32}, "next",
    ),
    "phi": ("PhiForCausalLM", "PhiConfig", {**_SHARED, "num_key_value_heads": 4}, "next"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _SHARED, "next"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_SHARED, "head_dim": 8}, "next"),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**_SMALL, "pad_token_id": 0}, "text"),
    "segformer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32},
        "map",
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "pair",
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE, "image"),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _SPEECH, "sound"),
}  # fmt: skip
Open = list[dict[int, str]]
Kind = tuple[Callable[..., Any], tuple[torch.Tensor, ...], list[str], Open]


class Called(torch.nn.Module):
    """A network behind arguments in a row."""

    def __init__(self, network: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *given: torch.Tensor) -> Any:
        return self.call(self.network, *given)


def _kind(kind: str) -> Kind:
    """Return how a network is called, with what, the names of its inputs, and which dims are open."""
    tokens, places = {0: "N", 1: "T"}, {0: "N", 2: "H", 3: "W"}
    ids, other = (torch.randint(2, 60, (1, n)) for n in (16, 12))
    if kind in ("text", "next"):
        more = {"use_cache": False} if kind == "next" else {}
        call = lambda m, i, a: m(input_ids=i, attention_mask=a, **more).logits  # noqa: E731
        return call, (ids, torch.ones_like(ids)), ["input_ids", "attention_mask"], [tokens, tokens]
    if kind == "pair":
        call = lambda m, i, d: m(input_ids=i, decoder_input_ids=d, use_cache=False).logits  # noqa: E731
        return call, (ids, other), ["ids", "decoded"], [tokens, {0: "N", 1: "D"}]
    if kind == "sound":
        return lambda m, x: m(x).logits, (torch.randn(1, 1600),), ["x"], [{0: "N", 1: "S"}]
    if kind == "timm":
        return lambda m, x: m(x), (torch.randn(1, 3, 64, 64),), ["x"], [places]
    if kind == "map":
        return lambda m, x: m(x).logits, (torch.randn(1, 3, 64, 64),), ["x"], [places]
    call = lambda m, x: m(x, interpolate_pos_encoding=True)[0]  # noqa: E731
    return call, (torch.randn(1, 3, 32, 32),), ["x"], [places]


def export(name: str, exporter: str, is_open: bool, path: Path) -> None:
    """Write a network as an exporter does."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm

        made = timm.create_model(name.removeprefix("timm:")).eval()
        call, given, names, opened = _kind("timm")
    else:
        import transformers

        network, config, options, kind = NETWORKS[name]
        made = getattr(transformers, network)(getattr(transformers, config)(**options)).eval()
        call, given, names, opened = _kind(kind)
    axes = opened if is_open else [{0: one[0]} for one in opened]
    write(Called(made, call), given, names, axes, exporter, path)


def write(
    network: torch.nn.Module, given: tuple[torch.Tensor, ...], names: list[str], axes: Open, exporter: str, path: Path
) -> None:
    """Write a network as an exporter does, with these dims of its inputs open; dynamo takes them of arguments in a row."""
    with torch.no_grad():
        if exporter == "torchscript":
            torch.onnx.export(
                network, given, str(path), input_names=names, opset_version=17, dynamo=False,
                dynamic_axes=dict(zip(names, axes, strict=True)),
            )  # fmt: skip
        else:
            free = tuple(dict.fromkeys(one, torch.export.Dim.AUTO) for one in axes)
            torch.onnx.export(
                network, given, str(path), input_names=names, opset_version=18, dynamo=True,
                dynamic_shapes=(free,), external_data=False, verbose=False,
            )  # fmt: skip


def at_most(analysis: Analysis) -> float:
    """Return the share of the MACs that can go while every layer stays."""
    groups = analysis.channels.groups
    cost = macs_cost(analysis.channels)
    whole = cost([group.n_units for group in groups])
    return 1 - cost(np.array([group.step for group in groups], np.int64)) / max(whole, 1)


def row(name: str, exporter: str, hold: bool) -> dict[str, Any]:
    """Return what one network gives with open sizes, and with fixed ones."""
    start, found = time.time(), dict[str, Any](name=name, exporter=exporter)
    with tempfile.TemporaryDirectory() as folder:
        fixed, free = Path(folder, "fixed.onnx"), Path(folder, "open.onnx")
        export(name, exporter, False, fixed)
        export(name, exporter, True, free)
        inputs = onnx.load(fixed).graph.input
        shapes = [f"{i.name}={','.join(str(d.dim_value or 1) for d in i.type.tensor_type.shape.dim)}" for i in inputs]
        analysis = analyse_model(free, input_shape=shapes)
        why = Counter(str(group.why_frozen) for group in analysis.channels.frozen)
        found |= {"fixed": at_most(analyse_model(fixed)), "open": at_most(analysis), "why": dict(why.most_common(5))}
        if hold:
            from tests.oracle import hold as held

            found["settings"] = held(onnx.load(free), 1, tuple(shapes)).n_settings
    return {**found, "seconds": round(time.time() - start, 1)}


def main() -> None:
    """Write a row for every network and exporter that has none yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=sorted(NETWORKS), help="names of NETWORKS, or timm:NAME")
    parser.add_argument("--exporters", nargs="*", default=["torchscript", "dynamo"])
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(one["name"], one["exporter"]) for one in known}
    for exporter in options.exporters:
        for name in options.only:
            if (name, exporter) not in done:
                try:
                    found = row(name, exporter, options.hold)
                except Exception as error:  # an exporter's or the network's: the row says it
                    found = {"name": name, "exporter": exporter, "error": f"{type(error).__name__}: {error}"[:200]}
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
