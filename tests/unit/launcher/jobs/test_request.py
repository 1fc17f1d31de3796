from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from and_dist.config.load import load_config
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    NodeEnd,
    StartOutcome,
    claim_end,
    job_folders,
    new_job_folder,
    newest_checkpoint,
    note_beginning,
    read_end,
    read_node_ends,
    starts_without_progress,
    take_snapshot,
    write_end,
    write_node_end,
)
from launcher.jobs.request import Size, check_writable, load_run
from launcher.submit import prepare, write_down
from tests.end_to_end.processes import fill_up
from tests.suites import skip_without


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (Size(gpus=2, workers=4), "a rank needs a GPU of its own"),
        (Size(time="soon"), "--time = 'soon' is no duration"),
        (Size(time="30s"), "less than SLURM's shortest"),
        (Size(time="2m"), "leaves nothing before the signal"),
    ],
)
def test_a_size_that_cannot_be_is_a_sentence(size: Size, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        size.check(Profile())
    assert sentence in str(refused.value)


def test_ranks_follow_from_gpus_or_workers() -> None:
    assert Size(gpus=8).ranks_of_a_node == 8
    assert Size(workers=2).ranks_of_a_node == 2
    assert Size().ranks_of_a_node == 1


def test_a_run_folder_of_another_config_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "config.yaml").write_text("name: debug\nseed: 7\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="belongs to another config"):
        load_run(["configs/debug.yaml"], [f"run.root={tmp_path}"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "new" / "run")


def test_a_file_system_that_is_read_only_is_a_sentence(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_without("root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", tmp_path], check=True)
    try:
        with pytest.raises(ValueError, match="cannot be written"):
            check_writable(tmp_path / "run")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_file_system_is_a_sentence(small_disk: Path) -> None:
    fill_up(small_disk / "ballast")
    with pytest.raises(ValueError, match="no room is left"):
        check_writable(small_disk / "run")


def test_ranks_find_the_run_folder_from_every_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path("configs/debug.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    job = write_down(prepare([config], ["run.root=runs"], Profile(), Size()))
    assert load_config([job / "config.yaml"], []).folder == tmp_path / "runs" / "debug"


def test_job_folders_are_numbered_and_never_shared(tmp_path: Path) -> None:
    assert [new_job_folder(tmp_path).name for _ in range(3)] == ["001", "002", "003"]
    assert [folder.name for folder in job_folders(tmp_path)] == ["001", "002", "003"]


def test_what_nodes_leave_is_read_back(tmp_path: Path) -> None:
    ends = {
        0: NodeEnd(node="n1", exit_codes={0: -9, 10: 1}, launcher=1, heard=("SIGUSR2",)),
        11: NodeEnd(node="n12", problem="cannot find n1"),
    }
    for number, end in ends.items():
        write_node_end(tmp_path, 2, number, end)
    assert read_node_ends(tmp_path, 2) == ends
    assert read_node_ends(tmp_path, 1) == {}


def test_one_process_decides_how_a_start_ended(tmp_path: Path) -> None:
    end = StartOutcome(state="goes on", why="it was preempted")
    assert read_end(tmp_path, 0) is None
    assert [claim_end(tmp_path, 0) for _ in range(3)] == [True, False, False]
    write_end(tmp_path, 0, end)
    assert read_end(tmp_path, 0) == end
    assert claim_end(tmp_path, 1)


def test_the_newest_checkpoint_is_what_latest_names(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == ""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("r00-e0002\n")
    assert newest_checkpoint(tmp_path) == "r00-e0002"


def test_starts_that_left_no_new_checkpoint_are_counted_lost_ones_too(tmp_path: Path) -> None:
    job, latest = new_job_folder(tmp_path), tmp_path / "checkpoints" / "latest"
    latest.parent.mkdir()
    assert starts_without_progress(job, -1) == 0
    note_beginning(job, 0)
    assert starts_without_progress(job, 0) == 1
    latest.write_text("r00-e0001")
    assert starts_without_progress(job, 0) == 0
    note_beginning(job, 1)
    note_beginning(job, 3)  # start 2 was lost before it began
    assert starts_without_progress(job, 3) == 3
    latest.write_text("r00-e0002")
    assert starts_without_progress(job, 3) == 0


@pytest.mark.whole_run
def test_a_snapshot_is_the_code_with_its_revision(tmp_path: Path) -> None:
    take_snapshot(tmp_path / "code")
    for file in ("and_dist/cli.py", "and_dist/data/pipeline.py", "launcher/node/runner.py"):
        assert (tmp_path / "code" / file).read_bytes() == Path(file).read_bytes()
    assert not list((tmp_path / "code").rglob("__pycache__"))
    program = "from and_dist.runs.folder import revision; print(revision())"
    said = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path / "code"), "PYTHONSAFEPATH": "1"},
    )
    assert said.stdout == (tmp_path / "code" / "revision.txt").read_text()


def test_a_new_job_clears_what_a_killed_launcher_left_unfinished(tmp_path: Path) -> None:
    start = new_job_folder(tmp_path) / "start-0"
    start.mkdir()
    for folder, name in ((start.parent, "request.json"), (start, "checkpoint")):
        (folder / f".{name}.0123456789abcdef.unfinished").write_text("")
        (folder / "theirs.unfinished").write_text("")
    assert new_job_folder(tmp_path).name == "002"
    assert sorted(os.listdir(start.parent)) == ["start-0", "theirs.unfinished"]
    assert os.listdir(start) == ["theirs.unfinished"]
