"""What a rank holds, by part."""

from __future__ import annotations

import pytest

from and_dist.method.discovery import check_discovery
from and_dist.method.faiss_search import GPU_SCRATCH_BYTES
from and_dist.planning.costs import COSTS
from and_dist.planning.memory import (
    FAISS_SCRATCH,
    footprint_of,
    refused_discovery,
    smallest_budget_mb,
)
from and_dist.planning.plan import (
    make_plan,
)
from tests.unit.planning.slide_rule import config, device, job

P = COSTS["tiny"].parameters


def test_the_shard_shrinks_with_the_world_and_the_table_does_not() -> None:
    for ranks, shard in ((1, 1000), (3, 334), (4, 250)):
        footprint = footprint_of(job(1000, ranks, "bank.dtype=float16"))
        assert footprint.bytes_of("shard of the bank") == shard * 128 * 2
        # a neighbour, an entropy and, in the last round, an anchor for every row
        assert footprint.bytes_of("neighbours, entropies, anchors") == 8 * 3 * 1000
    many = footprint_of(job(1000, 4, "curriculum.neighbours=10"))
    assert many.bytes_of("neighbours, entropies, anchors") == 8 * 12 * 1000


def test_weights_gradients_and_momentum_lie_there_once_each() -> None:
    for ranks in (1, 4):
        assert footprint_of(job(1000, ranks)).bytes_of("weights, gradients, momentum") == 12 * P
    without = footprint_of(job(1000, 1, "optim.momentum=0", "optim.nesterov=false"))
    assert without.bytes_of("weights, gradients, momentum") == 8 * P
    longer = footprint_of(job(1000, 1, "encoder.feature_dim=129"))
    assert longer.bytes_of("weights, gradients, momentum") == 12 * (P + 513)


def test_adamw_keeps_two_numbers_of_each_parameter() -> None:
    footprint = footprint_of(job(1000, 1, "optim.name=adamw"))
    assert footprint.bytes_of("weights, gradients, momentum") == 16 * P
    copied = footprint.bytes_of("checkpoint: copy of all")
    assert copied - footprint_of(job(1000, 1)).bytes_of("checkpoint: copy of all") == 4 * P


def test_parts_of_a_batch_hold_the_activations_of_a_part() -> None:
    whole, parts = (
        footprint_of(job(1000, 2, f"optim.accumulate={count}", "optim.batch_size=46"))
        for count in (1, 5)
    )
    # 23 images of a rank, in parts of five
    held = parts.bytes_of("activations") / whole.bytes_of("activations")
    assert held == pytest.approx(5 / 23)
    name = "queries and partitions"
    assert parts.bytes_of(name) < whole.bytes_of(name)


def test_the_largest_gradient_is_held_twice_where_there_are_others_to_send_it_to() -> None:
    name = "largest gradient, on its way into its bucket"
    alone, beside = (footprint_of(job(1000, ranks)).bytes_of(name) for ranks in (1, 4))
    assert alone == 0
    assert beside == 4 * COSTS["tiny"].largest_parameter


def test_activations_follow_the_local_batch_and_the_precision() -> None:
    cost = COSTS["tiny"]
    wide, halved, narrow = (
        footprint_of(job(1000, ranks, *overrides)).bytes_of("activations")
        for ranks, overrides in ((1, ()), (2, ()), (1, ("encoder.precision=bfloat16",)))
    )
    assert wide == 48 * (cost.kept_float32 + 2 * 4 * cost.largest)
    assert halved == wide / 2
    assert narrow == 48 * (cost.kept_bfloat16 + 2 * 2 * cost.largest)


def test_every_rank_copies_all_it_holds_and_the_disk_takes_it_once() -> None:
    table, weights = 24 * 1000, 8 * P
    plan = make_plan(job(1000, 4))
    copy = weights + table + 250 * 512
    assert plan.footprint.bytes_of("checkpoint: copy of all") == copy
    assert plan.checkpoint_bytes == weights + table + 1000 * 512


def test_discovery_holds_two_tables_and_its_budget() -> None:
    footprint = footprint_of(job(10_000, 2, "discovery.memory_mb=100"))
    discovery = footprint.phase("discovery")
    named = {part.name: part.bytes for part in discovery.parts}
    assert named["discovery's budget"] == 100e6
    assert named["the next round's table"] == 24 * 10_000
    assert named["index of the search"] == 0
    narrow = footprint_of(job(10_000, 2, "discovery.search=IVF64,Flat"))
    assert narrow.bytes_of("index of the search") == 5_000 * 512
    alone = footprint_of(job(10_000, 2, "method=instance", "curriculum.rounds=0"))
    assert "discovery" not in {phase.name for phase in alone.phases}


def test_without_gpus_there_is_one_memory_and_with_them_two() -> None:
    here = footprint_of(job(1000, 2))
    assert here.peak("device") == here.peak("host")
    there = footprint_of(job(1000, 2, hardware=device(kind="gpu")))
    training = there.phase("training")
    on_gpu = {part.name for part in there.parts(training, "device")}
    on_host = {part.name for part in there.parts(training, "host")}
    assert "shard of the bank" in on_gpu
    assert "checkpoint: copy of all" in on_host
    assert "faiss's scratch" in on_gpu
    assert on_gpu & on_host == {"framework"}


def test_faiss_takes_memory_of_a_gpu_alone() -> None:
    """Its tiles of similarities are two of 512 queries by as many rows, at most 1 GiB."""
    assert FAISS_SCRATCH == GPU_SCRATCH_BYTES
    here = footprint_of(job(10**6, 2))
    assert here.bytes_of("faiss's scratch") == here.bytes_of("faiss's tiles") == 0
    for rows, tile in ((1000, 4096 * 500), (10**6, 2**30)):
        there = footprint_of(job(rows, 2, hardware=device(kind="gpu")))
        assert there.bytes_of("faiss's scratch") == 2**28
        for phase in ("discovery", "evaluation"):
            parts = {part.name: part.bytes for part in there.phase(phase).parts}
            assert parts["faiss's tiles"] == tile
    blind = job(1000, 2, "method=instance", "data.test=null", hardware=device(kind="gpu"))
    assert footprint_of(blind).bytes_of("faiss's scratch") == 0


def test_discovery_takes_a_share_of_what_is_left_on_a_gpu() -> None:
    """The hardware has 1 GB, of which 0.1 GB are the framework's; a CPU gives 200 MB."""
    large = device(kind="gpu").model_copy(update={"memory_gb": 80.0})
    for hardware, budget in ((device(kind="gpu"), 200e6), (large, 7989e6), (device(), 200e6)):
        this = job(10_000, 2, hardware=hardware)
        assert footprint_of(this).bytes_of("discovery's budget") == budget


@pytest.mark.parametrize("search", ["Flat", "fused"])
def test_a_budget_is_refused_where_discovery_refuses_it(search: str) -> None:
    for rows in (1_000_000, 3_124_999, 3_125_001, 40_000_000):
        this = job(rows, 2, "discovery.memory_mb=64", f"discovery.search={search}")
        budget = this.config.discovery.memory_bytes
        if refused_discovery(this):
            with pytest.raises(ValueError, match="is too little"):
                check_discovery(rows, 128, 2, 1, search, budget)
            check_discovery(rows, 128, 2, 1, search, 1_000_000 * smallest_budget_mb(this))
        else:
            check_discovery(rows, 128, 2, 1, search, budget)


def test_what_is_asked_for_takes_memory() -> None:
    plain = footprint_of(job(1000, 2))
    for option, bytes_more in (
        ("data.cache_gb=3", 1.5e9),
        ("optim.compression=powersgd", 8 * P),
        ("optim.compression=float16", 2 * P),
    ):
        phase = "training"
        more = footprint_of(job(1000, 2, option))
        grown = more.total(more.phase(phase)) - plain.total(plain.phase(phase))
        assert grown == pytest.approx(bytes_more)
    features = {
        option: footprint_of(job(1000, 2, *option)).bytes_of("features of the shard")
        for option in ((), ("evaluation.baselines=false",))
    }
    assert features[()] == 500 * 3 * config().data.image_size ** 2 * 4
    assert features[("evaluation.baselines=false",)] == 500 * 512


def test_a_budget_that_training_refuses_is_planned_as_it_would_take_it() -> None:
    refused = job(40_000_000, 2, "discovery.memory_mb=64")
    assert refused_discovery(refused)
    budget = footprint_of(refused).bytes_of("discovery's budget")
    assert budget == 1e6 * smallest_budget_mb(refused)
