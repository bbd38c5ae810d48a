"""NNCF back end: masks come from `nncf.prune` on proxy models; schedule and masking from `GradualPruner`.

NNCF masks weights in the forward pass of the model that it wraps and leaves the weights themselves dense. It therefore
wraps small proxy models that share the weights, so that the trained model and its checkpoints stay plain and fast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import GradualPruner


class NNCFPruner(GradualPruner):
    """Uses one proxy model per matrix (`local`), or one for all (`global`; NNCF divides each matrix by its norm)."""

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        super().attach(matrices)
        names = list(self._parameters)
        groups = [[name] for name in names] if self.section.prune_domain == "local" else [names]
        self._groups = [(group, self._wrapped([self._parameters[n] for n in group])) for group in groups]

    def _wrapped(self, weights: list[Tensor]) -> nn.Module:
        import nncf

        wrapped = nncf.prune(_ProxyModel(weights), self._mode(), ratio=0.0, examples_inputs=torch.ones(1, 1))
        for index, weight in enumerate(weights):
            assert wrapped.weights[index] is weight, "NNCF copied the weights"
        return wrapped

    def _mode(self) -> Any:
        import nncf

        local = self.section.prune_domain == "local"
        mode = nncf.PruneMode
        return mode.UNSTRUCTURED_MAGNITUDE_LOCAL if local else mode.UNSTRUCTURED_MAGNITUDE_GLOBAL

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        from nncf.torch.function_hook.pruning.magnitude.algo import get_pruned_modules, update_pruning_ratio

        kept: dict[str, Tensor] = {}
        for names, wrapped in self._groups:
            size = sum(self._parameters[n].numel() for n in names)
            count = int(sparsity * size)
            if count == 0:  # NNCF always prunes at least one weight
                kept |= {n: torch.ones_like(self._parameters[n], dtype=torch.bool) for n in names}
                continue
            # NNCF prunes int((size - 1) * ratio) + 1 weights; this ratio is in the middle of the interval for `count`.
            update_pruning_ratio(wrapped, self._mode(), min(1.0, (count - 0.5) / (size - 1)))
            masks = get_pruned_modules(wrapped)
            found = {n: masks[f"weights.{i}"].binary_mask.bool() for i, n in enumerate(names)}
            # NNCF's masks stay on the device of the weights at wrapping time; the model may have moved to a GPU.
            kept |= self._limit_to_count(count, dict(SparsityMask(found).on_devices_of(self._parameters).tensors))
        return kept

    def _limit_to_count(self, count: int, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keeps surplus weights: NNCF prunes all weights that tie at the threshold, of which the last ones are kept."""
        together = torch.cat([k.flatten() for k in kept.values()])
        surplus = int((~together).count_nonzero()) - count
        if surplus > 0:
            weights = {n: self._parameters[n].detach() for n in kept}
            score = torch.cat([(w.abs() / w.norm(2)).flatten() for w in weights.values()])
            new = ~together & torch.cat([self.mask.tensors[n].flatten() for n in kept])
            ties = (new & (score == score[new].max())).nonzero().squeeze(1)
            together[ties[-surplus:]] = True
        parts = together.split([k.numel() for k in kept.values()])
        return {n: part.view_as(k).clone() for (n, k), part in zip(kept.items(), parts, strict=True)}


class _ProxyModel(nn.Module):
    """Proxy model that has only the given weights, so that NNCF prunes exactly these."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.linear(x.expand(1, w.shape[1]), w).sum() for w in self.weights])
