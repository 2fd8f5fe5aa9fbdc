#!/bin/bash
# A Slurm job that runs one command of dpo_lightning, again and again until it is done. From the project's folder:
#
#   source containers/slurm/site.env        # the facts about the cluster
#   sbatch --gpus-per-node=1 containers/slurm/job.sh fit --config configs/dpo.yaml --output_dir outputs/dpo
#
# One process for each GPU: 4 of one node, 8 of two nodes (DDP, or what --trainer.strategy names):
#
#   sbatch --ntasks-per-node=4 --gpus-per-node=4 ... fit ... --trainer.devices 4
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 ... fit ... --trainer.num_nodes 2 --trainer.devices 4
#
# Arrays: a sweep of five points, and reference log-probabilities in eight parts:
#
#   sbatch --gpus-per-node=1 --array=1-5 ... sweep ... --output_dir outputs/sweep --point auto
#   sbatch --gpus-per-node=1 --array=1-8 ... precompute ... --shard auto
#
# `python -m dpo_lightning submit` does this with checks before; docs/hpc.md explains both.
#SBATCH --nodes=1 --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue --open-mode=append

# One element of an array has the id of the array: by that id, Slurm would signal and requeue all of them.
job=$SLURM_JOB_ID
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# USR1 comes before the time limit and before a preemption, to this shell alone: all ranks are to stop after their step.
# TERM comes when Slurm ends the job, to the ranks as well: whether it is requeued is settled then.
again= stopped= ended=
trap 'again=yes stopped=yes; scancel --signal=USR1 "$job"' USR1
trap 'again=yes ended=yes' TERM

# shellcheck source=containers/slurm/site.env
source "${SITE_ENV:-containers/slurm/site.env}" || exit 64

export SLURM_EXPORT_ENV=ALL # with sbatch --export=NONE, srun would pass nothing on
export PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$CACHES/inductor TRITON_CACHE_DIR=$CACHES/triton
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_PER_GPU:-1}}}
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun takes no other word for it
[[ -z ${INTERFACE:-} ]] || export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE

printf 'job %s, attempt %s, on %s:' "$job" $((${SLURM_RESTART_COUNT:-0} + 1)) "$SLURM_JOB_NODELIST"
printf ' %q' "${RUNNER[@]}" "$@"
echo
code=75
if [[ ! $stopped$ended ]]; then # a signal may have come while modules were loaded
  # A rank that ends does not end the others at once, which may be writing a checkpoint.
  srun --kill-on-bad-exit=0 --wait=900 "${RUNNER[@]}" "$@" &
  again=yes
  while [[ $again ]]; do # a trap interrupts `wait`
    again=
    wait $!
    code=$?
  done
fi

# 75: stopped, and the same command goes on; 138: USR1 came before Python ran.
case $code in
  75 | 138)
    if [[ $ended ]]; then
      echo "job $job: stopped, as Slurm ends it"
    elif [[ ${JOB_CHAIN:-} || $REQUEUES == no ]]; then
      echo "job $job: stopped; the next job of the chain goes on, or the same command once more"
    elif [[ $1 =~ ^(validate|test|predict)$ ]]; then
      echo "job $job: stopped, and not requeued: $1 begins anew each time. Give it more time"
    elif ((${SLURM_RESTART_COUNT:-0} >= REQUEUES)); then
      echo "job $job: stopped; it has been requeued $REQUEUES times, and is not any more (REQUEUES in site.env)"
    elif scontrol requeue "$job"; then
      echo "job $job: stopped, and requeued to go on"
      sleep 60 & # until Slurm ends this shell
      wait
    else
      echo "job $job: stopped, and Slurm did not requeue it: send it again, or several jobs by submit --chain N"
    fi
    ;;
  64 | 65 | 66 | 67 | 69 | 70 | 73 | 76)
    # These would come again: the rest of a chain is cancelled.
    [[ -z ${JOB_CHAIN:-} ]] || scancel --state=PENDING --user="$(id -un)" --name="$SLURM_JOB_NAME"
    ;;
esac
exit "$code"
