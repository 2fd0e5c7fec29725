"""The models of the coverage table: torchvision and timm exported here, the onnx package's own, and files.

Weights are random and nothing is downloaded. torchvision 0.28 and timm 1.0 are the extra `coverage` of this project.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

NAMES = Path(__file__).with_name("architectures.txt")
EXPORTERS = {"torchscript": {"exporter": "torchscript"}, "dynamo": {"exporter": "dynamo", "opset": 18}}
_VIDEOS = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
_SEGMENTERS = ("fcn", "deeplab", "lraspp")


def architectures() -> list[str]:
    """Return the names of the table, `tv:` or `timm:` before each."""
    lines = NAMES.read_text().splitlines()
    return [name for line in lines if not line.startswith("#") for name in line.split()]


def light_models() -> list[Path]:
    """Return the files of real topologies that the onnx package ships, whose weights are constants."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return sorted(folder.glob("light_*.onnx"))


def load(name: str, exporter: str, keep: Path | None = None, is_open: bool = False) -> onnx.ModelProto:
    """Return one model of the table: `tv:`, `timm:`, `light:` or the path of a file; `hf:` is a small one of transformers.

    Args:
        name: Which.
        exporter: A key of `EXPORTERS`; files need none.
        keep: Folder of models exported before; what is missing there is exported and put there.
        is_open: Export with open height and width, not the batch alone.
    """
    kind, _, rest = name.partition(":")
    if kind == "light":
        return with_random_weights(onnx.load(next(p for p in light_models() if p.stem == rest)))
    if kind not in ("tv", "timm", "hf"):
        return onnx.load(name)
    path = keep / f"{exporter}-{kind}-{rest}{'-open' if is_open else ''}.onnx" if keep else None
    if path is not None and path.exists():
        return onnx.load(path)
    model = (export_open if is_open else export)(*build(name), exporter)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        onnx.save(model, partial)
        partial.replace(path)
    return model


def import_frameworks() -> None:
    """Import what building and exporting needs, once, so that forked processes have it."""
    import torch

    torch.set_num_threads(1)
    if not hasattr(torch.ops.torchvision, "nms"):  # torchvision's own library is built for CUDA
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_frameworks.library = library  # type: ignore[attr-defined]  # it ends with its object
    torch.backends.mha.set_fastpath_enabled(False)  # else the older exporter meets an op it does not know
    import onnxscript  # noqa: F401

    for name in ("timm", "torchvision", "transformers"):  # what is there
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def build(name: str) -> tuple[Any, tuple[int, ...]]:
    """Return a network of torchvision or timm with lively random weights, one tensor in and one out, and its input shape."""
    import_frameworks()
    import torch

    torch.manual_seed(0)
    kind, _, rest = name.partition(":")
    if kind == "hf":
        module, shape = small_transformer(rest)
    elif kind == "tv":
        import torchvision

        options = {"weights_backbone": None} if rest.startswith(_SEGMENTERS) else {}
        module = torchvision.models.get_model(rest, weights=None, **options)
        shape = _torchvision_shape(rest)
    else:
        import timm

        module = timm.create_model(rest, pretrained=False)
        shape = (1, *module.default_cfg["input_size"])
    pair = rest.startswith("raft")

    class OneTensor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.net(x[:, :3], x[:, 3:]) if pair else self.net(x)
            while not isinstance(y, torch.Tensor):
                y = next(iter(y.values())) if isinstance(y, dict) else y[-1 if pair else 0]
            return y

    net = OneTensor().eval()
    enliven(net, shape)
    return net, shape


SMALL = {  # attributes of transformers' configs, set where a config has them
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim", "rotary_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "ffn_dim", "d_ff"), 64),
    **{"num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "num_heads": 4, "vocab_size": 64, "image_size": 64, "patch_size": 16},
    **{"pad_token_id": 0, "num_labels": 5, "num_experts": 4, "num_local_experts": 4},
}  # fmt: skip


def small_transformer(name: str) -> tuple[Any, tuple[int, ...]]:
    """Return a small model of transformers by the name of its kind, and its input shape: images, or embeddings of a text."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as IMAGES

    config = AutoConfig.for_model(name)
    is_image = name in IMAGES
    small = SMALL if not is_image or not isinstance(getattr(config, "hidden_sizes", None), list) else {"image_size": 64}
    for key, value in small.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, value)
    config._attn_implementation = "eager"
    made = (AutoModelForImageClassification if is_image else AutoModel).from_config(config)

    class OneInput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x) if is_image else self.net(inputs_embeds=x)

    return OneInput(), (1, 3, 64, 64) if is_image else (1, 12, 32)


def _torchvision_shape(name: str) -> tuple[int, ...]:
    if name.startswith("raft"):
        return (1, 6, 128, 128)  # two images
    side = 112 if name.endswith("_18") else 299 if name == "inception_v3" else 224
    video = name in _VIDEOS or name.startswith(("mvit", "swin3d"))
    return (1, 3, 16, side, side) if video else (1, 3, side, side)


def export(net: Any, shape: tuple[int, ...], exporter: str) -> onnx.ModelProto:
    """Return a network as ONNX with an open batch; with a fixed one where the TorchScript exporter can do no other."""
    from models.export import silence, to_onnx

    try:
        return to_onnx(net, shape, **EXPORTERS[exporter])
    except Exception:
        if exporter != "torchscript":
            raise
    import torch

    with silence(), torch.no_grad():
        buffer = io.BytesIO()
        torch.onnx.export(net, (torch.zeros(shape),), buffer, dynamo=False, opset_version=18)
    return onnx.load_from_string(buffer.getvalue())


def export_open(net: Any, shape: tuple[int, ...], exporter: str) -> onnx.ModelProto:
    """Return a network of images as ONNX with open batch, height and width; its example has a batch of two."""
    import torch

    from models.export import silence
    from tools.open_sizes import Called, write

    with tempfile.TemporaryDirectory() as folder, silence():
        path, sample = Path(folder, "open.onnx"), torch.zeros(2, *shape[1:])
        write(Called(net, lambda m, x: m(x)), (sample,), ["input"], [{0: "N", 2: "H", 3: "W"}], exporter, path)
        return onnx.load(path)


def enliven(module: Any, shape: tuple[int, ...]) -> None:
    """Give a network weights that show: no zeros where initialisation leaves them, statistics of its own activations."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not value.dtype.is_floating_point or not value.numel() or "running_" in name:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if (value == 0).all():
            value.data = noise * 0.02
        elif value.ndim == 1:
            value.data = value.data + noise * 0.05
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        if norms:
            module(torch.randn(2, *shape[1:], generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        norm.running_var.add_(1e-3)


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a light model of the onnx package with He-scaled initializers in place of its constant fillings."""
    rng = np.random.default_rng(0)
    graph = model.graph
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]:
        dims = shapes[node.input[0]].ravel().tolist()
        scale = (2 / max(int(np.prod(dims[1:])), 1)) ** 0.5 if len(dims) > 1 else 0.1
        values = rng.standard_normal(dims) * scale + (1 if len(dims) == 1 else 0)
        values = np.abs(values) + 0.1 if node.output[0] in variances else values
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    model.ir_version = max(model.ir_version, 4)
    return model
