#!/bin/bash
# lint.sh SCRIPT...: check sbatch scripts with "sbatch --test-only" against a made-up cluster of 128 nodes x 8 H100; only slurmctld runs (no slurmd, no munge)
# Needs Debian's slurmctld and slurm-client, root. Exit code 0 = all good. Also: bash -n, and #SBATCH lines that Slurm ignores because a command stands before them.
set -eu
[ $# -gt 0 ] || { echo "usage: lint.sh SCRIPT..." >&2; exit 2; }
dir=$(mktemp -d); mkdir "$dir"/state; printf '#!/bin/sh\nexit 0\n' > "$dir"/nop; chmod +x "$dir"/nop
port=${PORT:-16900}; [ -n "${PORT:-}" ] || while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
cat > "$dir"/slurm.conf <<EOF
ClusterName=lint
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
EnforcePartLimits=ALL
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/pid
# CLOUD nodes are schedulable although nobody ever registers them; that needs the power-saving programs, which never run
SlurmdParameters=config_overrides
ResumeProgram=$dir/nop
SuspendProgram=$dir/nop
SuspendTime=86400
GresTypes=gpu
NodeName=gpu[001-128] NodeAddr=127.0.0.1 Sockets=2 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=2000000 Gres=gpu:h100:8 Features=h100,ib State=CLOUD
PartitionName=gpu Nodes=gpu[001-128] Default=YES MaxTime=2-00:00:00 State=UP
EOF
printf 'AutoDetect=off\nNodeName=gpu[001-128] Name=gpu Type=h100 File=/dev/nvidia[0-7]\n' > "$dir"/gres.conf
export SLURM_CONF=$dir/slurm.conf
slurmctld -D -f "$SLURM_CONF" > "$dir"/out 2>&1 & ctld=$!
trap 'kill $ctld 2> /dev/null || true; wait $ctld 2> /dev/null || true; rm -rf "$dir"' EXIT
for i in $(seq 100); do ! scontrol ping 2> /dev/null | grep -q "is UP" || break; sleep 0.1; done
kill -0 $ctld 2> /dev/null || { cat "$dir"/out >&2; exit 3; }
bad=0
for f in "$@"; do
  bash -n "$f" || bad=1
  late=$(awk '/^#SBATCH/ {if (cmd) print NR} !/^[[:space:]]*(#|$)/ {cmd = 1}' "$f" | tr '\n' ' '); [ -z "$late" ] || { echo "$f: #SBATCH after the first command is ignored: line $late"; bad=1; }
  text=$(sbatch --test-only "$f" 2>&1) || bad=1; echo "$f: $(tail -n 1 <<< "$text")"
done
exit $bad
