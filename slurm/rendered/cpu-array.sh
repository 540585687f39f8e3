#!/bin/bash
# The campaign 'cpu' as a job array: 8 parts, 32 ranks each.
# Written by `mlindex submit`: change [slurm] in the campaign file, not this.
#SBATCH --job-name=mlindex-cpu
#SBATCH --array=0-7%4
#SBATCH --output=/home/you/campaign/run/log/slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --chdir=/home/you/campaign
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --partition=cpu
#SBATCH --account=beamline
#SBATCH --time=04:00:00
#SBATCH --mem=64G
#SBATCH --signal=B:USR1@90
#SBATCH --requeue

# SLURM tells this script 90 s before the time limit; the ranks then finish the batch in hand and end.
child='' told=''
tell() {
    told=$1
    [ -z "$child" ] || { sleep 1; kill -s "$1" -- "$child" 2>/dev/null; } # 1 s: a child just born may miss it
}
trap 'tell USR1' USR1
trap 'tell TERM' TERM

/home/you/venv/bin/python -m mlindex.cli.main run /home/you/campaign/cpu.toml --part "$SLURM_ARRAY_TASK_ID/8" --resume --ranks 32 &
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
    echo "mlindex: part $SLURM_ARRAY_TASK_ID of 8 has work left: back into the queue (SLURM waits two minutes)"
    scontrol requeue "$SLURM_JOB_ID" || echo "mlindex: it cannot be requeued; run mlindex submit again" >&2
fi
exit "$status"
