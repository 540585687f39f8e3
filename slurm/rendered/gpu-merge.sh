#!/bin/bash
# Merge and report the campaign 'gpu' when its array job has ended, however it ended.
# Written by `mlindex submit`: change [slurm.merge] in the campaign file, not this.
#SBATCH --job-name=mlindex-gpu-merge
#SBATCH --dependency=afterany:1234
#SBATCH --output=/home/you/campaign/run/log/slurm-%j-merge.out
#SBATCH --open-mode=append
#SBATCH --chdir=/home/you/campaign
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --partition=cpu
#SBATCH --account=beamline
#SBATCH --qos=normal
#SBATCH --time=00:30:00
#SBATCH --mem=8G
#SBATCH --requeue

export MLINDEX_CACHE=/scratch/you/mlindex

status=0
/home/you/venv/bin/python -m mlindex.cli.main status /home/you/campaign/run || status=$?
/home/you/venv/bin/python -m mlindex.cli.main merge /home/you/campaign/run || status=$?
/home/you/venv/bin/python -m mlindex.cli.main report /home/you/campaign/run || status=$?
exit "$status"
