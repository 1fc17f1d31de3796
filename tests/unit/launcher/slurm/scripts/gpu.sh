#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=demo
#SBATCH --mail-type=FAIL,END
#SBATCH --mem=480GB
#SBATCH --nice=100
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo/jobs/001/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --time=120
#SBATCH --wckey=submitit

# setup
module purge
module load cuda/13.0
source /shared/me/and-dist/.venv/bin/activate
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export NCCL_DEBUG=WARN
export PYTHONPATH=/shared/runs/demo/jobs/001/code${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/demo/jobs/001/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=96 /shared/me/and-dist/.venv/bin/python -u -m submitit.core._submit /shared/runs/demo/jobs/001


# teardown
/opt/venv/bin/python -m launcher.slurm.task /shared/runs/demo/jobs/001