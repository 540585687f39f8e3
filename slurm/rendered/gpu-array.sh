#!/bin/bash -l
# The campaign 'gpu' as a job array: 4 parts, 8 ranks each.
# Written by `mlindex submit`: change [slurm] in the campaign file, not this.
#SBATCH --job-name=mlindex-gpu
#SBATCH --array=0-3
#SBATCH --output=/home/you/campaign/run/log/slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --chdir=/home/you/campaign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --partition=gpu
#SBATCH --account=beamline
#SBATCH --qos=normal
#SBATCH --constraint=a100
#SBATCH --time=02:00:00
#SBATCH --mem=120G
#SBATCH --gpus-per-node=4
#SBATCH --signal=B:USR1@180
#SBATCH --requeue

# SLURM tells this script 180 s before the time limit; the ranks then finish the batch in hand and end.
child='' told=''
tell() {
    told=$1
    [ -z "$child" ] || { sleep 1; kill -s "$1" -- "$child" 2>/dev/null; } # 1 s: a child just born may miss it
}
trap 'tell USR1' USR1
trap 'tell TERM' TERM

module load cuda/12 || exit 2
export MLINDEX_CACHE=/scratch/you/mlindex

unset SLURM_NTASKS_PER_NODE # which is that of the allocation: the step has one task more
# A job that starts again counts its steps from 0, and PMIx refuses a number that left a folder behind: so take the next
for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do srun --ntasks=1 --mpi=none true || true; done
srun --ntasks=9 --distribution=block --overcommit --cpu-bind=none --kill-on-bad-exit=0 --wait=0 --mpi=pmix /home/you/venv/bin/python -m mpi4py -m mlindex.runtime.run /home/you/campaign/gpu.toml --part "$SLURM_ARRAY_TASK_ID/4" --resume &
child=$!
[ -z "$told" ] || tell "$told" # the signal came while the lines above were at work
status=127
while :; do # a signal ends `wait` early: wait again
    told=''
    wait "$child"
    now=$?
    [ "$now" -eq 127 ] || status=$now # 127: waited for before
    [ -n "$told" ] || break
done

# 75: told to end with work left. 138: told before the program was ready, which must not go on for ever.
if [ "$status" -eq 75 ] || { [ "$status" -eq 138 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; }; then
    echo "mlindex: part $SLURM_ARRAY_TASK_ID of 4 has work left: back into the queue (SLURM waits two minutes)"
    scontrol requeue "$SLURM_JOB_ID" || echo "mlindex: it cannot be requeued; run mlindex submit again" >&2
fi
exit "$status"
