#!/bin/bash
# nodes.sh up DIR | down DIR: start or stop three Slurm nodes n1..n3 on this host for tests; then export SLURM_CONF=DIR/slurm.conf
# Needs root and Debian's slurmctld, slurmd, slurm-client. DIR is made if missing. Ports: first free block from 16810 on, or BASE=1234 for 12340-12343.
# With CAP_SYS_ADMIN each slurmd gets its own hostname, private /etc/hosts and PID namespace (so that killing the process in
# DIR/node.nK ends the whole node); without it the names go into /etc/hosts until "down", and no node can be killed.
set -eu
here=$(cd "$(dirname "$0")" && pwd); act=${1:?up or down}; mkdir -p "${2:?work folder}"; dir=$(cd "$2" && pwd); export SLURM_CONF=$dir/slurm.conf
case $act in
up)
  [ ! -e "$dir/pids" ] || { echo "$dir is in use: run 'nodes.sh down $dir' first" >&2; exit 1; }
  busy() { for k in 0 1 2 3; do (exec 3<> "/dev/tcp/127.0.0.1/$1$k") 2> /dev/null && return 0; done; return 1; }
  base=${BASE:-1681}; [ -n "${BASE:-}" ] || while busy "$base"; do base=$((base + 1)); done
  rm -rf "$dir"/state "$dir"/spool.*; mkdir "$dir"/state; : > "$dir"/pids
  sed "s#@DIR@#$dir#; s#@BASE@#$base#" "$here"/slurm.conf.in > "$SLURM_CONF"
  echo 'CgroupPlugin=cgroup/v1' > "$dir"/cgroup.conf                      # loaded but never used; the default, autodetect, fails in most containers
  echo 'NodeName=n[1-3] Name=gpu File=/dev/tty[1-4]' > "$dir"/gres.conf   # fake GPUs: any four device nodes that exist
  for i in 1 2 3 4; do [ -e /dev/tty$i ] || mknod /dev/tty$i c 4 $i; done
  names='127.0.0.1 n1 n2 n3 # distmoe test nodes'; { cat /etc/hosts; echo "$names"; } > "$dir"/hosts
  own=1; unshare --mount --uts --pid --fork --kill-child --mount-proc true 2> /dev/null || own=0
  [ $own = 1 ] || grep -qxF "$names" /etc/hosts || { echo "$names" >> /etc/hosts; touch "$dir"/hosts_changed; }
  setsid slurmctld -D -f "$SLURM_CONF" > "$dir"/slurmctld.out 2>&1 < /dev/null & echo $! >> "$dir"/pids
  for n in n1 n2 n3; do
    mkdir "$dir/spool.$n"
    if [ $own = 1 ]; then setsid unshare --mount --uts --pid --fork --kill-child --mount-proc sh -c 'mount --bind "$1/hosts" /etc/hosts; hostname "$2"; exec slurmd -D -N "$2" -f "$1/slurm.conf"' sh "$dir" $n > "$dir/slurmd.$n.out" 2>&1 < /dev/null &
    else setsid slurmd -D -N $n -f "$SLURM_CONF" > "$dir/slurmd.$n.out" 2>&1 < /dev/null & fi
    echo $! >> "$dir"/pids; [ $own = 0 ] || echo $! > "$dir/node.$n"
  done
  for i in $(seq 200); do [ "$(sinfo -h -N -o %T 2> /dev/null | grep -c idle)" != 3 ] || exit 0; sleep 0.1; done
  echo "nodes did not come up" >&2; sinfo -N -l >&2 || true; tail -n 5 "$dir"/*.out >&2; exit 1;;
down)
  [ -e "$dir/pids" ] || exit 0
  timeout 10 scancel -u "$(id -un)" 2> /dev/null || true
  for i in $(seq 100); do [ -n "$(timeout 5 squeue -h 2> /dev/null)" ] || break; sleep 0.1; done
  ours() { tr '\0' ' ' 2> /dev/null < "/proc/$1/cmdline" | grep -qF "$dir"; }       # the pid may belong to another process by now
  is_node() { grep -qsx "$1" "$dir"/node.n?; }                                       # unshare holds SIGTERM back; its node dies with it
  for p in $(tac "$dir"/pids); do ! ours "$p" || if is_node "$p"; then kill -9 "$p"; else kill "$p"; fi; done
  for i in $(seq 50); do left=0; sleep 0.1; for p in $(cat "$dir"/pids); do ! ours "$p" || left=1; done; [ $left = 1 ] || break; sleep 0.1; done
  for p in $(cat "$dir"/pids); do ! ours "$p" || kill -9 "$p"; done
  [ ! -e "$dir/hosts_changed" ] || { grep -v '# distmoe test nodes$' /etc/hosts > "$dir"/hosts; cat "$dir"/hosts > /etc/hosts; rm "$dir"/hosts_changed; }
  rm -f "$dir"/pids "$dir"/node.n?;;
*) echo "usage: nodes.sh up DIR | down DIR" >&2; exit 2;;
esac
