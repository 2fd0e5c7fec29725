"""Import paths of before the house was built, answered by the modules that took their place; gone after two versions."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "agmc_onnx.channels": "agmc_onnx.ops",
    "agmc_onnx.channels.attention": "agmc_onnx.ops.attention",
    "agmc_onnx.channels.axes": "agmc_onnx.ties.ledger",
    "agmc_onnx.channels.balances": "agmc_onnx.ties.balance",
    "agmc_onnx.channels.bundles": "agmc_onnx.ties.bundles",
    "agmc_onnx.channels.convolutions": "agmc_onnx.ops.conv",
    "agmc_onnx.channels.einsum": "agmc_onnx.ops.linear",
    "agmc_onnx.channels.fused": "agmc_onnx.ops.heads",
    "agmc_onnx.channels.groups": "agmc_onnx.ties.groups",
    "agmc_onnx.channels.moves": "agmc_onnx.ops.move",
    "agmc_onnx.channels.ops": "agmc_onnx.ops.reduce",
    "agmc_onnx.channels.quantised": "agmc_onnx.ops.quantize",
    "agmc_onnx.channels.recurrent": "agmc_onnx.ops.recurrent",
    "agmc_onnx.channels.reshapes": "agmc_onnx.ops.reshape",
    "agmc_onnx.channels.sizes": "agmc_onnx.ops.sizes",
    "agmc_onnx.channels.table": "agmc_onnx.ops.table",
    "agmc_onnx.channels.zeros": "agmc_onnx.ops.zeros",
    "agmc_onnx.cli.exporting": "agmc_onnx.cli.export",
    "agmc_onnx.cli.folder": "agmc_onnx.cli.batch",
    "agmc_onnx.cli.importing": "agmc_onnx.cli.import_",
    "agmc_onnx.config": "agmc_onnx.options",
    "agmc_onnx.data.random_inputs": "agmc_onnx.measuring.random_inputs",
    "agmc_onnx.data.roles": "agmc_onnx.measuring.roles",
    "agmc_onnx.diagnosis": "agmc_onnx.verbs.doctor",
    "agmc_onnx.exchange.exporters.exporting": "agmc_onnx.verbs.export",
    "agmc_onnx.exchange.importers.importing": "agmc_onnx.verbs.import_",
    "agmc_onnx.finetuning": "agmc_onnx.verbs.finetune",
    "agmc_onnx.folder": "agmc_onnx.verbs.batch",
    "agmc_onnx.graph.normalize": "agmc_onnx.graph.normal_form",
    "agmc_onnx.hierarchy": "agmc_onnx.motifs",
    "agmc_onnx.hierarchy.encoding": "agmc_onnx.motifs.encoding",
    "agmc_onnx.hierarchy.level1": "agmc_onnx.motifs.level1",
    "agmc_onnx.hierarchy.motifs": "agmc_onnx.motifs.motifs",
    "agmc_onnx.hierarchy.regions": "agmc_onnx.motifs.regions",
    "agmc_onnx.inspection": "agmc_onnx.verbs.inspect",
    "agmc_onnx.measuring.card": "agmc_onnx.data.card",
    "agmc_onnx.measuring.data": "agmc_onnx.data.samples",
    "agmc_onnx.measuring.images": "agmc_onnx.data.images",
    "agmc_onnx.measuring.labels": "agmc_onnx.data.labels",
    "agmc_onnx.measuring.latency": "agmc_onnx.latency.timing",
    "agmc_onnx.measuring.op_times": "agmc_onnx.latency.tables",
    "agmc_onnx.measuring.time_ops": "agmc_onnx.latency.op_times",
    "agmc_onnx.model": "agmc_onnx.graph",
    "agmc_onnx.model.files": "agmc_onnx.graph.files",
    "agmc_onnx.model.fused_shapes": "agmc_onnx.graph.registry",
    "agmc_onnx.model.graph": "agmc_onnx.graph.view",
    "agmc_onnx.model.kept": "agmc_onnx.graph._values",
    "agmc_onnx.model.normalize": "agmc_onnx.graph.normal_form",
    "agmc_onnx.model.numbers": "agmc_onnx.graph.fold",
    "agmc_onnx.model.parts": "agmc_onnx.graph.external",
    "agmc_onnx.model.precision": "agmc_onnx.graph.precision",
    "agmc_onnx.model.protobuf": "agmc_onnx.graph.protobuf",
    "agmc_onnx.model.rewire": "agmc_onnx.graph.edit",
    "agmc_onnx.model.shapes": "agmc_onnx.graph.shapes",
    "agmc_onnx.model.signatures": "agmc_onnx.graph._values",
    "agmc_onnx.norms": "agmc_onnx.pruning.masked_norms",
    "agmc_onnx.output": "agmc_onnx.graph.outputs",
    "agmc_onnx.pipeline": "agmc_onnx.verbs.compress",
    "agmc_onnx.pruning.editor": "agmc_onnx.ops.editor",
    "agmc_onnx.pruning.fused": "agmc_onnx.ops.attention",
    "agmc_onnx.pruning.latency_cost": "agmc_onnx.latency.predict",
    "agmc_onnx.pruning.layout": "agmc_onnx.latency.layout",
    "agmc_onnx.pruning.repairs": "agmc_onnx.ops.move",
    "agmc_onnx.pruning.verify": "agmc_onnx.pruning.verification",
    "agmc_onnx.recover": "agmc_onnx.refit",
    "agmc_onnx.recover.compensate": "agmc_onnx.refit.compensation",
    "agmc_onnx.recover.curves": "agmc_onnx.refit.curves",
    "agmc_onnx.recover.divergence": "agmc_onnx.refit.divergence",
    "agmc_onnx.recover.finetune": "agmc_onnx.distill.distillation",
    "agmc_onnx.recover.folding": "agmc_onnx.distill.folding",
    "agmc_onnx.recover.foreign": "agmc_onnx.torch_view.foreign",
    "agmc_onnx.recover.goals": "agmc_onnx.refit.goals",
    "agmc_onnx.recover.importances": "agmc_onnx.refit.importance",
    "agmc_onnx.recover.moments": "agmc_onnx.refit.moments",
    "agmc_onnx.recover.normalised": "agmc_onnx.distill.inserted",
    "agmc_onnx.recover.options": "agmc_onnx.refit.options",
    "agmc_onnx.recover.quick": "agmc_onnx.refit.quick",
    "agmc_onnx.recover.rectified": "agmc_onnx.refit.rectified",
    "agmc_onnx.recover.sites": "agmc_onnx.refit.sites",
    "agmc_onnx.recover.sparse": "agmc_onnx.refit.thin",
    "agmc_onnx.recover.statistics": "agmc_onnx.refit.statistics",
    "agmc_onnx.recover.stream": "agmc_onnx.refit.stream",
    "agmc_onnx.recover.synthesis": "agmc_onnx.refit.synthesis",
    "agmc_onnx.recover.torch_graph": "agmc_onnx.torch_view.module",
    "agmc_onnx.recover.torch_nn_ops": "agmc_onnx.torch_view.nn_ops",
    "agmc_onnx.recover.torch_ops": "agmc_onnx.torch_view.math_ops",
    "agmc_onnx.recover.torch_shape_ops": "agmc_onnx.torch_view.shape_ops",
    "agmc_onnx.refit.compensate": "agmc_onnx.refit.compensation",
    "agmc_onnx.search.policies": "agmc_onnx.policies",
    "agmc_onnx.search.policies.agmc": "agmc_onnx.policies.agmc.policy",
    "agmc_onnx.search.policies.amc": "agmc_onnx.policies.amc",
    "agmc_onnx.search.policies.ddpg": "agmc_onnx.policies.agmc.ddpg",
    "agmc_onnx.search.policies.error_model": "agmc_onnx.policies.guide.error_model",
    "agmc_onnx.search.policies.generalist": "agmc_onnx.policies.guide.generalist",
    "agmc_onnx.search.policies.gnn_rl": "agmc_onnx.policies.gnn_rl.policy",
    "agmc_onnx.search.policies.greedy": "agmc_onnx.policies.greedy",
    "agmc_onnx.search.policies.guide": "agmc_onnx.policies.guide.guide",
    "agmc_onnx.search.policies.handcrafted": "agmc_onnx.policies.handcrafted",
    "agmc_onnx.search.policies.linear_budget": "agmc_onnx.policies.guide.linear_budget",
    "agmc_onnx.search.policies.networks": "agmc_onnx.policies.agmc.networks",
    "agmc_onnx.search.policies.ppo": "agmc_onnx.policies.gnn_rl.ppo",
    "agmc_onnx.search.policies.searching": "agmc_onnx.policies.blackbox",
    "agmc_onnx.search.policies.states": "agmc_onnx.policies.agmc.states",
    "agmc_onnx.search.prior": "agmc_onnx.policies.guide.prior",
    "agmc_onnx.verification": "agmc_onnx.pruning.verification",
}


class _Loader:  # importlib.abc is not imported for it: that takes 8 ms
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {new}; the old path goes in version 0.3", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._own = module.__spec__  # the machinery is about to write the old name over it
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Answer for the old paths only."""
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader())  # type: ignore[arg-type]


def install() -> None:
    """Let the old paths be imported; once, however often it is called."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # before the folder of a package that has taken an old name
