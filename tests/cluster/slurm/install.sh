#!/bin/bash
# install.sh: Debian's Slurm, pdsh and iproute2 for tests/cluster, when root and packages are to be had; else it says what is missing and leaves.
set -eu
have() { for name in slurmctld slurmd sbatch pdsh ip; do command -v $name > /dev/null || return 1; done; }
if have; then exit 0; fi
[ "$(id -u)" = 0 ] || { echo "Slurm or pdsh is not installed and this is not root: tests that need it will be skipped" >&2; exit 0; }
command -v apt-get > /dev/null || { echo "Slurm or pdsh is not installed and there is no apt-get: tests that need it will be skipped" >&2; exit 0; }
# The packages want to start services, which tests do not want; the file goes away again.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT; fi
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client pdsh iproute2; }
install > /dev/null 2>&1 || { apt-get update > /dev/null 2>&1 && install > /dev/null 2>&1; } ||
  echo "apt-get install slurmctld slurmd slurm-client pdsh iproute2 failed: tests that need them will be skipped" >&2
