"""Process groups without torch.distributed; the real ones are in tests/distributed."""

from __future__ import annotations

import pytest

from distmoe.errors import ParallelError
from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import LayerHosting, ReplicaClass, create, single_process
from distmoe.tasks import TaskGrouping


def test_a_single_process_hosts_all_task_groups_and_exchanges_nothing() -> None:
    groups = single_process(TaskGrouping.from_partitions(3, [[[0, 1, 2]], [[0], [1, 2]]]))
    assert groups.hosting == (LayerHosting((0,), 0, 1, None), LayerHosting((0, 1), 0, 1, None))
    only = ReplicaClass("ep_size_1", (0, 1), (0,), (0,), None, None, uniform=True)
    assert groups.replica_classes == (only,)
    assert groups.alias == only
    assert groups.class_of(1) == only
    groups.destroy()


def test_a_dense_model_has_no_replica_class() -> None:
    groups = single_process(TaskGrouping(2, ()))
    assert (groups.hosting, groups.replica_classes, groups.alias) == ((), (), None)


def test_creation_before_torch_distributed_is_refused() -> None:
    placement = place(TaskGrouping.one_group(1, 1), [1], num_ranks=2, ep_size=1, mode="colocated")
    with pytest.raises(ParallelError, match=r"torch.distributed is not initialised\n +expected: 2 ranks"):
        create(placement)
