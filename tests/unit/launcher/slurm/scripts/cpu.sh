#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterany:17
#SBATCH --job-name=demo
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo/jobs/001/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=120
#SBATCH --wckey=submitit

# setup
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export A='it'"'"'s b'
export PYTHONPATH=/shared/runs/demo/jobs/001/code${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/demo/jobs/001/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 --mpi=none /opt/venv/bin/python -u -m submitit.core._submit /shared/runs/demo/jobs/001


# teardown
/opt/venv/bin/python -m launcher.slurm.task /shared/runs/demo/jobs/001