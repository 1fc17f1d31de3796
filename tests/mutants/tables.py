"""List the tests that hold each file, quickest first, and what is left out, with the reason."""

from __future__ import annotations

PACKAGES = ("and_dist/method", "and_dist/checkpoint")

UNIT, RANKS = "tests/unit", "tests/ranks"
METHOD, SAVING = f"{UNIT}/method", (f"{UNIT}/checkpoint", f"{RANKS}/test_checkpoint.py")
SEARCHES, DISCOVERY = f"{RANKS}/test_searches.py", f"{RANKS}/test_discovery.py"
LOSS = f"{RANKS}/test_loss.py"

TESTS = {
    "and_dist/method/curriculum.py": (f"{METHOD}/test_curriculum.py",),
    "and_dist/method/discovery.py": (f"{RANKS}/test_progress.py", SEARCHES),
    "and_dist/method/entropy.py": (f"{RANKS}/test_entropy.py",),
    "and_dist/method/faiss_search.py": (SEARCHES,),
    "and_dist/method/loss.py": (LOSS,),
    "and_dist/method/memory_bank.py": (f"{METHOD}/test_memory_bank.py", LOSS),
    "and_dist/method/neighbour_search.py": (SEARCHES,),
    "and_dist/method/neighbour_table.py": (
        f"{METHOD}/test_curriculum.py",
        f"{METHOD}/test_neighbour_table.py",
    ),
    "and_dist/method/partition.py": (f"{METHOD}/test_partition.py", LOSS),
    "and_dist/method/partition_kernels.py": (
        f"{UNIT}/training/test_bank_products.py",
        f"{METHOD}/test_partition.py",
        LOSS,
    ),
    "and_dist/method/partition_gpu.py": ("tests/pretend/test_partition.py",),
    "and_dist/method/partition_choice.py": ("tests/pretend/test_partition_choice.py",),
    "and_dist/method/partition_triton.py": ("tests/pretend/test_triton_kernels.py",),
    "and_dist/method/partition_merge.py": (f"{METHOD}/test_partition.py", LOSS),
    "and_dist/checkpoint/bank_reader.py": (f"{UNIT}/checkpoint",),
    "and_dist/checkpoint/export.py": (f"{UNIT}/checkpoint",),
    "and_dist/checkpoint/card_scripts.py": (f"{UNIT}/checkpoint",),
    "and_dist/checkpoint/model_card.py": (f"{UNIT}/checkpoint",),
    "and_dist/checkpoint/names.py": SAVING,
    "and_dist/checkpoint/reader.py": SAVING,
    "and_dist/checkpoint/saved_state.py": (f"{UNIT}/checkpoint",),
    "and_dist/checkpoint/storage.py": SAVING,
    "and_dist/checkpoint/tensor_files.py": SAVING,
}
"""The tests that hold each file, in the order in which they are tried."""

EXPORT = "tests/end_to_end/test_export_command.py"
DISCOVER = "tests/end_to_end/test_discover_command.py"
PROBE = f"{RANKS}/test_probe_training.py"
LAST_RESORT = {
    "and_dist/checkpoint/bank_reader.py": (DISCOVER,),
    "and_dist/checkpoint/export.py": (EXPORT,),
    "and_dist/checkpoint/card_scripts.py": (EXPORT,),
    "and_dist/checkpoint/model_card.py": (EXPORT,),
    "and_dist/checkpoint/names.py": (PROBE,),
    "and_dist/checkpoint/reader.py": (EXPORT, DISCOVER),
    "and_dist/checkpoint/storage.py": (PROBE,),
    "and_dist/method/curriculum.py": (DISCOVERY,),
    "and_dist/method/discovery.py": (DISCOVERY, DISCOVER),
    "and_dist/method/entropy.py": (SEARCHES, DISCOVERY),
    "and_dist/method/faiss_search.py": (DISCOVERY,),
    "and_dist/method/neighbour_search.py": (DISCOVERY,),
    "and_dist/method/neighbour_table.py": (SEARCHES, DISCOVERY),
    "and_dist/method/partition_kernels.py": (f"{RANKS}/test_simulated_world.py",),
}
"""Tests that are only tried on what survives the others: they take minutes."""

BUDGET = "a budget of memory or of time: another one computes the same"
NEEDS_A_GPU = "only runs on a GPU; tests/gpu and tests/pretend hold it"
LEFT_OUT = {
    "and_dist/checkpoint/bank_reader.py": {"ROWS_PER_READ": BUDGET},
    "and_dist/checkpoint/storage.py": {"SPARE_BYTES": BUDGET},
    "and_dist/method/discovery.py": {
        "ROWS_PER_BLOCK": BUDGET,
        "ROWS_OF_ALL_RANKS": BUDGET,
        "RECALL_SAMPLE": BUDGET,
    },
    "and_dist/method/entropy.py": {
        "LARGEST_BLOCK": BUDGET,
        "SMALLEST_BLOCK": BUDGET,
        "MOST_GROUPS": BUDGET,
        "_block_size": BUDGET,
    },
    "and_dist/method/faiss_search.py": {
        "ROWS_PER_CELL": BUDGET,
        "MOST_TRIED": BUDGET,
        "ROWS_AT_ONCE": BUDGET,
        "MOST_ON_GPU": NEEDS_A_GPU,
        "GPU_SCRATCH_BYTES": NEEDS_A_GPU,
        "QUERIES_AT_ONCE": BUDGET,
        "nearest_by_torch.size": BUDGET,
        "__init__._chunk": BUDGET,
        "__init__.chunk": BUDGET,
        "_load_faiss.distance_compute_blas_threshold": "a switch to the faster of two forms",
    },
    "and_dist/method/memory_bank.py": {"ROWS_PER_DRAW": BUDGET},
    "and_dist/method/neighbour_search.py": {
        "SPARE": BUDGET,
        "MEMORY_BYTES": BUDGET,
        "SAMPLE": BUDGET,
        "__init__._rank_bytes": BUDGET,
        "_cosines.per_query": BUDGET,
        "_cosines.size": BUDGET,
    },
    "and_dist/method/partition_kernels.py": {
        "ROWS_PER_BLOCK": BUDGET,
        "is_faster_in_bfloat16": "depends on the CPU",
        "_multiplies_faster": "depends on the CPU",
        "_multiply_on_cpu": "only runs on a CPU with avx512_bf16 and without amx_bf16",
    },
    "and_dist/method/partition_gpu.py": {"ROWS_PADDED_AT_ONCE": BUDGET},
    "and_dist/method/partition_choice.py": {
        "QUERIES_CHECKED": BUDGET,
        "ROWS_CHECKED": BUDGET,
        "SECONDS_A_FORM": BUDGET,
        "MOST_REPEATS": BUDGET,
        "SHARE_OF_FREE": BUDGET,
        "ROWS_DRAWN": BUDGET,
        "_milliseconds": NEEDS_A_GPU,
    },
    "and_dist/method/partition_triton.py": {
        "TILES": "a choice of the faster of several forms",
        "SHARES_OF_A_PROCESSOR": "a choice of the faster of several forms",
        "MOST_SHARES_AT_ONCE": BUDGET,
        "name": "a name for log lines and files",
    },
}
"""Functions, constants and FUNCTION.VARIABLE that no mutant is made of, each with the reason."""
