#!/usr/bin/env bash
# A real Slurm on this machine alone, to try slurm.sbatch with: Debian or Ubuntu, as root, on the loopback interface.
#
#   experiments/launch/local_slurm.sh start DIR    # installs it where it is missing; then: export SLURM_CONF=DIR/slurm.conf
#   experiments/launch/local_slurm.sh stop DIR
#
# Its configuration, keys, state and logs are in DIR (a new folder for `start`), and it touches no other Slurm.

set -euo pipefail

if (($# != 2)) || [[ $1 != start && $1 != stop ]]; then
    echo "usage: $0 start|stop DIR" >&2
    exit 2
fi
if ((EUID != 0)); then
    echo "error: start it as root: it installs packages, and slurmd starts tasks as their users" >&2
    exit 2
fi
mkdir -p "$2"
dir=$(cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf

install() {
    if ! type munged slurmctld slurmd sbatch >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends munge slurm-wlm >/dev/null
    fi
}

# A port that nobody listens on: bash's /dev/tcp connects.
free_port() {
    local port=$1
    while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    echo "$port"
}

# Without systemd and cgroups, so that it runs in a container too. A job that is queued again waits until its old
# credential has ended: 5 seconds here, 120 by default.
configure() {
    local port
    port=$(free_port 16817)
    cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$(free_port $((port + 1)))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    printf 'CgroupPlugin=autodetect\nIgnoreSystemd=yes\n' >"$dir/cgroup.conf"
    mkdir "$dir/state" "$dir/spool"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
}

start() {
    if [[ -e $SLURM_CONF ]]; then
        echo "error: $dir holds a Slurm already; give a new folder" >&2
        exit 2
    fi
    install
    configure
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -i
    slurmd -N localhost 2>/dev/null
    for ((waited = 0; waited < 60; waited++)); do
        if [[ $(sinfo --noheader --format=%T) == idle ]]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 1
    done
    echo "error: the node is not ready after a minute; see $dir/slurmctld.log and $dir/slurmd.log" >&2
    exit 1
}

stop() {
    scancel --quiet --full --signal=KILL --user=root 2>/dev/null || true
    for daemon in slurmd slurmctld munged; do
        if [[ -s $dir/$daemon.pid ]]; then
            pid=$(<"$dir/$daemon.pid")
            kill "$pid" 2>/dev/null || continue
            tail --pid="$pid" -f /dev/null
        fi
    done
}

"$1"
