"""Accelerators and the cluster made of them: a small table, every number with its source.

To add one, append to :data:`ACCELERATORS`. Rates are dense (no structured sparsity), bandwidths per direction.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from distmoe.errors import ConfigError, ParallelError

GIB = 2**30
CPU = "cpu"  # name of the accelerator that is this machine


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device and its links.

    Attributes:
        memory: Bytes.
        low_flops: FLOP/s of matrix products in bf16 (fp16 on V100).
        fp32_flops: FLOP/s in fp32, without TF32.
        hbm: Bytes per second of its own memory.
        inside: Bytes per second to another device of the node.
        between: Bytes per second to another node, its share of the node's network cards.
        source: Where the numbers come from.
    """

    name: str
    memory: float
    low_flops: float
    fp32_flops: float
    hbm: float
    inside: float
    between: float
    source: str

    @property
    def device_type(self) -> str:
        return "cpu" if self.name == CPU else "cuda"

    @property
    def usable(self) -> float:
        """Bytes that a run can use: not the context, the kernels' workspaces and what is fragmented."""
        return 0.92 * self.memory

    def flops(self, precision: str) -> float:
        return self.fp32_flops if precision == "fp32" else self.low_flops


# Seconds until the first byte of a message arrives, launch included. Assumed: typical of NCCL on NVLink and InfiniBand.
LATENCY_INSIDE, LATENCY_BETWEEN = 10e-6, 25e-6

_SHEET = "NVIDIA data sheet"
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(
        name="v100", memory=32 * GIB, low_flops=125e12, fp32_flops=15.7e12, hbm=0.9e12, inside=150e9, between=12.5e9,
        source=f"{_SHEET} V100 SXM2 32 GB; network 100 Gb/s per GPU assumed",
    ),
    Accelerator(
        name="a100", memory=80 * GIB, low_flops=312e12, fp32_flops=19.5e12, hbm=2.0e12, inside=300e9, between=25e9,
        source=f"{_SHEET} A100 SXM4 80 GB; network 200 Gb/s per GPU assumed",
    ),
    Accelerator(
        name="l40s", memory=48 * GIB, low_flops=362e12, fp32_flops=91.6e12, hbm=0.864e12, inside=32e9, between=12.5e9,
        source=f"{_SHEET} L40S, PCIe 4.0 x16; network 100 Gb/s per GPU assumed",
    ),
    Accelerator(
        name="h100", memory=80 * GIB, low_flops=989e12, fp32_flops=67e12, hbm=3.35e12, inside=450e9, between=50e9,
        source=f"{_SHEET} H100 SXM5 80 GB; network 400 Gb/s per GPU assumed",
    ),
    Accelerator(
        name="h200", memory=139 * GIB, low_flops=790e12, fp32_flops=67e12, hbm=4.3e12, inside=450e9, between=50e9,
        source="bf16 rate and memory bandwidth measured on one H200, the rest data sheet; network 400 Gb/s assumed",
    ),
    Accelerator(
        name="b200", memory=180 * GIB, low_flops=2250e12, fp32_flops=75e12, hbm=8.0e12, inside=900e9, between=50e9,
        source=f"{_SHEET} B200 (HGX); network 400 Gb/s per GPU assumed",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """Equal nodes with equal devices; rank ``r`` is on node ``r // per_node``.

    Forecasts take the cluster of data ranks, :meth:`of_data_ranks`; without tensor parallelism it is the same.
    """

    nodes: int
    per_node: int
    accelerator: Accelerator

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.per_node < 1:
            raise ConfigError(
                "a cluster has at least one node with one GPU",
                got=f"{self.nodes} nodes x {self.per_node} GPUs",
                expected="positive numbers",
                remedy="correct --nodes or --gpus_per_node",
            )

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.per_node

    def of_data_ranks(self, tensor: int) -> Cluster:
        """The cluster in which a data rank, with its T tensor neighbours, is one place.

        Raises:
            ParallelError: If neighbours would lie on two nodes.
        """
        if self.per_node % tensor:
            raise ParallelError(
                "a forecast takes tensor neighbours to lie inside a node",
                got=f"parallel.tensor={tensor} on nodes of {self.per_node} GPUs",
                expected=f"a divisor of {self.per_node}",
                remedy="change parallel.tensor, or --gpus_per_node",
            )
        return replace(self, per_node=self.per_node // tensor)

    def node_of(self, rank: int) -> int:
        return rank // self.per_node


def accelerator(name: str, *, memory_gib: float | None = None) -> Accelerator:
    """Returns an entry of the table; ``cpu`` measures this machine, one rank with its threads.

    Args:
        name: Of the entry.
        memory_gib: Memory of a variant, such as an A100 of 40 GiB; None: the entry's.

    Raises:
        ConfigError: If there is no such entry, or the memory is not positive.
    """
    if memory_gib is not None:
        if memory_gib <= 0:
            raise ConfigError(
                "a device has memory", got=f"--gpu_memory {memory_gib:g}", expected="GiB above 0", remedy="correct it"
            )
        found = accelerator(name)
        return replace(found, memory=memory_gib * GIB, source=f"{found.source}; memory as given")
    if name == CPU:
        return measure_cpu()
    for one in ACCELERATORS:
        if one.name == name:
            return one
    raise ConfigError(
        "no such accelerator",
        got=name,
        expected=" | ".join([*(one.name for one in ACCELERATORS), CPU]),
        remedy="correct --gpu, or add a row with its source to distmoe/forecast/hardware.py",
    )


def measure_cpu(*, size: int = 768, seconds: float = 0.2) -> Accelerator:
    """A CPU as an accelerator: its fp32 rate and copy bandwidth, measured for a moment with torch's threads.

    Links are those of gloo over a loopback or veth interface, about 1.3 Gbit/s.
    """
    left, right = torch.randn(size, size), torch.randn(size, size)

    def best(action: object, work: float) -> float:
        top, end = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            action()  # type: ignore[operator]
            top = max(top, work / (time.perf_counter() - began))
        return top

    flops = best(lambda: left @ right, 2.0 * size**3)
    block = torch.empty(2**24)
    copied = best(lambda: block.clone(), 2.0 * block.numel() * block.element_size())
    return Accelerator(
        name=CPU, memory=_host_memory(), low_flops=flops, fp32_flops=flops, hbm=copied, inside=0.16e9, between=0.16e9,
        source="rate and bandwidth measured now on this machine; links: gloo, 1.3 Gbit/s",
    )  # fmt: skip


def _host_memory() -> float:
    import os

    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
