"""A key in a cluster profile reaches the ranks, and nobody else reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import submit, sweep
from launcher.jobs.cluster_profile import Profile, load_profile
from launcher.jobs.job_folder import new_job_folder, read_request, read_secrets
from launcher.jobs.request import Request, Size
from launcher.local import torchrun_commands
from launcher.slurm.sbatch import script_of
from launcher.status import look_at
from tests.other_user import as_nobody
from tests.suites import skip_without

VALUE = "s3cr3t '$(touch executed)' \"`x`\"\nsecond line"
PROFILE = Profile(environment={"WANDB_API_KEY": VALUE, "NCCL_DEBUG": "WARN"})
DEBUG = ["configs/debug.yaml"]


def write_job(root: Path) -> tuple[Path, Request]:
    wanted = submit.prepare(DEBUG, [f"run.root={root}", "name=run"], PROFILE, Size())
    job = submit.write_down(wanted)
    return job, read_request(job)


def files_with_the_secret(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and b"s3cr3t" in path.read_bytes() + os.fsencode(path.name)
    ]


def test_a_secret_lies_in_one_file_that_its_owner_reads(tmp_path: Path) -> None:
    job, request = write_job(tmp_path)
    (file,) = files_with_the_secret(tmp_path)
    assert file == request.secrets_file == job / "secrets.sh"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run" / "jobs").stat().st_mode & 0o777 == 0o700
    assert read_secrets(request) == {"WANDB_API_KEY": VALUE}
    assert request.profile.environment == {"NCCL_DEBUG": "WARN"}


def test_a_script_and_a_dry_run_do_not_show_it(tmp_path: Path) -> None:
    job, request = write_job(tmp_path)
    script = script_of(job, [job], request, "run")
    assert "s3cr3t" not in script
    assert f". {job}/secrets.sh" in script.splitlines()
    wanted = submit.prepare(DEBUG, [f"run.root={tmp_path}", "name=dry"], PROFILE, Size())
    shown = "\n".join(submit.describe_dry(wanted, None))
    assert "s3cr3t" not in shown
    here = torchrun_commands(wanted.request(tmp_path, tmp_path), wanted.given)
    assert ("NCCL_DEBUG=WARN" in here[0], "s3cr3t" in here[0]) == (True, False)
    assert ". " + str(tmp_path / "dry/jobs/NEXT/secrets.sh") in shown


def test_the_tasks_of_a_script_have_it_to_the_letter(tmp_path: Path) -> None:
    job, request = write_job(tmp_path)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "srun").write_text('#!/bin/sh\nprintf %s "$WANDB_API_KEY" > "$SEEN"\n')
    (stubs / "srun").chmod(0o755)
    script = script_of(job, [job], request, "run").replace(sys.executable, "true")
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "SEEN": "seen"}
    subprocess.run(["sh"], input=script, text=True, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "seen").read_text() == VALUE
    assert not (tmp_path / "executed").exists()


def test_the_runs_of_a_sweep_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep.yaml").write_text(
        f"name: two\nconfig: [configs/debug.yaml]\noverrides: [run.root={tmp_path}]\n"
        "grid: {seed: [0, 1]}\n"
    )
    scripts = list[str]()

    def submit_array(folder: Path, jobs: list[Path], request: Request, *_: object) -> list[str]:
        scripts.append(script_of(folder, jobs, request, "two"))
        return ["1_0", "1_1"]

    monkeypatch.setattr(sweep.sbatch, "submit_array", submit_array)
    monkeypatch.setattr(sweep.client, "check_slurm", lambda: None)
    monkeypatch.setattr(sweep.submit, "refuse_what_never_starts", lambda *_: None)
    sweep.run_sweep(tmp_path / "sweep.yaml", PROFILE, Size(), sweep.Way(), lambda _: None)
    (file,) = files_with_the_secret(tmp_path / "two")
    assert f". {file}" in scripts[0].splitlines()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_wrong_value_is_not_shown(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("environment: {WANDB_API_KEY: 5512345}\n")
    with pytest.raises(ValueError, match=r"environment\.WANDB_API_KEY will not do") as wrong:
        load_profile(profile)
    assert "5512345" not in str(wrong.value)


def test_folders_of_earlier_revisions_are_closed_too(tmp_path: Path) -> None:
    (tmp_path / "run" / "jobs" / "001").mkdir(parents=True)
    assert new_job_folder(tmp_path / "run").name == "002"
    assert (tmp_path / "run" / "jobs").stat().st_mode & 0o777 == 0o700


def test_another_user_reads_no_job(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_without("root")
    job, _ = write_job(tmp_path)
    with as_nobody(tmp_path / "run"):
        with pytest.raises(PermissionError):
            (job / "secrets.sh").read_text()
        with pytest.raises(ValueError, match="is closed: only root, who submitted the run"):
            look_at(tmp_path / "run")
