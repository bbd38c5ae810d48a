"""Reconstruction of an encoder's matrices, layer after layer, each on its inputs in the model as pruned so far.

Works for every model whose layers form a chain, each called once: what is read of a model are the names of its layers
and the inputs of its linear modules, by forward hooks. Linear modules that get the same tensor (query, key and value)
form a group, and groups are taken in the order of their execution. Only one layer runs at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.models.architectures import split_layer
from toolkit.recipe import Reconstruction, ResolvedPruner, Tile
from toolkit.sparsity.reconstruction import Moments, corrected_target, solve, solve_locked
from toolkit.sparsity.units import keep_largest_globally, keep_units, unit_scores, units_to_prune

Inputs = Mapping[str, Tensor]  # of a forward pass, with `attention_mask`
Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a layer gets beside the hidden states
Linears = Mapping[str, nn.Linear]  # parameter name -> module


@dataclass(frozen=True)
class Job:
    """What becomes of a matrix: number of units of the pattern to prune."""

    prune: int
    tile: Tile


@dataclass(frozen=True)
class Locked:
    """What becomes of a matrix whose zeros are given: the mask, True where a weight is kept."""

    mask: Tensor


@dataclass
class Errors:
    """Relative errors of outputs: with as many zeros by magnitude (if locked: as it was), and after reconstruction.

    Attributes:
        matrices: Parameter name -> (before, after): squared difference of the matrix's outputs to those of the dense
            matrix on dense inputs, by the variance of the latter. Both are on the inputs as pruned so far.
        layers: Name of a layer -> (before, after): the same of the layer's outputs, of the entire model on other text.
    """

    matrices: dict[str, tuple[float, float]] = field(default_factory=dict)
    layers: dict[str, tuple[float, float]] = field(default_factory=dict)


def jobs_of(
    pruner: ResolvedPruner, sparsity: float, dense: Any, names: Sequence[str], batches: Sequence[Inputs]
) -> dict[str, Job]:
    """Returns how many units to prune in each matrix of a pruner.

    With prune_domain global, matrices share one threshold on a unit's part of its matrix's output: the sum of w^2 times
    the mean square of the input, divided by the same sum over the matrix, in the dense model.

    Args:
        pruner: Pattern, domain and limit.
        sparsity: Fraction of the weights of all matrices that become zero.
        dense: The dense model.
        names: Parameter names of the pruner's matrices.
        batches: Text that calibrates.
    """
    tile = pruner.tile
    weights = {name: dense.get_parameter(name).detach() for name in names}
    if pruner.prune_domain == "local":
        return {n: Job(units_to_prune(sparsity, tile, w.numel()), tile) for n, w in weights.items()}
    squares = _mean_squares(dense, names, batches)
    power = {name: weight.float().square() * squares[name] for name, weight in weights.items()}
    # The mean of a block's scores is in proportion to their sum, as all blocks have the same size.
    units = {n: unit_scores((p / p.sum().clamp_min(1e-30)).contiguous(), tile) for n, p in power.items()}
    prune = units_to_prune(sparsity, tile, sum(w.numel() for w in weights.values()))
    kept = keep_largest_globally(units, prune, 1.0 if tile.zeros else pruner.max_sparsity_ratio_per_layer)
    return {name: Job(int((~kept[name]).count_nonzero()), tile) for name in names}


@torch.no_grad()
def reconstruct_layers(
    model: Any,
    dense: Any,
    jobs: Mapping[str, Job | Locked],
    linears: Linears,
    batches: Sequence[Inputs],
    settings: Reconstruction,
    log: Callable[[str], None] = lambda _: None,
    kept: Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], Errors]:
    """Prunes matrices of a model in place, and returns the mask of each (True where a weight is kept).

    Args:
        model: The model as it is now, in eval mode; matrices without a job stay as they are.
        dense: The dense model, whose layers' outputs are the target; on the same device.
        jobs: Parameter name of a matrix -> what becomes of it.
        linears: All linear modules in the layers of `model`.
        batches: Text that calibrates.
        settings: Method of the choice of zeros, and whether the errors of earlier layers are corrected.
        log: Receives progress messages.
        kept: Numbers of the dense model's layers that those of `model` come from, increasing, if it has fewer: error
            correction then makes up for the layers that are left out, too. None: it has the same layers.

    Raises:
        UserError: The layers do not form a chain.
    """
    layers = layer_names(linears)
    kept = range(len(layers)) if kept is None else kept
    before_number = split_layer(next(iter(linears)))[0]
    dense_layers = [f"{before_number}{number}" for number in range(kept[-1] + 1)]
    names: dict[nn.Module, str] = {module: name for name, module in linears.items()}
    now, before = _Chain(model, layers, batches), _Chain(dense, dense_layers, batches)
    masks: dict[str, Tensor] = {}
    errors = Errors()
    passed = 0  # dense layers
    for layer, origin in enumerate(kept):
        log(f"reconstructing layer {layer + 1} of {len(layers)}")
        for number in range(passed, origin):
            before.advance(number)
        for group in now.groups(layer, [n for n in names if names[n] in jobs]):
            own = [names[module] for module in group]
            found = _Group(own, linears, [_dense_module(dense, name, origin) for name in own])
            for batch in range(len(batches)):
                wanted = before.captured(origin, batch, found.dense)
                found.add(*wanted, now.captured(layer, batch, group[:1])[0], now.real[batch])
            for name in own:
                masks[name], errors.matrices[name] = found.solve(name, jobs[name], settings)
        before.advance(origin)
        passed = origin + 1
        now.advance(layer)
    assert masks.keys() == jobs.keys(), "a matrix is not part of its layer's forward pass"
    return masks, errors


class _Stop(Exception):
    """Ends a forward pass whose rest is not needed."""


class _Chain:
    """The layers of a model, and the inputs of one of them for every batch."""

    def __init__(self, model: Any, names: Sequence[str], batches: Sequence[Inputs]) -> None:
        modules = dict(model.named_modules())
        self._layers = [modules[name] for name in names]
        self.real = [batch["attention_mask"].bool() for batch in batches]
        self._calls: list[dict[str, Call]] = []
        self.hidden: list[Tensor] = []
        _require_chain(model, self._layers, batches[0])
        for batch in batches:
            hidden, calls = _first_calls(model, self._layers, batch)
            self.hidden.append(hidden)
            self._calls.append(calls)

    def output(self, layer: int, batch: int) -> Tensor:
        """Returns the output of a layer whose turn it is."""
        args, kwargs = self._calls[batch][_kind(self._layers[layer])]
        return _first(self._layers[layer](self.hidden[batch], *args, **kwargs))

    def advance(self, layer: int) -> None:
        """Replaces the inputs of a layer by its outputs."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self.output(layer, batch)

    def captured(self, layer: int, batch: int, modules: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
        """Returns the input of some linear modules, which all get the same, and their outputs."""
        inputs: list[Tensor] = []
        outputs: dict[nn.Module, Tensor] = {}

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.append(args[0])
            outputs[module] = output
            if len(outputs) == len(modules):
                raise _Stop

        handles = [module.register_forward_hook(hook) for module in modules]
        try:
            self.output(layer, batch)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return inputs[0], [outputs[module] for module in modules]

    def groups(self, layer: int, modules: Sequence[nn.Module]) -> list[list[nn.Module]]:
        """Returns the modules that a layer runs, in groups that get the same tensor, in the order of execution."""
        found: list[tuple[Tensor, list[nn.Module]]] = []

        def hook(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
            same = next((group for tensor, group in found if tensor is args[0]), None)
            if same is None:
                found.append((args[0], [module]))
            else:
                same.append(module)

        handles = [module.register_forward_hook(hook) for module in modules]
        try:
            self.output(layer, 0)
        finally:
            for handle in handles:
                handle.remove()
        return [group for _, group in found]


class _Group:
    """Matrices that get the same input: moments of the input, and the power of the dense outputs."""

    def __init__(self, names: Sequence[str], linears: Linears, dense: Sequence[nn.Linear]) -> None:
        self.names, self._linears, self.dense = list(names), linears, list(dense)
        weight = self.dense[0].weight
        self._moments = Moments(weight.shape[1], weight.device)
        self._sums = [torch.zeros(2, len(m.weight), device=weight.device, dtype=torch.float64) for m in self.dense]

    def add(self, dense: Tensor, outputs: Sequence[Tensor], now: Tensor, real: Tensor) -> None:
        """Adds a batch: the dense input and the outputs for it, the input as it is now, and which tokens are real."""
        self._moments.add(dense[real], now[real])
        for sums, output, module in zip(self._sums, outputs, self.dense, strict=True):
            chosen = (output[real].float() - _bias(module)).double()  # the variance must not vanish beside the mean
            sums += torch.stack([chosen.sum(0), chosen.square().sum(0)])

    def solve(self, name: str, job: Job | Locked, settings: Reconstruction) -> tuple[Tensor, tuple[float, float]]:
        """Prunes a matrix in place; its bias takes up the difference of the means. Returns its mask and errors."""
        module, dense = self._linears[name], self.dense[self.names.index(name)]
        dense_mean, mean, cross, second = self._moments.centred()
        start, old = module.weight.float(), dense.weight.float()
        start_bias, old_bias = _bias(module).clone(), _bias(dense)
        target = corrected_target(old, cross, second, start) if settings.error_correction else start
        if isinstance(job, Locked):
            reference, mask = start, job.mask
            pruned = solve_locked(start, target, second, mask)
        else:
            reference = start * keep_units(start.abs(), job.tile, job.prune)
            pruned, mask = solve(settings.method, target, second, job.prune, job.tile)
        if settings.error_correction:
            bias = old_bias + old @ dense_mean - pruned @ mean
        else:
            bias = start_bias + (start - pruned) @ mean
        if module.bias is None:
            bias = torch.zeros_like(bias)
        else:
            module.bias.copy_(bias)
        module.weight.copy_(pruned)
        means, squares = self._sums[self.names.index(name)] / self._moments.count
        power = float((squares - means.square()).sum())
        covariance = old @ cross

        def error(weight: Tensor, with_bias: Tensor) -> float:
            away = (old @ dense_mean + old_bias - weight @ mean - with_bias).square().sum()
            spread = power + ((weight @ second - 2 * covariance) * weight).sum()
            return max(0.0, float(away + spread)) / power if power > 0 else 0.0

        return mask, (error(reference, start_bias), error(pruned, bias))


def _dense_module(dense: Any, name: str, number: int) -> nn.Linear:
    """Returns the matrix of a layer of the dense model that has the place of a matrix of another layer."""
    before, _, after = split_layer(name)
    module: nn.Linear = dense.get_submodule(f"{before}{number}{after}".removesuffix(".weight"))
    return module


def _bias(module: nn.Linear) -> Tensor:
    return torch.zeros(len(module.weight), device=module.weight.device) if module.bias is None else module.bias.float()


def layer_names(linears: Linears) -> list[str]:
    """Returns the names of the layers that hold linear modules, in order."""
    layers = {}
    for name in linears:
        before, number, _ = split_layer(name)
        layers[f"{before}{number}"] = number
    return sorted(layers, key=lambda name: layers[name])


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _kind(layer: nn.Module) -> str:
    """Returns the kind of a layer where layers differ in what they attend to, as in ModernBERT; else an empty text."""
    return str(getattr(layer, "attention_type", ""))


def _first_calls(model: Any, layers: Sequence[nn.Module], batch: Inputs) -> tuple[Tensor, dict[str, Call]]:
    """Returns the hidden states that the first layer gets, and what the first layer of each kind gets beside them."""
    hidden: list[Tensor] = []
    calls: dict[str, Call] = {}
    kinds = {_kind(layer) for layer in layers}

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        hidden.append(args[0] if args else rest.pop("hidden_states"))
        calls.setdefault(_kind(layer), (args[1:], rest))
        if calls.keys() == kinds:
            raise _Stop

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        model.base_model.forward(**batch)  # not the compiled call
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return hidden[0], calls


def _require_chain(model: Any, layers: Sequence[nn.Module], batch: Inputs) -> None:
    """Checks that each layer runs once, on the outputs of the layer before.

    Raises:
        UserError: It does not, as in ALBERT, whose layers share their weights.
    """
    outputs: list[Tensor] = []
    order: list[nn.Module] = []
    same: list[bool] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        same.append(not outputs or hidden is outputs[-1] or torch.equal(hidden, outputs[-1]))
        order.append(module)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(lambda _m, _a, output: outputs.append(_first(output))) for layer in layers]
    try:
        model.base_model.forward(**batch)
    finally:
        for handle in handles:
            handle.remove()
    if order != list(layers) or not all(same):
        raise UserError(
            f"the layers of {type(model).__name__} do not form a chain, in which each runs once",
            where="reconstruction",
            instead="another architecture, or remove the key",
        )


def _mean_squares(model: Any, names: Sequence[str], batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """Returns the mean square of each input of some matrices, [columns]."""
    modules = {model.get_submodule(name.removesuffix(".weight")): name for name in names}
    sums: dict[str, Tensor] = {}
    count = 0
    real = torch.zeros(0)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        added = args[0][real].float().square().sum(0)
        sums[modules[module]] = sums.get(modules[module], torch.zeros_like(added)) + added

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        with torch.no_grad():
            for batch in batches:
                real = batch["attention_mask"].bool()
                count += int(real.sum())
                model.base_model.forward(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def layer_errors(model: Any, dense: Any, linears: Linears, batches: Sequence[Inputs]) -> dict[str, float]:
    """Returns for each layer of the complete model the squared difference of its outputs to the dense ones.

    It is summed over the tokens and divided by the sum of squares of the dense outputs around their mean.

    Args:
        model: The model, in eval mode.
        dense: The dense model.
        linears: The linear modules in the model's layers.
        batches: Text to measure on.
    """
    layers = layer_names(linears)
    chains = [_Chain(one, layers, batches) for one in (dense, model)]
    found = {}
    for number, name in enumerate(layers):
        for chain in chains:
            chain.advance(number)
        real = chains[0].real
        wanted = torch.cat([h[r] for h, r in zip(chains[0].hidden, real, strict=True)]).float()
        got = torch.cat([h[r] for h, r in zip(chains[1].hidden, real, strict=True)]).float()
        power = float((wanted - wanted.mean(0)).square().sum())
        found[name] = float((got - wanted).square().sum()) / power if power > 0 else 0.0
    return found


@torch.no_grad()
def prune_by_magnitude(jobs: Mapping[str, Job], linears: Linears) -> None:
    """Sets the units of the smallest magnitude to zero, in place: what reconstruction is compared with."""
    for name, job in jobs.items():
        weight = linears[name].weight
        weight.mul_(keep_units(weight.abs(), job.tile, job.prune))
