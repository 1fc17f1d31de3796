#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --job-name=demo
#SBATCH --nice=1
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo/jobs/001/%A_%a_0_log.out
#SBATCH --signal=USR2@120
#SBATCH --time=120
#SBATCH --wckey=submitit

# setup
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export PYTHONPATH=/shared/runs/demo/jobs/001/code${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/demo/jobs/001/%A_%a_%t_log.out --kill-on-bad-exit=1 apptainer exec a.sif python -u -m submitit.core._submit /shared/runs/demo/jobs/001


# teardown
/opt/venv/bin/python -m launcher.slurm.task '/shared/runs/sweep/a b/jobs/001' /shared/runs/sweep/c/jobs/001 /shared/runs/sweep/d/jobs/001