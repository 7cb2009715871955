# How a job starts its ranks, ends, and goes on after a preemption. Sourced by the batch scripts after env.sh.
#
#   start_ranks SCRIPT ARGS...     one process per task; a warning signal becomes checkpoint, requeue, resume
#
# 1. `#SBATCH --signal=B:USR1@120` sends USR1 to the batch shell only. bash runs a trap between commands or inside
#    `wait`, so srun runs in the background.
# 2. USR1 reaches every process of a step, and one without a handler dies of it: all ignore it from their birth, until
#    a rank has set its own handler.
# 3. The trap interrupts `wait`, hence the loop; the second `wait` fetches a code that came while the trap ran.
# 4. A run that ended in order (0) is requeued. Slurm itself requeues after a node failure. A run that failed is requeued
#    only if DISTMOE_RESTARTS allows (default 0: a crash must not loop), after a pause that doubles; never one that was
#    refused (2). `scontrol requeue` ends this script; the sleep keeps it from ending as COMPLETED before that.
# 5. --kill-on-bad-exit: the first rank that fails ends all. srun itself returns the highest code, which is that of the
#    ranks that were ended (143); the first one is read from its messages.

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# A job that queues again has the same arguments and number: by this name a run knows its folder again, so that
# `--resume never` does not discard what the job itself has saved.
export DISTMOE_LAUNCH=slurm-$SLURM_JOB_ID

# Hands lines on to stderr, and writes the exit code of the first failure into a file.
watch_errors() {
  local line
  while IFS= read -r line; do
    printf '%s\n' "$line" >&2
    case $line in "srun: error: "*"xited with exit code "*) [ -s "$1" ] || echo "${line##* }" > "$1" ;; esac
  done
}

# Refuses a job whose tasks cannot be one rank per GPU, in four lines, before any rank starts.
check_geometry() {
  local tasks=$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-0})) gpus=${SLURM_GPUS_ON_NODE:-}
  if [ "$tasks" != "$SLURM_NTASKS" ]; then
    refuse_geometry "${SLURM_NTASKS:-no} tasks on $SLURM_JOB_NUM_NODES nodes with --ntasks-per-node=${SLURM_NTASKS_PER_NODE:-not given}" \
      "nodes times --ntasks-per-node, and no --ntasks"
  elif [ -n "$gpus" ] && [ "$gpus" -lt "$SLURM_NTASKS_PER_NODE" ]; then
    refuse_geometry "$SLURM_NTASKS_PER_NODE tasks per node with $gpus GPUs" "one GPU per task"
  fi
}

refuse_geometry() {
  printf 'error: the geometry of the job contradicts itself\n  got:      %s\n  expected: %s\n  remedy:   %s\n' "$1" "$2" \
    "sbatch --nodes=N --ntasks-per-node=G --gpus-per-node=G, or tools/launch.py slurm --nodes N --gpus_per_node G" >&2
  exit 2
}

start_ranks() {
  local got=0 step= rc again first
  check_geometry
  first=$(mktemp)
  trap 'got=1; [ -z "$step" ] || kill -USR1 "$step"' USR1
  # shellcheck disable=SC2086  # the container's prefix is several words, or none
  srun --kill-on-bad-exit=1 --label --ntasks-per-node="$SLURM_NTASKS_PER_NODE" \
    bash -c 'trap "" USR1; exec "$@"' sh ${DISTMOE_CONTAINER:-} "$DISTMOE_PYTHON" "$@" 2> >(watch_errors "$first") &
  step=$!
  while :; do wait "$step"; rc=$?; kill -0 "$step" 2> /dev/null || break; done
  wait "$step" 2> /dev/null; again=$?; [ $again = 127 ] || rc=$again
  if [ $rc != 0 ]; then sleep 1; [ ! -s "$first" ] || rc=$(< "$first"); fi
  rm -f "$first"
  if [ $got = 1 ] && [ $rc = 0 ]; then scontrol requeue "$SLURM_JOB_ID"; sleep 30; fi
  if [ $rc != 0 ] && [ $rc != 2 ]; then restart_after_failure $rc; fi
  return $rc
}

restart_after_failure() {
  local done=${SLURM_RESTART_COUNT:-0} limit=${DISTMOE_RESTARTS:-0} pause
  [ "$done" -lt "$limit" ] || return 0
  pause=$((${DISTMOE_PAUSE:-10} << (done < 6 ? done : 6)))
  echo "restart: the ranks ended with code $1; start $((done + 1)) of $limit again in $pause s" >&2
  sleep "$pause"
  scontrol requeue "$SLURM_JOB_ID"; sleep 30
}
