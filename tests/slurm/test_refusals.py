"""What cannot run is said before or right after sbatch, and leaves no job and no folder behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.request import Size
from launcher.slurm import sbatch
from launcher.submit import all_or_nothing, prepare, write_down
from slurm.testcluster.cluster import Cluster, output, wait_until
from tests.slurm.jobs import CONFIG, SHORT, launch, submit, wait_for_end

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]


def assert_refused(home: Path, profile: str, sentence: str, *arguments: object) -> None:
    (home / "wrong.yaml").write_text(profile)
    status, said = launch(
        "submit", *SHORT, "name=refused", "--cluster", "wrong.yaml", "--time", "10m", *arguments
    )
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
    assert output("squeue", "-h", "-t", "PD,R", "-o", "%i") == ""
    assert not (home / "runs" / "refused").exists()


@pytest.mark.parametrize(
    ("profile", "arguments", "sentence"),
    [
        ("partition: gpu", [], "(partition=gpu; there are low, main, paid, short)"),
        ("partition: paid\naccount: nobody", [], "account=nobody"),
        ("", ["--gpus", 9], "sbatch refused the job"),
        ("", ["--after", "nonsense"], "--after 'nonsense' is no id of a job"),
        # PartitionConfig, or a more precise reason if SLURM's other scheduler comes first.
        ("", ["--nodes", 5], "would never start it: Partition"),
        ("memory_gb: 4000", [], "sbatch refused the job"),
        ("constraint: h100", [], "sbatch refused the job"),
        ("partition: short", ["--time", "1h"], "would never start it: Partition"),
        ("sbatch: {no-such-option: 1}", [], "sbatch refused the job"),
    ],
)
def test_what_the_cluster_does_not_have_is_a_sentence(
    home: Path, profile: str, arguments: list[object], sentence: str
) -> None:
    assert_refused(home, profile, sentence, *arguments)


def test_a_job_without_gpus_where_slurm_knows_some_is_a_sentence(home: Path) -> None:
    given, sentence = ("run.device=auto",), "have 8 GPU(s): give --gpus N, or --gpus 0 for CPUs"
    assert_refused(home, "", f"nodes of the default partition {sentence}", *given)
    assert_refused(home, "partition: low", f"nodes of partition low {sentence}", *given)
    (home / "gpus.yaml").write_text("gpus_per_node: 2\n")
    shown = ("submit", *SHORT, *given, "--dry-run", "--cluster", "gpus.yaml")
    status, said = launch(*shown)
    assert status == 0, said
    assert "--gpus 2: gpus_per_node of the cluster profile is 2" in said
    assert "#SBATCH --gpus-per-node=2" in said


def test_a_partition_whose_nodes_have_no_gpus_needs_no_gpus_option(home: Path) -> None:
    (home / "bare.yaml").write_text("partition: bare\n")
    shown = ("submit", *SHORT, "run.device=auto", "--dry-run", "--cluster", "bare.yaml")
    status, said = launch(*shown)
    assert status == 2
    assert "nothing says whether the nodes have GPUs" in said
    partition = "PartitionName=bare"
    subprocess.run(["scontrol", "create", partition, "Nodes=bare", "State=UP"], check=True)
    try:
        status, said = launch(*shown)
    finally:
        subprocess.run(["scontrol", "delete", partition], check=True)
    assert status == 0, said
    assert "1 node(s) of 1 CPU rank(s)" in said
    assert "--gpus" not in said


def test_a_shared_folder_that_cannot_be_written_is_a_sentence(home: Path) -> None:
    (home / "locked").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "locked"], check=True)
    try:
        assert_refused(home, "", "cannot be written", "run.root=locked")
    finally:
        subprocess.run(["umount", "locked"], check=True)


def test_a_full_shared_folder_is_a_sentence(home: Path) -> None:
    (home / "full").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", "full"], check=True)
    try:
        (home / "full" / "ballast").write_bytes(bytes(65_536))
        assert_refused(home, "", "no room is left", "run.root=full")
    finally:
        subprocess.run(["umount", "full"], check=True)


def test_the_folder_of_another_run_is_a_sentence(home: Path) -> None:
    (home / "runs" / "taken").mkdir(parents=True)
    (home / "runs" / "taken" / "config.yaml").write_text("name: taken\nseed: 9\n")
    status, said = launch("submit", *SHORT, "name=taken")
    assert status == 2
    assert "belongs to another config" in said
    assert not (home / "runs" / "taken" / "jobs").exists()


def test_a_node_whose_name_does_not_resolve_is_found_by_its_address(
    cluster: Cluster,
) -> None:
    hosts = cluster.folder / "etc" / "hosts"
    before = hosts.read_text()
    hosts.write_text("".join(line for line in before.splitlines(True) if " n" not in line))
    try:
        run = submit("nameless", config=SHORT)
        assert wait_for_end(run).state == "finished"
        assert "meeting at 10.77.0." in (run / "logs" / "rank-1.log").read_text()
    finally:
        hosts.write_text(before)


@pytest.mark.parametrize("notes", ["", "runs/failed/notes.txt", "runs/failed/jobs/001/notes.txt"])
@pytest.mark.parametrize("has_started", [False, True])
def test_what_fails_after_sbatch_has_taken_it_leaves_no_job_and_nothing_but_a_users_files(
    home: Path, notes: str, has_started: bool
) -> None:
    log = home / "runs" / "failed" / "jobs" / "001" / "1_0_log.out"
    late = Profile(setup=(f"(trap '' TERM; sleep 2; echo 'told to end' > {log}) &",))
    wanted = prepare([SHORT[1]], [*SHORT[2:], "name=failed"], late, Size(time="10m"))

    def fail_later() -> None:
        with all_or_nothing(wanted.config.folder) as made:
            job = write_down(wanted, made=made)
            request = wanted.request(job, job / "code")
            job_id = sbatch.submit(job, request, wanted.config.name)
            assert output("squeue", "-h", "-t", "PD,R", "-o", "%i").split() == [job_id]
            if has_started:
                wait_until(lambda: bool(output("squeue", "-h", "-t", "R", "-o", "%i")), "its start")
            if notes:
                (home / notes).write_text("why this will not work")
            raise OSError("a full disk")

    with pytest.raises(OSError, match="a full disk"):
        fail_later()
    wait_until(lambda: output("squeue", "-h", "-o", "%i") == "", "the end of all it started")
    left = [path for path in (home / "runs").rglob("*") if path.is_file()]
    assert left == ([home / notes] if notes else [])
    assert (home / "runs" / "failed").exists() == bool(notes)


def test_a_config_that_is_wrong_never_reaches_sbatch(home: Path) -> None:
    status, said = launch("submit", *CONFIG, "optim.learning_rate=1", "name=refused")
    assert status == 2
    assert "unknown key 'optim.learning_rate'" in said
    assert not (home / "runs").exists()
