#!/usr/bin/env bash
# bash benchmarks/device/battery.sh 1|2|3|4     in the repository's root, on a machine with one GPU
#
# Each part is one short visit to a GPU machine that has Python, torch, Triton and numpy, but
# neither DALI nor faiss. What else is needed is a kit of wheels in .kit/, which part 2 unpacks.
#
#   part  needs            seconds  proves
#   1     nothing          130-260  log_partition is right in four types, for 64 to 512 features;
#                                   how fast it is beside flash attention, cuDNN and a kernel here;
#                                   how fast a scan of all pairs is that keeps no tile in memory
#   2     .kit/            170-480  the kit works; tests/gpu pass; all collectives, and DDP with its
#                                   hooks, work by NCCL; torchrun with run.profile=true works
#   3     the kit          175-340  how long a step takes and what waits in it; how fast the loader
#                                   and the parts of discovery are
#   4     the kit, NCCL    210      two ranks on one GPU train as two on CPUs; a rank that fails is
#                                   gone at once; benchmarks.partition, and benchmarks.discovery
#
# Every step has a limit in seconds and a log in $OUT. A step that fails or runs out of time ends
# nothing; the last lines say how each step ended. Parts 3 and 4 take the kit as part 2 unpacked it;
# two steps of part 4 also take the kit's NCCL, which is newer than torch's.
#
# OUT     the folder for logs and figures, /tmp/out unless set
# SITE    the folder that the kit is unpacked to, /tmp/site unless set
# RUNS    the folder for the runs that are trained, a new one unless set
# DEVICE  cuda unless set; cpu tries the steps of parts 2 to 4 that can run without a GPU
set -u

part=${1:-}
if [[ ! $part =~ ^[1-4]$ || ! -f benchmarks/device/battery.sh ]]; then
    echo "usage, in the root of the repository: bash benchmarks/device/battery.sh 1|2|3|4" >&2
    exit 2
fi
out=${OUT:-/tmp/out}
site=${SITE:-/tmp/site}
runs=${RUNS:-$(mktemp -d /tmp/runs.XXXXXX)}
device=${DEVICE:-cuda}
mkdir -p "$out"
summary=$out/summary-$part.txt
: > "$summary"

export PYTHONUNBUFFERED=1
export PYTHONPATH=$site:$PWD
# Hypothesis keeps its files out of the tree.
export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis

# step NAME SECONDS COMMAND...   runs a command within a limit, shows the last $LINES_SHOWN lines of
# its log and notes how it ended.
step() {
    local name=$1 limit=$2 from=$SECONDS status ending
    shift 2
    echo "=== $name"
    timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    tail -n "${LINES_SHOWN:-14}" "$out/$name.log" | cut -c1-220
    case $status in
        0) ending="passed" ;;
        124 | 137) ending="ran out of its $limit s" ;;
        *) ending="failed with status $status" ;;
    esac
    # One short write, so that the lines of steps that run side by side do not mix.
    printf '%-16s %-24s %4d s\n' "$name" "$ending" "$((SECONDS - from))" >> "$summary"
    echo "=== $name: $ending, $((SECONDS - from)) s"
}

# beside CORES step NAME SECONDS COMMAND...   runs a step in the background on some of the cores;
# what it prints waits for gather.
beside_count=0
beside() {
    local cores=$1
    shift
    beside_count=$((beside_count + 1))
    (
        taskset -pc "$cores" "$BASHPID" > /dev/null 2>&1
        "$@"
    ) > "$out/beside-$beside_count.txt" 2>&1 &
}

# gather   waits for all steps in the background and shows what they printed, one after the other.
gather() {
    wait
    cat "$out"/beside-*.txt
    rm -f "$out"/beside-*.txt
}

torchrun=(python3 -m torch.distributed.run --standalone)
train=(train --config configs/debug.yaml "run.root=$runs")

case $part in
    1)
        step machine 20 nvidia-smi \
            --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
        LINES_SHOWN=40 step partition_right 60 python3 -m benchmarks.device.partition_accuracy
        LINES_SHOWN=60 step partition_time 100 python3 -m benchmarks.device.partition_kernel time
        LINES_SHOWN=10 step scan_time 60 python3 -m benchmarks.device.scan_kernel time
        ;;
    2)
        step unpack 90 bash .kit/1/unpack.sh "$site"
        # Three at once, each on cores of its own.
        beside 0-5 step tests_methods 200 \
            python3 -m pytest tests/gpu -n 3 -k "every_method"
        beside 6-10 step tests_others 150 \
            python3 -m pytest tests/gpu -k "not every_method and not memory" --durations=4
        beside 11-15 step world_of_one 150 \
            python3 -m benchmarks.device.world_of_one "$device"
        gather
        # These look at how much memory of the GPU is free, so nothing may run beside them.
        step tests_memory 90 python3 -m pytest tests/gpu -k "memory"
        step torchrun 60 env OMP_NUM_THREADS=4 \
            "${torchrun[@]}" --nproc-per-node=1 -m and_dist "${train[@]}" \
            name=torchrun "run.device=$device" run.profile=true curriculum.epochs=12
        ;;
    3)
        LINES_SHOWN=60 step step_alexnet 110 python3 -m benchmarks.device.step_times alexnet
        step step_small 50 python3 -m benchmarks.device.step_times small --rows 200000
        step loader 90 python3 -m benchmarks.device.loader_times --device "$device"
        LINES_SHOWN=24 step discovery 80 python3 -m benchmarks.device.discovery_times
        ;;
    4)
        step two_ranks_gloo 60 \
            "${torchrun[@]}" --nproc-per-node=2 -m benchmarks.device.two_ranks gloo "${train[@]}" \
            name=two-gloo "run.device=$device"
        step two_ranks_cpu 60 \
            "${torchrun[@]}" --nproc-per-node=2 -m and_dist "${train[@]}" \
            name=two-cpu run.device=cpu
        # The first round, by the bound of tests/gpu: 5 steps an epoch, 3 epochs.
        step compare 20 python3 -m benchmarks.device.compare_losses \
            "$runs/two-gloo" "$runs/two-cpu" --steps 15 --most 0.05
        # An experiment: NCCL from 2.30 on can be told to let ranks share a GPU.
        step two_ranks_nccl 70 \
            env NCCL_MULTI_RANK_GPU_ENABLE=1 "LD_PRELOAD=$site/nccl/libnccl.so.2" \
            "${torchrun[@]}" --nproc-per-node=2 -m benchmarks.device.two_ranks nccl "${train[@]}" \
            name=two-nccl "run.device=$device"
        # The same experiment: a rank that fails while the other's collective is awaited.
        step failing_rank 60 \
            env NCCL_MULTI_RANK_GPU_ENABLE=1 "LD_PRELOAD=$site/nccl/libnccl.so.2" \
            "${torchrun[@]}" --nproc-per-node=2 -m benchmarks.device.failing_rank nccl
        step bench 100 python3 -m benchmarks.partition \
            --device "$device" --repeats 3 --json "$out/partition.json"
        step discovery_bench 90 python3 -m benchmarks.discovery \
            --device "$device" --json "$out/discovery.json"
        ;;
esac

echo "=== part $part"
cat "$summary"
