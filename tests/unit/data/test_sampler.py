"""The order of examples: every one once in each pass, the same again whatever was read before."""

import numpy as np
import pytest

from toolkit.data.sampler import LengthGroupedDataset


def stream(n=37, batch=4, steps=60, accumulation=1, seed=0):
    lengths = np.random.default_rng(9).integers(3, 60, size=n)
    return LengthGroupedDataset(
        lengths,
        lambda i, rng: {"i": i, "draw": rng.random()},
        batch_size=batch,
        steps=steps,
        accumulation=accumulation,
        seed=seed,
    )


def test_a_run_sees_every_example_equally_often():
    made = stream(n=64, batch=4, steps=64)
    counts = np.bincount([made[k]["i"] for k in range(len(made))], minlength=64)
    assert (counts == 4).all()


@pytest.mark.parametrize(("examples", "batch"), [(24, 32), (100, 32), (300, 32), (767, 32), (1000, 16)])
def test_each_epoch_of_few_examples_has_all_of_them_and_few_twice_in_a_batch(examples, batch):
    for epochs, accumulation in ((1, 1), (3, 1), (2, 3)):
        steps = epochs * -(-examples // (batch * accumulation))
        made = stream(n=examples, batch=batch, steps=steps, accumulation=accumulation)
        batches = np.array([made.index(k) for k in range(len(made))]).reshape(-1, batch)
        counts = np.bincount(np.concatenate(batches), minlength=examples)
        assert counts.min() >= epochs
        assert counts.max() <= -(-len(made) // examples)
        distinct = np.mean([len(set(indices)) for indices in batches])
        assert distinct > 0.9 * min(examples, batch)


def test_an_item_is_the_same_whatever_was_read_before():
    straight, jumping = stream(), stream()
    items = [straight[k] for k in range(len(straight))]
    for k in (200, 3, 151, 3, 0, 239):
        assert jumping[k] == items[k]


def test_seeds_give_different_orders_and_passes_differ():
    a, b = stream(n=64), stream(n=64, seed=1)
    assert [a.index(k) for k in range(64)] != [b.index(k) for k in range(64)]
    assert [a.index(k) for k in range(64)] != [a.index(k) for k in range(64, 128)]
    assert a[0]["draw"] != a[64 * 4 - 1]["draw"]


def test_batches_hold_examples_of_like_length():
    made = stream(n=640, batch=8, steps=80)
    lengths = made._lengths
    spread = [np.ptp(lengths[[made.index(k) for k in range(b * 8, b * 8 + 8)]]) for b in range(80)]
    shuffled = [np.ptp(np.random.default_rng(b).choice(lengths, 8)) for b in range(80)]
    assert np.mean(spread) < 0.25 * np.mean(shuffled)


def test_little_of_a_batch_is_padding_where_lengths_are_those_of_real_sentences():
    lengths = np.random.default_rng(0).lognormal(2.3, 0.6, 4096).clip(3, 64).astype(int)  # of SST-2's, about

    def padding(batches):
        return 1 - lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches)

    made = LengthGroupedDataset(lengths, lambda index, rng: {}, batch_size=32, steps=128, accumulation=1, seed=0)
    batches = np.array([made.index(k) for k in range(4096)]).reshape(128, 32)
    assert sorted(batches.flat) == list(range(4096))
    assert padding(batches) < 0.2
    assert padding(np.random.default_rng(1).permutation(4096).reshape(128, 32)) > 0.5  # what there is to gain


def test_step_lengths_cover_all_forward_passes_of_a_step():
    made = stream(batch=4, accumulation=3, steps=10)
    wanted = [made._lengths[made.index(k)] for k in range(12, 24)]
    assert made.step_lengths(1).tolist() == wanted
    assert made[12]["step"] == 1
    assert made[23]["step"] == 1
