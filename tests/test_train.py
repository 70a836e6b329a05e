"""The schedule of train.py: learning rates, batches, and when codebooks are updated."""
import numpy as np
import pytest

from train import Schedule, learning_rate


def test_learning_rate_halves_every_300_steps():
    assert [learning_rate(0.0003, step) for step in (0, 299, 300, 599, 600)] == [
        0.0003, 0.0003, 0.00015, 0.00015, 0.000075]


def test_flickr_updates_its_codebooks_after_the_step_printed_as_147():
    schedule = Schedule(images=18_573, batch_size=256, seed=0)
    assert [step + 1 for step in range(800) if schedule.updates_after(step)] == [147, 293, 439, 585, 731]


@pytest.mark.parametrize(("images", "batch"), [(100, 30), (100, 100), (90, 30), (7, 256), (1, 1), (257, 256)])
def test_an_epoch_is_full_batches_of_one_permutation_and_an_update_begins_a_fresh_one(images, batch):
    schedule = Schedule(images, batch, seed=1)
    full, seen = min(batch, images), []
    per_epoch = images // full
    for step in range(3 * schedule.period + 2):
        rows = schedule.rows(step)
        assert len(rows) == full
        assert not set(rows) & set(seen), f"step {step} repeats an image within its epoch"
        seen.extend(rows)
        if schedule.updates_after(step) or len(seen) == per_epoch * full:
            seen = []


def test_another_seed_is_another_permutation():
    first, second = (Schedule(100, 100, seed).rows(0) for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, Schedule(100, 100, 0).rows(0))
