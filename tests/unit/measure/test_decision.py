"""The variant to deploy, and when compression has failed, on made-up measurements."""

import pytest

from toolkit.core.artifacts import Artifact, Manifest
from toolkit.measure.decision import Candidate, Limits, SameForAll, decide
from toolkit.recipe import VARIANTS, AccuracyCriterion

# Score, milliseconds.
GOOD = {
    "dense-fp32": (0.90, 20.0),
    "dense-int8": (0.895, 10.0),
    "sparse-fp32": (0.89, 19.0),
    "sparse-int8": (0.887, 10.1),
    "sparse-engine-int8": (0.886, 5.0),
}


def of(measured, chance=None, spread=0.1):
    return [
        Candidate(name, VARIANTS[name], score, () if ms is None else (ms - spread, ms, ms + spread), chance)
        for name, (score, ms) in measured.items()
    ]


def test_the_fastest_variant_that_is_accurate_enough_is_chosen():
    found = decide(of(GOOD), Limits())
    assert (found.chosen.name, found.reference.name, found.failure) == ("sparse-engine-int8", "dense-fp32", None)
    assert found.ties == ()
    assert [c.name for c in found.accepted][:3] == ["sparse-engine-int8", "dense-int8", "sparse-int8"]


def test_ties_are_within_the_range_over_rounds():
    found = decide(of({n: GOOD[n] for n in ("dense-fp32", "dense-int8", "sparse-int8")}), Limits())
    assert (found.chosen.name, [c.name for c in found.ties], found.failure) == ("dense-int8", ["sparse-int8"], None)


def test_compression_that_a_dense_variant_beats_in_every_round_has_failed():
    found = decide(of(GOOD | {"sparse-engine-int8": (0.886, 12.0), "sparse-int8": (0.887, 11.0)}), Limits())
    assert (found.failure, found.chosen.name) == ("slower", "dense-int8")
    assert (found.rival.name, found.best.name) == ("dense-int8", "sparse-int8")


def test_compression_that_loses_too_much_has_failed():
    lossy = {n: (0.80 if n.startswith("sparse") else s, ms) for n, (s, ms) in GOOD.items()}
    found = decide(of(lossy), Limits())
    assert (found.failure, found.chosen.name) == ("loss", "dense-int8")
    assert found.best.name == "sparse-fp32"


def test_compression_at_chance_has_failed_even_within_its_limit():
    found = decide(of({n: (0.51 if "sparse" in n else 0.9, ms) for n, (_, ms) in GOOD.items()}, 0.53), Limits())
    assert (found.failure, found.chosen.name) == ("at chance", "dense-int8")
    wide = decide(of({n: (0.5, ms) for n, (_, ms) in GOOD.items()}, 0.5), Limits())
    assert (wide.failure, wide.chosen, wide.accepted) == ("reference at chance", None, ())


def test_nothing_is_chosen_where_the_reference_is_at_chance_whatever_the_others_reach():
    of_reference = of({"dense-fp32": (0.5, 20.0)}, 0.5)
    found = decide([*of_reference, *of({"sparse-int8": (0.6, 10.0)}, 0.5)], Limits())
    assert (found.failure, found.chosen, found.accepted) == ("reference at chance", None, ())


def test_sparse_variants_alone_at_chance_are_no_reference_that_failed():
    assert decide(of({n: (0.5, ms) for n, (_, ms) in GOOD.items() if "sparse" in n}, 0.5), Limits()).failure == (
        "at chance"
    )


def test_without_a_dense_variant_the_best_one_is_the_reference():
    found = decide(of({n: v for n, v in GOOD.items() if "sparse" in n}), Limits())
    assert (found.reference.name, found.chosen.name, found.failure) == ("sparse-fp32", "sparse-engine-int8", None)


def test_without_latency_nothing_is_chosen_and_nothing_failed():
    found = decide(of({n: (s, None) for n, (s, _) in GOOD.items()}), Limits())
    assert (found.chosen, found.failure, len(found.accepted)) == (None, None, len(GOOD))
    assert decide(of({"dense-fp32": (0.9, None), "sparse-int8": (0.5, None)}), Limits()).failure == "loss"


@pytest.mark.parametrize(("int8", "ms", "failure"), [(0.9, 10.0, None), (0.9, 30.0, "slower"), (0.7, 10.0, "loss")])
def test_of_a_dense_model_the_8_bits_are_the_compression(int8, ms, failure):
    assert decide(of({"dense-fp32": (0.9, 20.0), "dense-int8": (int8, ms)}), Limits()).failure == failure


def test_a_dense_variant_alone_is_chosen():
    found = decide(of({"dense-fp32": (0.9, 20.0)}), Limits())
    assert (found.chosen.name, found.failure) == ("dense-fp32", None)


def test_zeros_and_8_bits_may_lose_one_after_the_other():
    limits = Limits(AccuracyCriterion(relative=0.1), AccuracyCriterion(absolute=0.05))
    dense, floors = VARIANTS["dense-fp32"], {}
    for name, variant in VARIANTS.items():
        floors[name] = limits.floor(variant, dense, 0.9)
    assert floors["dense-fp32"] == 0.9
    assert floors["dense-int8"] == pytest.approx(0.85)
    assert floors["sparse-fp32"] == floors["sparse-engine-fp32"] == pytest.approx(0.81)
    assert floors["sparse-int8"] == floors["sparse-engine-int8"] == pytest.approx(0.76)
    assert limits.floor(VARIANTS["sparse-int8"], VARIANTS["sparse-fp32"], 0.8) == pytest.approx(0.75)
    assert SameForAll(AccuracyCriterion(relative=0.5)).floor(VARIANTS["sparse-int8"], dense, 0.8) == pytest.approx(0.4)


def test_a_loss_of_exactly_the_limit_is_accurate_enough():
    found = decide(
        of({"dense-fp32": (0.9, 20.0), "dense-int8": (0.89, 10.0)}), SameForAll(AccuracyCriterion(absolute=0.01))
    )
    assert found.chosen.name == "dense-int8"


def test_the_limits_are_those_of_the_recipe_and_the_defaults_of_a_run_without_any():
    def manifest(stage, **config):
        artifact = Artifact(kind="ir", path="x", sha256="")
        return Manifest(
            stage=stage, task="t", key="", config=config, inputs={}, seed=1, artifact=artifact, started="", seconds=0
        )

    own = manifest(
        "benchmark",
        transfer_tuning={"accuracy_criterion": {"relative": 0.3, "absolute": None}},
        quantize={"tuning": {"accuracy_criterion": {"relative": None, "absolute": 0.2}}},
    )
    assert Limits.of(own, None) == Limits(AccuracyCriterion(relative=0.3), AccuracyCriterion(absolute=0.2))
    assert Limits.of(None, manifest("export", quantize=own.config["quantize"])).int8 == AccuracyCriterion(absolute=0.2)
    assert Limits.of(manifest("benchmark", transfer_tuning=None, quantize=None), None) == Limits()
    assert Limits().zeros == AccuracyCriterion(relative=0.02)
