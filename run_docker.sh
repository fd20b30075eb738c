#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Starts a container that sees the data, the package and the accelerators, and nothing else:
#   bash run_docker.sh [--dry-run] [docker_image] [data_dir] [model_dir] [command ...]
#     docker_image  default: $IMAGE_NAME, else image_classification
#     data_dir      the data set, same path inside; default: $IMAGENET_TRAIN_DATASET, see env.sh
#     model_dir     the package, same path inside; default: the folder of this script
#     --dry-run     prints the command instead
# From the environment:
#   DEVICE=cuda|npu|mlu|xpu|cpu  the kind of device (default: what is there)
#   SHM_SIZE=64g                 shared memory of its own instead of the host's (--ipc=host)
#   DOCKER_FLAGS="..."           further flags, e.g. --network=host for several nodes

set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
HOST_ROOT=${HOST_ROOT:-} # the tests look for devices and drivers below another folder

fail() {
    echo "run_docker.sh: ${*:2}" >&2
    exit "$1"
}

dry_run=""
case ${1:-} in
    --dry-run)
        dry_run=yes
        shift
        ;;
    -h | --help)
        sed -n '4,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    -*) fail 2 "unknown option $1; see bash run_docker.sh -h" ;;
esac
# shellcheck source=env.sh
. "$ROOT/env.sh"
image=${1:-${IMAGE_NAME:-image_classification}}
data_dir=${2:-$IMAGENET_TRAIN_DATASET}
model_dir=${3:-$ROOT}
shift $(($# < 3 ? $# : 3))
[ -d "$data_dir" ] || fail 3 "data_dir $data_dir: no such folder (second argument)"
[ -d "$model_dir" ] || fail 2 "model_dir $model_dir: no such folder (third argument)"
data_dir=$(cd -- "$data_dir" && pwd)
model_dir=$(cd -- "$model_dir" && pwd)
case $data_dir$model_dir in
    *:*) fail 2 "a folder with ':' cannot be given to docker -v: data_dir $data_dir, model_dir" \
        "$model_dir; rename it, or name a link to it" ;;
esac

flags=()

# devices PATTERN...: adds the device files; fails when there is none for the first pattern.
devices() {
    local pattern path found=""
    for pattern in "$@"; do
        for path in "$HOST_ROOT"$pattern; do
            if [ -e "$path" ]; then
                flags+=(--device "${path#"$HOST_ROOT"}")
                found=yes
            fi
        done
        [ -n "$found" ] || fail 2 "DEVICE=$DEVICE, but no $pattern: is the driver loaded?"
    done
}

# mounts PATH...: adds what is there of the driver, read-only.
mounts() {
    local path
    for path in "$@"; do
        if [ -e "$HOST_ROOT$path" ]; then flags+=(-v "$path:$path:ro"); fi
    done
}

exists() { compgen -G "$HOST_ROOT$1" >/dev/null; }

if [ "${DEVICE:-auto}" = auto ]; then
    if exists "/dev/davinci[0-9]*"; then
        DEVICE=npu
    elif exists "/dev/cambricon_dev[0-9]*"; then
        DEVICE=mlu
    elif exists "/dev/nvidia[0-9]*"; then
        DEVICE=cuda
    else
        DEVICE=cpu
    fi
    echo "run_docker.sh: found DEVICE=$DEVICE" >&2
fi
masks=()
case $DEVICE in
    cuda | gpu)
        flags+=(--gpus all --ulimit memlock=-1 --ulimit stack=67108864)
        masks=(CUDA_VISIBLE_DEVICES)
        ;;
    npu)
        devices "/dev/davinci[0-9]*" /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc
        mounts /usr/local/Ascend/driver /usr/local/dcmi /usr/local/bin/npu-smi \
            /usr/local/sbin/npu-smi /etc/ascend_install.info /etc/hccn.conf
        masks=(ASCEND_RT_VISIBLE_DEVICES)
        ;;
    mlu)
        devices "/dev/cambricon_dev[0-9]*" /dev/cambricon_ctl "/dev/cambricon_ipcm[0-9]*"
        mounts /usr/bin/cnmon
        masks=(MLU_VISIBLE_DEVICES)
        ;;
    xpu)
        devices "/dev/dri/renderD*"
        mounts /dev/dri/by-path # the driver finds several devices through it
        masks=(ZE_AFFINITY_MASK)
        ;;
    cpu) ;;
    *) fail 2 "DEVICE=$DEVICE: expected auto, cuda, npu, mlu, xpu or cpu" ;;
esac
for mask in ${masks[@]+"${masks[@]}"}; do
    if [ -n "${!mask:-}" ]; then flags+=(-e "$mask"); fi
done
if [ -t 0 ] && [ -t 1 ]; then flags+=(-t); fi
# Loader workers pass batches through shared memory, of which Docker gives 64 MB.
if [ -n "${SHM_SIZE:-}" ]; then flags+=(--shm-size "$SHM_SIZE"); else flags+=(--ipc=host); fi
# The Python of the image is used, not an environment that was made outside.
if [ -d "$model_dir/.venv" ]; then flags+=(-v "$model_dir/.venv"); fi
read -r -a further <<<"${DOCKER_FLAGS:-}"
command=(docker run -i --rm --init "${flags[@]}" ${further[@]+"${further[@]}"}
    -v "$data_dir:$data_dir" -v "$model_dir:$model_dir" -w "$model_dir"
    -e "IMAGENET_TRAIN_DATASET=$data_dir" "$image" "$@")
if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
command -v docker >/dev/null || fail 2 "docker is not installed"
exec "${command[@]}"
