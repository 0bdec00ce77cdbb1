#!/usr/bin/env bash
# A run, or a sweep, on all hosts of a Cloud TPU slice. On your own machine, from the root of the clone, with gcloud:
#
#   experiments/launch/tpu_pod.sh create [--spot ...]                # flags of `gcloud compute tpus tpu-vm create`
#   experiments/launch/tpu_pod.sh install                            # the committed code, its packages, the share
#   experiments/launch/tpu_pod.sh train [--config.KEY=VALUE ...]     # in the background, on every host
#   experiments/launch/tpu_pod.sh sweep [--config.KEY=VALUE ...]     # every host trains its share of the members
#   experiments/launch/tpu_pod.sh log                                # what the first host's process prints
#   experiments/launch/tpu_pod.sh stop                               # saves; `train` or `sweep` again goes on
#   experiments/launch/tpu_pod.sh delete
#
# It was not tried on a pod; docs/launch.md says what each step rests on.

set -euo pipefail

# What to change, here or in the environment.
: "${NAME:=gan-jax}"
: "${ZONE:=europe-west4-b}"
: "${TYPE:=v5litepod-16}" # 16 chips on 4 hosts
: "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${CHIPS:=2,2,1}" # of one host of that type, as a box; for `sweep`
: "${NFS:=10.0.0.2:/gan_jax}" # a Filestore share in the slice's network; a gs:// address is no POSIX path and will not do
: "${CONFIG:=configs/dcgan.py:cifar10}"
: "${SWEEP:=experiments/sweeps/seeds.py}"
: "${WORKDIR:=/mnt/gan_jax/runs/first}" # of the run or the sweep, in the share, which is mounted at /mnt/gan_jax

on_hosts() { # WHICH COMMAND
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

# OS Login gives a user the same number on all hosts, which NFS asks for.
create() {
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$RUNTIME" \
        --metadata=enable-oslogin=TRUE "$@"
}

# The images carry Python 3.10; uv brings a newer one.
install() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:gan_jax.tar.gz" --zone="$ZONE" --worker=all
    rm "$archive"
    on_hosts all "set -e
        mkdir -p gan_jax && tar -xzf gan_jax.tar.gz -C gan_jax
        python3 -m pip install --quiet --user uv
        test -e venv || ~/.local/bin/uv venv --python 3.12 venv
        ~/.local/bin/uv pip install --quiet --python venv/bin/python -e './gan_jax[tpu,tfds]'
        sudo apt-get install -qq nfs-common
        sudo mkdir -p /mnt/gan_jax
        mountpoint -q /mnt/gan_jax || sudo mount -t nfs $(printf %q "$NFS") /mnt/gan_jax
        sudo install -d -o \"\$(id -u)\" $(printf %q "$WORKDIR")"
}

# In the background, so that it outlives the connection.
start() { # PREPARATION ARGUMENT-OF-PYTHON ...
    local preparation=$1
    shift
    on_hosts all "cd gan_jax || exit 2
        if kill -0 \"\$(cat ~/gan_jax.pid 2>/dev/null)\" 2>/dev/null; then echo 'it runs already'; exit 2; fi
        $preparation
        nohup ~/venv/bin/python $* >~/gan_jax.log 2>&1 </dev/null &
        echo \$! >~/gan_jax.pid"
}

# jax finds the processes by the slice's metadata.
train() {
    start '' "$(printf '%q ' -m gan_jax.main --config="$CONFIG" --workdir="$WORKDIR" "$@")"
}

# Processes of a sweep do not communicate: libtpu is told that each host is a slice of its own. Which host it is, and
# of how many, is asked of the metadata where jax asks too.
sweep() {
    local arguments
    arguments=$(printf '%q ' -m gan_jax.sweep --config="$CONFIG" --sweep="$SWEEP" --workdir="$WORKDIR" "$@")
    # shellcheck disable=SC2016  # expanded over there
    start "export TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=$CHIPS CLOUD_TPU_TASK_ID=0"'
        about() { curl -sf -H "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
        index=$(about agent-worker-number) && hosts=$(about worker-network-endpoints | tr "," "\n" | wc -l) || exit 1' \
        "$arguments" '--num_processes="$hosts" --process_id="$index"'
}

log() {
    on_hosts 0 'tail -n +1 -f gan_jax.log'
}

# One signal would do for `train`, whose processes then stop at the same step; a sweep's know nothing of each other.
stop() {
    # shellcheck disable=SC2016  # expanded over there
    on_hosts all 'pid=$(cat gan_jax.pid) && kill -TERM "$pid" 2>/dev/null && tail --pid="$pid" -f /dev/null
        tail -n 1 gan_jax.log'
}

delete() {
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
}

case ${1:-} in
create | install | train | sweep) "$@" ;;
log | stop | delete) "$1" ;;
*)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
