"""Every prune type and pattern on a tiny classifier with real gradients: targets, locks, several pruners, resuming."""

import copy
import logging
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.data.batches import pad
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer, prunable_matrices
from toolkit.recipe import Pruning, Task, TaskPruning, WeightCompression
from toolkit.recipe.pruning import unsupported
from toolkit.sparsity.assignment import reachable_sparsity
from toolkit.sparsity.checks import check_target
from toolkit.sparsity.factory import make_sparsifier

STEPS, END = 14, 10
TYPES = ["magnitude", "snip", "snip_momentum", "gradient_sensitivity", "group_lasso"]
PATTERNS = {
    "tile_pattern_1x1": 0.9,
    "tile_pattern_4x1": 0.75,
    "tile_pattern_2x2": 0.8,
    "tile_pattern_1x16": 0.5,
    "2:4": 0.5,
    "1:4": 0.25,
}


@pytest.fixture(scope="module")
def toy(tiny_bert, tiny_task_files):
    """Makes a classifier; and batches of its task, one for each step."""
    tokenizer = load_tokenizer(tiny_bert)
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    task = load_task("toy", section, tokenizer)
    batches = [pad([task.train[8 * k + i] for i in range(8)], tokenizer.pad_token_id) for k in range(STEPS)]

    def model():
        torch.manual_seed(0)
        return load_classifier(tiny_bert, task.labels).eval()

    return model, batches


def pruning(backend="inc", kind=Pruning, **compression):
    settings = {"end_step": END, "start_step": 2, "update_frequency_on_step": 2} | compression
    return kind.model_validate({"backend": backend, "approach": {"weight_compression": settings}})


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model, sparsifier, batches, optimizer, steps=range(STEPS)):
    for step in steps:
        sparsifier.before_step(step)
        model(**batches[step]).loss.backward()
        sparsifier.before_optimizer_step()
        optimizer.step()
        sparsifier.after_optimizer_step()
        optimizer.zero_grad()
    return sparsifier


def run(toy, settings):
    make, batches = toy
    model = make()
    matrices = prunable_matrices(model)
    sparsifier = make_sparsifier(settings, matrices, 0)
    train(model, sparsifier, batches, optimizer_of(model))
    assert sparsifier.mask.violations({name: m.weight for name, m in matrices.items()}) == {}
    return model, sparsifier


def possible(backend, kind, pattern):
    pruner = WeightCompression(pattern=pattern, target_sparsity=PATTERNS[pattern], pruners=({"prune_type": kind},))
    return not unsupported(backend, pruner.resolve()[0])


CASES = [(b, k, p) for b in ("inc", "magnitude", "nncf") for k in TYPES for p in PATTERNS if possible(b, k, p)]


def test_all_but_nncf_can_do_everything_but_group_lasso_in_groups():
    assert sum(b == "inc" for b, *_ in CASES) == len(TYPES) * len(PATTERNS) - 2
    assert sum(b == "magnitude" for b, *_ in CASES) == len(TYPES) * len(PATTERNS) - 2
    assert [(k, p) for b, k, p in CASES if b == "nncf"] == [("magnitude", "tile_pattern_1x1")]


@pytest.mark.parametrize(("backend", "kind", "pattern"), CASES)
def test_every_type_and_pattern_ends_within_a_tenth_of_a_point_of_its_target_in_each_matrix(
    toy, backend, kind, pattern
):
    compression = {"pattern": pattern, "target_sparsity": PATTERNS[pattern], "pruners": [{"prune_type": kind}]}
    _, sparsifier = run(toy, pruning(backend, **compression))
    (pruner,) = sparsifier.pruners_with_schedule
    shapes = {name: tuple(kept.shape) for name, kept in pruner.mask.tensors.items()}
    reached = reachable_sparsity(pruner.section, shapes)
    for name, share in pruner.mask.per_matrix().items():
        assert share == pytest.approx(reached[name], abs=1e-3)
        # Matrices of 1,024 weights: whole blocks come no nearer than half a block.
        size = pruner.section.tile.rows * pruner.section.tile.columns
        assert abs(share - PATTERNS[pattern]) <= max(1e-3, size / 1024)
        kept, tile = pruner.mask.tensors[name], pruner.section.tile
        if tile.zeros:
            groups = kept.view(-1, tile.columns)
            assert (groups.sum(1) == tile.columns - tile.zeros).all()
        else:
            rows, columns = kept.shape
            blocks = kept.view(rows // tile.rows, tile.rows, columns // tile.columns, tile.columns).float()
            assert set(blocks.mean(dim=(1, 3)).unique().tolist()) <= {0.0, 1.0}


# Left out: 2:4 by gradients of one step, where INC's own hooks end up to 6 points off their target.
@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (kind, pattern)
        for kind in ("magnitude", "snip", "snip_momentum", "gradient_sensitivity")
        for pattern in ("tile_pattern_1x1", "tile_pattern_4x1", "2:4")
        if pattern != "2:4" or kind in ("magnitude", "snip_momentum")
    ],
)
def test_incs_own_whole_pruner_ends_at_the_same_sparsity(toy, kind, pattern):
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from neural_compressor.config import WeightPruningConfig
    from neural_compressor.training import prepare_pruning

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    make, batches = toy
    model = make()
    matrices = prunable_matrices(model)
    config = WeightPruningConfig(
        pruning_configs=[{}],
        op_names=["encoder"],
        excluded_op_names=["pooler", "classifier"],
        target_sparsity=PATTERNS[pattern],
        pruning_type={"gradient_sensitivity": "gradient"}.get(kind, kind),
        pattern=pattern.removeprefix("tile_pattern_"),
        pruning_scope="local",
        start_step=2,
        end_step=END,
        pruning_frequency=2,
    )
    optimizer = optimizer_of(model)
    theirs = prepare_pruning(model, config, optimizer)
    theirs.on_train_begin()
    for step in range(STEPS):
        theirs.on_step_begin(step)
        model(**batches[step]).loss.backward()
        theirs.on_before_optimizer_step()
        optimizer.step()
        theirs.on_after_optimizer_step()
        optimizer.zero_grad()
    compression = {"pattern": pattern, "target_sparsity": PATTERNS[pattern], "pruners": [{"prune_type": kind}]}
    _, ours = run(toy, pruning("inc", **compression))
    for name, share in ours.mask.per_matrix().items():
        weight = matrices[name].weight
        assert share == pytest.approx(float((weight == 0).float().mean()), abs=1e-3)


@pytest.mark.parametrize("backend", ["inc", "magnitude"])
def test_snip_goes_by_weight_times_gradient_and_not_by_weight(toy, backend):
    make, batches = toy
    model = make()
    matrices = prunable_matrices(model)
    settings = pruning(backend, start_step=1, end_step=1, target_sparsity=0.5, pruners=[{"prune_type": "snip"}])
    sparsifier = make_sparsifier(settings, matrices, 0)
    model(**batches[0]).loss.backward()
    scores = {name: (m.weight * m.weight.grad).abs().detach().clone() for name, m in matrices.items()}
    sparsifier.before_optimizer_step()
    sparsifier.before_step(1)
    for name, kept in sparsifier.mask.tensors.items():
        assert scores[name][kept].min() >= scores[name][~kept].max()


def test_momentum_remembers_earlier_gradients(toy):
    masks = {}
    for kind in ("snip", "snip_momentum"):
        _, sparsifier = run(toy, pruning("inc", target_sparsity=0.5, pruners=[{"prune_type": kind}]))
        masks[kind] = sparsifier.mask.tensors
    assert any((masks["snip"][n] != masks["snip_momentum"][n]).any() for n in masks["snip"])


@pytest.mark.parametrize("backend", ["inc", "magnitude"])
def test_group_lasso_adds_its_penalty_to_the_gradient_block_by_block(toy, backend):
    make, batches = toy
    gradients = []
    for alpha in (0.0, 0.25):
        model = make()
        matrices = prunable_matrices(model)
        lasso = {"prune_type": "group_lasso", "parameters": {"alpha": alpha}}
        sparsifier = make_sparsifier(pruning(backend, pattern="tile_pattern_4x1", pruners=[lasso]), matrices, 0)
        model(**batches[0]).loss.backward()
        sparsifier.before_optimizer_step()
        gradients.append({name: module.weight.grad for name, module in matrices.items()})
    name, module = next(iter(matrices.items()))
    for row in range(4):
        norm = sum(float(module.weight[4 + i, 3]) ** 2 for i in range(4)) ** 0.5
        expected = 0.25 * float(module.weight[4 + row, 3]) / norm
        assert float((gradients[1][name] - gradients[0][name])[4 + row, 3]) == pytest.approx(expected, rel=1e-4)


def test_gradient_types_that_should_prune_before_any_gradient_are_refused_before_training(toy):
    settings = pruning("inc", start_step=0, initial_sparsity=0.3, pruners=[{"prune_type": "snip"}])
    with pytest.raises(UserError, match="none are available before step 0"):
        make_sparsifier(settings, prunable_matrices(toy[0]()), 0)


# --- where scores are equal, and counts do not come out even ---


def few_values(shape, seed):
    """Weights or gradients of 16 values, so that each of them is there many times; zero is one of them."""
    return torch.randint(-7, 9, shape, generator=torch.Generator().manual_seed(seed)).float() / 8


def ended(settings, layers):
    """Prunes layers to the end, with gradients of few values, and without learning anything."""
    sparsifier = make_sparsifier(settings, layers, 0)
    for step in range(STEPS):
        sparsifier.before_step(step)
        for number, layer in enumerate(layers.values()):
            layer.weight.grad = few_values(layer.weight.shape, 100 * step + number)
        sparsifier.before_optimizer_step()
        sparsifier.after_optimizer_step()
    return sparsifier


@pytest.mark.parametrize("domain", ["local", "global"])
@pytest.mark.parametrize(("backend", "kind", "pattern"), CASES)
def test_equal_scores_do_not_make_the_sparsity_miss(backend, kind, pattern, domain):
    layers = {"a.weight": nn.Linear(96, 64), "b.weight": nn.Linear(64, 96)}
    for number, layer in enumerate(layers.values()):
        layer.weight.data = few_values(layer.weight.shape, number)
    compression = {"pattern": pattern, "target_sparsity": PATTERNS[pattern], "prune_domain": domain}
    (pruner,) = ended(pruning(backend, pruners=[{"prune_type": kind}], **compression), layers).pruners_with_schedule
    # In a global domain, whole blocks of 16 come no nearer to the target than 16 of the 12,288 weights.
    check = check_target(pruner.section, pruner.mask)
    assert check.ok or (domain == "global" and check.measured < 16 / 12288), check


@pytest.mark.parametrize("backend", ["inc", "magnitude", "nncf"])
def test_a_matrix_with_more_zeros_than_the_target_gets_the_mask_of_the_target(backend):
    layer = nn.Linear(100, 40)
    layer.weight.data[:, ::2] = 0.0
    sparsifier = ended(pruning(backend, target_sparsity=0.3), {"w": layer})
    assert sparsifier.mask.sparsity() == pytest.approx(0.3, abs=1e-3)
    assert sparsifier.mask.tensors["w"][:, 1::2].all()  # all that went were zeros already


@pytest.mark.parametrize("backend", ["inc", "magnitude"])
@pytest.mark.parametrize(
    ("pattern", "target", "shape"),
    [("tile_pattern_16x16", 0.29, (320, 320)), ("1:3", 0.3333333333, (12, 12))],
    ids=["0.29 * 400 is 115.99999999999999", "1:3 in ten digits"],
)
def test_counts_are_rounded_as_check_foretells_them(backend, pattern, target, shape):
    layer = nn.Linear(shape[1], shape[0])
    (pruner,) = ended(pruning(backend, pattern=pattern, target_sparsity=target), {"w": layer}).pruners_with_schedule
    assert check_target(pruner.section, pruner.mask).measured < 1e-6


# --- several pruners ---

SEVERAL = [
    {"names": ["attention"], "exclude_names": [r"layer\.1\..*value"], "target_sparsity": 0.9},
    {"names": [r"layer\.0\.(intermediate|output)"], "pattern": "2:4", "target_sparsity": 0.5, "prune_type": "snip"},
    {"target_sparsity": 0.75, "pattern": "tile_pattern_4x1", "exclude_names": [r"layer\.1\..*value"]},
]


@pytest.mark.parametrize("backend", ["inc", "magnitude"])
def test_several_pruners_reach_each_its_own_target_on_its_own_matrices(toy, backend):
    _, sparsifier = run(toy, pruning(backend, pruners=SEVERAL))
    shares = sparsifier.mask.per_matrix()
    assert not any("layer.1.attention.self.value" in name for name in shares)
    assert len(shares) == 11
    for name, share in shares.items():
        wanted = 0.9 if ".attention." in name else 0.5 if "layer.0" in name else 0.75
        assert share == pytest.approx(wanted, abs=1e-3), name


def test_a_lock_and_a_pruner_in_one_recipe_keep_and_make_zeros(toy):
    make, batches = toy
    model = make()
    matrices = prunable_matrices(model)
    locked = {name for name in matrices if "layer.0" in name}
    with torch.no_grad():
        for name in locked:
            matrices[name].weight[torch.rand_like(matrices[name].weight) < 0.6] = 0.0
    zeros = {name: matrices[name].weight == 0 for name in locked}
    pruners = [{"prune_type": "pattern_lock", "names": [r"layer\.0\."]}, {"target_sparsity": 0.8}]
    sparsifier = make_sparsifier(pruning("inc", TaskPruning, pruners=pruners), matrices, 0)
    train(model, sparsifier, batches, optimizer_of(model))
    for name, module in matrices.items():
        if name in locked:
            assert torch.equal(module.weight == 0, zeros[name])
        else:
            assert float((module.weight == 0).float().mean()) == pytest.approx(0.8, abs=1e-3)


def test_a_lock_on_dense_matrices_is_the_user_s_error(toy):
    model = toy[0]()
    settings = pruning("inc", TaskPruning, pruners=[{"prune_type": "pattern_lock", "names": ["attention"]}])
    with pytest.raises(UserError, match="matrices without zeros"):
        make_sparsifier(settings, prunable_matrices(model), 0)


def test_the_learning_rate_is_rewound_only_where_all_prune_at_the_same_steps(toy):
    model = toy[0]()
    matrices = prunable_matrices(model)
    alike = make_sparsifier(pruning("magnitude", pruners=SEVERAL), matrices, 0)
    assert (alike.rewinding().schedule.start, alike.rewinding().schedule.end) == (2, END)
    other = [SEVERAL[0] | {"end_step": 4}, *SEVERAL[1:]]
    with pytest.raises(UserError, match="no common learning rate to rewind to"):
        make_sparsifier(pruning("magnitude", pruners=other), matrices, 0).rewinding()
    assert make_sparsifier(pruning("magnitude", TaskPruning, pruners=other), matrices, 0).rewinding() is None


def test_ramps_in_epochs_become_steps(toy):
    model = toy[0]()
    compression = {"start_epoch": 1, "end_epoch": 3, "update_frequency": 0.5}
    settings = Pruning.model_validate({"backend": "magnitude", "approach": {"weight_compression": compression}})
    (pruner,) = make_sparsifier(settings, prunable_matrices(model), 10).pruners_with_schedule
    assert (pruner.schedule.start, pruner.schedule.end, pruner.schedule.frequency) == (10, 30, 5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("backend", ["inc", "magnitude"])
def test_a_resumed_run_ends_with_the_same_weights(toy, backend, kind, tmp_path):
    settings = pruning(backend, pattern="tile_pattern_4x1", target_sparsity=0.75, pruners=[{"prune_type": kind}])
    whole, _ = run(toy, settings)

    make, batches = toy
    model = make()
    sparsifier = make_sparsifier(settings, prunable_matrices(model), 0)
    optimizer = optimizer_of(model)
    train(model, sparsifier, batches, optimizer, range(5))
    save_file({k: v.contiguous() for k, v in sparsifier.state_dict().items()}, tmp_path / "state.safetensors")
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())

    model = make()
    sparsifier = make_sparsifier(settings, prunable_matrices(model), 0)
    model.load_state_dict(weights)
    sparsifier.load_state_dict(load_file(tmp_path / "state.safetensors"))
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(moments)
    train(model, sparsifier, batches, optimizer, range(5, STEPS))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("backend", ["inc", "magnitude"])
def test_no_matrix_goes_beyond_the_cap_in_a_global_domain_and_the_whole_is_on_target(toy, backend):
    make, batches = toy
    model = make()
    matrices = prunable_matrices(model)
    with torch.no_grad():
        for name, module in matrices.items():
            module.weight *= 0.01 if "layer.0.attention" in name else 1.0
    compression = {"prune_domain": "global", "target_sparsity": 0.6, "max_sparsity_ratio_per_layer": 0.8}
    sparsifier = make_sparsifier(pruning(backend, **compression), matrices, 0)
    train(model, sparsifier, batches, optimizer_of(model))
    shares = sparsifier.mask.per_matrix()
    assert max(shares.values()) <= 0.8 + 1e-3
    assert max(shares.values()) > 0.79
    assert sparsifier.mask.sparsity() == pytest.approx(0.6, abs=1e-3)
