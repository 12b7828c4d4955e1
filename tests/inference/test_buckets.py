"""Shapes are few and hold their images."""

import numpy as np
import pytest

from deeplab_jax.inference.buckets import LIMIT, Buckets, plan_buckets


def many_sizes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(map(int, size)) for size in rng.integers(1, 700, (count, 2))]


@pytest.mark.parametrize("count", [1, 10, 16, 17, 120, 2000])
def test_planned_shapes_are_few_and_hold_their_images(count):
    sizes = many_sizes(count)
    plan = plan_buckets(sizes)
    assert set(plan) == set(sizes)
    assert len(set(plan.values())) <= LIMIT <= 20
    for size, shape in plan.items():
        assert size[0] <= shape.size[0]
        assert size[1] <= shape.size[1]
        assert shape.is_masked or size == shape.size
    if count <= LIMIT:
        assert not any(shape.is_masked for shape in plan.values())
    assert plan == plan_buckets(sizes[::-1])
    padded = sum(np.prod(plan[size].size) for size in sizes)
    assert padded < 1.6 * sum(np.prod(size) for size in sizes)


def test_sizes_that_are_not_planned_keep_theirs_until_shapes_are_many():
    buckets = Buckets()
    sizes = sorted(set(many_sizes(300)))
    shapes = [buckets.shape(size) for size in sizes]
    exact = [shape for shape in shapes if not shape.is_masked]
    assert [shape.size for shape in exact] == sizes[:LIMIT]
    for size, shape in zip(sizes[LIMIT:], shapes[LIMIT:], strict=True):
        assert shape.size[0] >= size[0]
        assert shape.size[1] >= size[1]
        assert shape.size[0] % 32 == shape.size[1] % 32 == 0
    assert [buckets.shape(size) for size in sizes] == shapes


def test_sizes_that_come_one_by_one_share_few_shapes():
    for low, high in ((100, 1000), (300, 3000), (1, 700)):
        rng = np.random.default_rng(5)
        sizes = [tuple(map(int, size)) for size in rng.integers(low, high, (1000, 2))]
        buckets = Buckets()
        shapes = [buckets.shape(size) for size in sizes]
        assert len(set(shapes)) <= 3 * LIMIT
        padded = sum(np.prod(shape.size) for shape in shapes)
        assert padded < 2 * sum(np.prod(size) for size in sizes)


def test_plans_share_shapes():
    rng = np.random.default_rng(5)
    sizes = [tuple(map(int, size)) for size in rng.integers(100, 1000, (500, 2))]
    buckets = Buckets()
    buckets.plan(sizes[:100])
    first = [buckets.shape(size) for size in sizes[:100]]
    assert len(set(first)) <= LIMIT
    for start in (100, 200, 300, 400):
        buckets.plan(sizes[start : start + 100])
    shapes = [buckets.shape(size) for size in sizes]
    assert shapes[:100] == first
    assert len(set(shapes)) <= 3 * LIMIT
    height, width = max(shape for shape in first if shape.is_masked).size
    other = Buckets()
    other.plan(sizes[:100])
    other.plan([(height - 1, width - 1), (height, width)])
    assert {other.shape((height - 1, width - 1)), other.shape((height, width))} <= set(first)
