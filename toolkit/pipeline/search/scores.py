"""Scores of points that are pruned in one shot: layers are left out, zeros chosen, kept weights computed again."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.models.architectures import layer_count
from toolkit.models.depth import keep_layers
from toolkit.models.load import prunable_matrices
from toolkit.pipeline.search.dense import Dense, settings_of
from toolkit.pipeline.search.points import Point
from toolkit.pipeline.search.records import recorded
from toolkit.recipe import Recipe, Tile
from toolkit.sparsity.factory import make_sparsifier
from toolkit.sparsity.layerwise import Job, jobs_of, reconstruct_layers
from toolkit.training.depth import removal_order
from toolkit.training.hardware import device

_VERSION = 1  # increased whenever a change here can change a score
_TOKENS = 16_384  # on which layers are compared with each other


class Scores:
    """Scores of points, each computed once and kept in a file of the search folder.

    Args:
        dense: The dense model.
        recipes: The recipe of every point.
        fewest: Fewest layers of a point.
        folder: The search folder.
        log: Receives progress messages.
    """

    def __init__(
        self, dense: Dense, recipes: Mapping[Point, Recipe], fewest: int, folder: Path, log: Callable[[str], None]
    ) -> None:
        self._dense, self._recipes, self._fewest = dense, recipes, fewest
        self._folder, self._log = folder, log

    def of(self, point: Point) -> float:
        """Returns the score of a point."""
        recipe = self._recipes[point]
        pruning = recipe.student.pruning.model_dump(mode="json") if recipe.student and recipe.student.pruning else None
        values = [_VERSION, self._dense.key, self._fewest, point.layers, pruning if point.zeros else None]
        return float(recorded(self._folder / f"score-{point.file_name}.json", values, lambda: self._score(point)))

    def kept(self, point: Point) -> list[int] | None:
        """Returns the numbers of the layers that a point keeps; None: all of them."""
        total = layer_count(self._dense.model.config.to_dict())
        if point.layers == total:
            return None
        file, values = self._folder / "layers.json", [_VERSION, self._dense.key, self._fewest]
        removed: list[int] = recorded(file, values, self._removal_order)
        return [number for number in range(total) if number not in removed[: total - point.layers]]

    def _removal_order(self) -> list[int]:
        texts = self._dense.texts  # from the shortest ones to the longest
        tokens = sum(batch["input_ids"].numel() for batch in texts)
        return removal_order(self._dense.model, self._fewest, texts[:: -(-tokens // _TOKENS)], self._log)

    def _score(self, point: Point) -> float:
        self._log(f"scoring {point.label}")
        return self._dense.measure(self._pruned(point))

    @torch.no_grad()
    def _pruned(self, point: Point) -> Any:
        """Returns a copy of the dense model of this size, with its kept weights computed again."""
        dense, recipe = self._dense.model.to(device()), self._recipes[point]
        model, kept = copy.deepcopy(dense), self.kept(point)
        if kept is not None:
            keep_layers(model, kept)
        shallow, linears = copy.deepcopy(model), prunable_matrices(model)
        # What is left out of the depth is made up for by every matrix, what becomes zero by those that are pruned.
        jobs = {name: Job(0, Tile(rows=1, columns=1)) for name in linears} if kept is not None else {}
        if point.zeros:
            assert recipe.student is not None
            assert recipe.student.pruning is not None
            matrices = prunable_matrices(model, recipe.model.prunable)
            for pruner in make_sparsifier(recipe.student.pruning, matrices, 1).pruners_with_schedule:
                names, target = list(pruner.mask.tensors), pruner.section.target_sparsity
                jobs |= jobs_of(pruner.section, target, shallow, names, self._dense.texts)
        if jobs:
            settings = settings_of(recipe)
            reconstruct_layers(model, dense, jobs, linears, self._dense.texts, settings, self._log, kept)
        return model
