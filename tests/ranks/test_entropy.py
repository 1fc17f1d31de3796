"""The scan of all pairs against dense float64, at any world size and any cut into blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import World
from and_dist.method import entropy
from and_dist.method.entropy import PairScan, scan_pairs
from benchmarks.common.rank_pool import SIZES, RankError, RankPool
from tests import reference
from tests.ranks.scenes import build_scene, shard_of

LITTLE = 1
"""Bytes of memory that leave blocks of 64 rows."""
PLENTY = 200_000_000
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ENTROPY_BOUND = 2e-5
"""float32 rounds logits of up to 100 by 6e-6, and a row's largest decide its entropy."""
COSINE_BOUND = 2e-6


def scan_here(
    world: World, bank_ND: Tensor, temperature: float, memory_bytes: int, num_candidates: int = 0
) -> PairScan:
    bank = shard_of(bank_ND, world)
    return scan_pairs(bank, world, temperature, memory_bytes, num_candidates)


def scan_on(ranks: RankPool, size: int, bank_ND: Tensor, *arguments: float) -> PairScan:
    """The results of all ranks, one below the other: [N, ...]."""
    scans = ranks.run(size, scan_here, bank_ND, *arguments)
    return PairScan(*(torch.cat(parts) for parts in zip(*scans, strict=True)))


def random_rows(num_rows: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    rows_ND = torch.randn(num_rows, 16, generator=random, dtype=torch.float64)
    return functional.normalize(rows_ND, dim=1).to(dtype)


def of_many_norms(bank_ND: Tensor, smallest: float, largest: float) -> Tensor:
    """Norms in an order that puts small and large ones into every block."""
    order_N = torch.arange(len(bank_ND)) * 37 % len(bank_ND)
    norm_N = smallest + (largest - smallest) * order_N.double() / (len(bank_ND) - 1)
    return (bank_ND.double() * norm_N[:, None]).to(bank_ND.dtype)


def dense_cosines(bank_ND: Tensor) -> Tensor:
    """[N, N] in float64, 0 with a row of zeros, -inf of a row with itself."""
    unit_ND = functional.normalize(bank_ND.double(), dim=1)
    return (unit_ND @ unit_ND.T).fill_diagonal_(-torch.inf)


def assert_nearest(scan: PairScan, bank_ND: Tensor, num_candidates: int, bound: float) -> None:
    """The best C by value, and by row wherever no other comes within the bound."""
    cosine_NN = dense_cosines(bank_ND)
    count = min(num_candidates, len(bank_ND) - 1)
    wider_NX, order_NX = cosine_NN.topk(min(count + 1, len(bank_ND)), dim=1)
    rows_NC, similarity_NC = scan.rows_SC[:, :count], scan.similarity_SC[:, :count].double()
    assert scan.rows_SC.shape == (len(bank_ND), num_candidates)
    torch.testing.assert_close(similarity_NC, wider_NX[:, :count], rtol=0, atol=bound)
    torch.testing.assert_close(cosine_NN.gather(1, rows_NC), similarity_NC, rtol=0, atol=bound)
    for listed in rows_NC.tolist():
        assert len(set(listed)) == count
    gap_NC = wider_NX[:, :-1] - wider_NX[:, 1:]
    is_clear_N = (gap_NC[:, :count] > 2 * bound).all(dim=1)
    assert torch.equal(rows_NC[is_clear_N], order_NX[is_clear_N, :count])
    assert (scan.rows_SC[:, count:] == -1).all()
    assert (scan.similarity_SC[:, count:] == -torch.inf).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_rows", [2, 5, 41, 1003])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 10])
def test_entropies_equal_dense(
    ranks: RankPool, size: int, num_rows: int, temperature: float
) -> None:
    bank_ND = build_scene(num_rows, 1).bank_ND
    expected_N = reference.entropy(bank_ND, temperature)
    for memory_bytes in (LITTLE, PLENTY):
        scan = scan_on(ranks, size, bank_ND, temperature, memory_bytes)
        torch.testing.assert_close(scan.entropy_S, expected_N, rtol=0, atol=1e-10)
        assert scan.rows_SC.shape == (num_rows, 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "num_rows",
    [
        64,  # one whole block
        65,  # a last block of one row
        129,  # 3 blocks; 2 and 1
        193,  # 4; 2 and 2; 2, 2 and 1
        257,  # 5; 3 and 2; 2, 2 and 2; 2, 2, 2 and 1
        300,  # 5; 3 and 3; 2, 2 and 2
        641,  # 11; 6 and 5; 4, 4 and 4; 3, 3, 3 and 3
    ],
)
def test_every_pair_counts_once_however_shards_fall_into_blocks(
    ranks: RankPool, size: int, num_rows: int
) -> None:
    """At temperature 10 all pairs weigh about the same: none can be lost or doubled unseen."""
    bank_ND = random_rows(num_rows)
    scan = scan_on(ranks, size, bank_ND, 10.0, LITTLE, 2)
    expected_N = reference.entropy(bank_ND, 10.0)
    torch.testing.assert_close(scan.entropy_S, expected_N, rtol=0, atol=1e-10)
    assert_nearest(scan, bank_ND, 2, 1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_candidates", [1, 2, 5])
@pytest.mark.parametrize("num_rows", [41, 300])
def test_candidates_are_the_nearest_rows(
    ranks: RankPool, size: int, num_candidates: int, num_rows: int
) -> None:
    for bank_ND in (random_rows(num_rows), of_many_norms(random_rows(num_rows), 0.2, 1)):
        scan = scan_on(ranks, size, bank_ND, 0.1, LITTLE, num_candidates)
        assert_nearest(scan, bank_ND, num_candidates, 1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("num_rows", "num_candidates"), [(2, 1), (2, 2), (2, 3), (5, 4), (5, 5), (5, 7), (70, 80)]
)
def test_what_the_bank_does_not_have_is_no_candidate(
    ranks: RankPool, size: int, num_rows: int, num_candidates: int
) -> None:
    bank_ND = random_rows(num_rows)
    scan = scan_on(ranks, size, bank_ND, 0.1, LITTLE, num_candidates)
    assert_nearest(scan, bank_ND, num_candidates, 1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("copies", [2, 30, 120])
def test_duplicates_are_each_others_candidates(ranks: RankPool, size: int, copies: int) -> None:
    bank_ND = random_rows(200)
    rows_X = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:copies]
    bank_ND[rows_X] = bank_ND[7].clone()
    copies_of_7 = {*rows_X.tolist(), 7}
    scan = scan_on(ranks, size, bank_ND, 0.07, LITTLE, 2)
    expected_N = reference.entropy(bank_ND, 0.07)
    torch.testing.assert_close(scan.entropy_S, expected_N, rtol=0, atol=1e-10)
    assert_nearest(scan, bank_ND, 2, 1e-12)
    for row in copies_of_7:
        listed = set(scan.rows_SC[row].tolist())
        assert len(listed & copies_of_7) == min(2, len(copies_of_7) - 1)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_banks_keep_their_bound(
    ranks: RankPool, size: int, temperature: float, dtype: str
) -> None:
    """Against the dense values of the same rounded rows."""
    narrow_ND = random_rows(300, DTYPES[dtype])
    for bank_ND in (narrow_ND, of_many_norms(narrow_ND, 0.2, 1)):
        scan = scan_on(ranks, size, bank_ND, temperature, LITTLE, 2)
        assert scan.entropy_S.dtype == torch.float64
        expected_N = reference.entropy(bank_ND.double(), temperature)
        torch.testing.assert_close(scan.entropy_S, expected_N, rtol=0, atol=ENTROPY_BOUND)
        assert_nearest(scan, bank_ND, 2, COSINE_BOUND)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_of_zeros_has_the_entropy_of_indifference(
    ranks: RankPool, temperature: float, dtype: str
) -> None:
    bank_ND = of_many_norms(random_rows(300), 0.2, 1)
    bank_ND[[70, 299]] = 0
    bank_ND = bank_ND.to(getattr(torch, dtype))
    scan = scan_on(ranks, 2, bank_ND, temperature, LITTLE, 2)
    expected_N = reference.entropy(bank_ND.double(), temperature)
    bound = 1e-10 if dtype == "float64" else ENTROPY_BOUND
    torch.testing.assert_close(scan.entropy_S, expected_N, rtol=0, atol=bound)
    indifferent = torch.tensor(300.0).double().log().item()
    assert scan.entropy_S[[70, 299]].tolist() == pytest.approx([indifferent] * 2, abs=bound)
    assert_nearest(scan, bank_ND, 2, 1e-12 if dtype == "float64" else COSINE_BOUND)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_that_float32_cannot_hold_at_once_are_scanned_in_float64(
    ranks: RankPool, size: int, dtype: str
) -> None:
    """Logits of 0.25 and of 289: exp of the one or of the other is out of float32's range."""
    bank_ND = of_many_norms(random_rows(300), 0.05, 1.7).to(DTYPES[dtype])
    scan = scan_on(ranks, size, bank_ND, 0.01, LITTLE, 2)
    expected_N = reference.entropy(bank_ND.double(), 0.01)
    torch.testing.assert_close(scan.entropy_S, expected_N, rtol=0, atol=1e-10)
    assert_nearest(scan, bank_ND, 2, 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_small_rows_beside_unit_rows_keep_their_candidates(ranks: RankPool, size: int) -> None:
    """The shift that a unit row needs at temperature 0.01 must not round away the others' logits:
    discovery takes gaps beyond 1e-5 for true, so cosines may be off by half of that."""
    bank_ND = of_many_norms(random_rows(300, torch.float32), 0.01, 1)
    scan = scan_on(ranks, size, bank_ND, 0.01, LITTLE, 2)
    assert_nearest(scan, bank_ND, 2, 5e-6)


def test_results_agree_across_world_sizes_and_block_sizes(ranks: RankPool) -> None:
    bank_ND = random_rows(641)
    scans = [
        scan_on(ranks, size, bank_ND, 0.07, memory_bytes, 3)
        for size in SIZES
        for memory_bytes in (LITTLE, 400_000, PLENTY)
    ]
    for scan in scans[1:]:
        torch.testing.assert_close(scan.entropy_S, scans[0].entropy_S, rtol=0, atol=1e-12)
        assert torch.equal(scan.rows_SC, scans[0].rows_SC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_rows_that_are_not_finite_are_counted_on_all_ranks(
    ranks: RankPool, size: int, dtype: str
) -> None:
    bank_ND = random_rows(41, getattr(torch, dtype))
    bank_ND[40] = torch.nan
    bank_ND[17, 3] = torch.inf
    bank_ND[25, 0] = -torch.inf
    bank_ND[25, 1] = torch.nan
    with pytest.raises(RankError) as caught:
        ranks.run(size, scan_here, bank_ND, 0.1, LITTLE)
    sentence = "3 rows of the bank are not finite, row 17 first"
    assert all(isinstance(error, RuntimeError) for error in caught.value.errors.values())
    sentences = {rank: str(error) for rank, error in caught.value.errors.items()}
    assert sentences == dict.fromkeys(range(size), sentence)


def scale_here(world: World, bank_ND: Tensor, temperature: float) -> entropy._Scale:
    return entropy._agree_on_scale(shard_of(bank_ND, world), world, temperature)


@pytest.mark.parametrize(
    ("dtype", "smallest", "temperature", "expected", "shift"),
    [
        ("float32", 1.0, 0.1, "float32", 0),
        ("bfloat16", 1.0, 0.1, "float32", 0),
        ("float32", 1.0, 0.01, "float32", 40),  # the highest logit is 100
        ("float32", 0.5, 0.01, "float32", 40),
        ("float32", 0.96, 0.001, "float32", 940),  # the lowest own logit is 922, of 1000
        ("float32", 0.9, 0.001, "float64", 400),
        ("float64", 1.0, 0.001, "float64", 400),
    ],
)
def test_ranks_agree_on_the_narrowest_type_that_holds_all_sums(
    ranks: RankPool, dtype: str, smallest: float, temperature: float, expected: str, shift: float
) -> None:
    norm_N = torch.linspace(1, smallest, 4)
    bank_ND = (torch.eye(4) * norm_N[:, None]).to(getattr(torch, dtype))
    for scale in ranks.run(2, scale_here, bank_ND, temperature):
        assert scale.dtype == getattr(torch, expected)
        assert scale.shift == pytest.approx(shift, abs=0.01)
        assert scale.is_unit == (smallest == 1)


def progress_here(
    world: World, bank_ND: Tensor, memory_bytes: int, num_candidates: int
) -> list[float]:
    told: list[float] = []
    bank = shard_of(bank_ND, world)
    scan_pairs(bank, world, 0.1, memory_bytes, num_candidates, told.append)
    return told


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_rows", [5, 257])
def test_progress_comes_to_one_wherever_there_are_rows(
    ranks: RankPool, size: int, num_rows: int
) -> None:
    bank_ND = random_rows(num_rows)
    for num_candidates in (0, 2):
        told = ranks.run(size, progress_here, bank_ND, LITTLE, num_candidates)
        longest = -(-num_rows // size)
        for shares in told:
            assert len(shares) == -(-longest // 64)
            assert sum(shares) == pytest.approx(1.0)
            assert min(shares) >= 0
