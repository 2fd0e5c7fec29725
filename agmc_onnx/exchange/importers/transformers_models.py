"""Hugging Face folders to ONNX: transformers reads them, PyTorch's exporter converts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from agmc_onnx.errors import UsageError
from agmc_onnx.exchange.importers.source import (
    Conversion,
    ImportOptions,
    InputShape,
    Source,
    need,
    one_line,
    silence,
    version,
)
from agmc_onnx.exchange.importers.torch_models import export_module

TOKENS, IMAGE, AUDIO = "input_ids", "pixel_values", "input_values"


class _Positional(torch.nn.Module):
    """A model that takes its inputs in order and gives a tuple of its tensors, without caches."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return tuple(value for value in found.to_tuple() if isinstance(value, torch.Tensor))


def convert_folder(source: Source, options: ImportOptions) -> Conversion:
    """Convert the architecture that config.json names, with weights of safetensors; nothing is downloaded."""
    need(source, "import-huggingface", "transformers")
    import transformers

    config = _config(source)
    names = config.get("architectures") or []
    cls = getattr(transformers, names[0], None) if names else None
    if cls is None:
        raise UsageError(
            f"{source}: config.json names no architecture that {version('transformers')} has, got {', '.join(names) or 'none'};"
            " expected one. Update transformers, or give module:function."
        )
    is_safe = any(source.path.glob("*.safetensors"))
    if not is_safe and not options.allow_pickle:
        raise UsageError(
            f"{source}: no safetensors weights, got {', '.join(sorted(p.name for p in source.path.iterdir()))[:100]}; expected"
            " model.safetensors. Save it with save_pretrained, or give --allow-pickle if you trust where it is from."
        )
    try:
        with silence():
            model = cls.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False, use_safetensors=is_safe,
                attn_implementation="eager", dtype=torch.float32,
            ).eval()  # fmt: skip
    except Exception as error:  # transformers raises whatever it likes
        raise UsageError(
            f"{source}: transformers cannot open it, got {one_line(error)!r}; expected a folder of save_pretrained."
        ) from error
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    inputs, notes = _inputs(source, model, options)
    wrapped = _Positional(model, [shape.name or "" for shape in inputs])
    made = export_module(source, wrapped, inputs, options)
    ranges = {TOKENS: (0, int(model.config.vocab_size))} if any(shape.name == TOKENS for shape in inputs) else {}
    ranges |= {shape.name: (1, 2) for shape in inputs if shape.name and shape.name.endswith("attention_mask")}
    converter = made.converter
    return replace(
        made, framework=f"{version('transformers')} on {version('torch')}", converter=converter, ranges=ranges,
        notes=(*notes, *made.notes),
    )  # fmt: skip


def _config(source: Source) -> dict[str, Any]:
    try:
        config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: config.json cannot be read, got {one_line(error)!r}; expected JSON.") from None
    return config if isinstance(config, dict) else {}


def _inputs(source: Source, model: Any, options: ImportOptions) -> tuple[list[InputShape], tuple[str, ...]]:
    """Return the inputs: those given, or what the model's main input says."""
    if options.input_shapes:
        named = [shape for shape in options.input_shapes if shape.name]
        if len(named) != len(options.input_shapes):
            raise UsageError(
                f"{source}: inputs need names, got a shape without; expected NAME=DIMS:DTYPE. Give such as"
                " --input-shape input_ids=N,T:int64."
            )
        return named, ()
    main, config = model.main_input_name, model.config
    if main == TOKENS:
        return [InputShape(("batch", "tokens"), "int64", name) for name in (TOKENS, "attention_mask")], ()
    if main == IMAGE:
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else (size if len(size) == 2 else (224, 224))
        return [InputShape(("batch", getattr(config, "num_channels", 3), height, width), "float32", IMAGE)], ()
    if main == AUDIO:
        return [InputShape(("batch", 16000), "float32", AUDIO)], (
            "sound of 16000 samples; give --input-shape for others",
        )
    raise UsageError(
        f"{source}: its main input is {main}, got no shape for it; expected one. Give --input-shape {main}=N,...:DTYPE for every"
        " input that the model needs."
    )
