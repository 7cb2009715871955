# Settings of your site, in one place; every script of this folder sources it. Edit the values, or set them outside.
# Slurm runs a copy of a batch script, so `$0` says nothing: scripts find this file through SLURM_SUBMIT_DIR, the folder
# where sbatch was called, or through DISTMOE_HOME. Partition and account are sbatch's: export SBATCH_PARTITION and
# SBATCH_ACCOUNT in your shell, or pass --partition and --account.

# module load cuda python                                     # modules
DISTMOE_PYTHON=${DISTMOE_PYTHON:-$DISTMOE_HOME/.venv/bin/python}
# A container's prefix, for example: DISTMOE_CONTAINER="apptainer exec --nv distmoe.sif"
DISTMOE_CONTAINER=${DISTMOE_CONTAINER:-}

# The network interface of the ranks. Unset, libraries guess; a host name that resolves to 127.0.1.1 (Debian's default)
# then ends in a time-out, and a wrong name in "Unable to find address for: ...".
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# srun no longer reads SLURM_CPUS_PER_TASK; without this, CPU binding leaves each rank one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Builds of operators belong on node-local storage: a stale lock on a shared folder hangs every later start.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions_$(id -u)}
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# How often a job that failed (not one that was refused or preempted) is queued again, resuming from its last checkpoint,
# and seconds before the first time; they double. Restarts after a preemption count as well.
export DISTMOE_RESTARTS=${DISTMOE_RESTARTS:-0} DISTMOE_PAUSE=${DISTMOE_PAUSE:-10}
