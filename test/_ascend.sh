# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the twelve acceptance scripts share; sourced by them, not run.
#
# ResNet-50 on CIFAR-100 with the recipe of the reference (mmpretrain's resnet50_8xb16_cifar100):
# lr 0.1 at 128 images per step, in proportion to the batch otherwise, divided by 5 after epochs 60,
# 120 and 160 of 200, weight decay 5e-4, no other regularisation.

# ROOT, NAME and PYTHON come from here.
source "$(dirname -- "${BASH_SOURCE[0]}")/../run_scripts/_common.sh"
NETWORK=Resnet50_cifar_for_PyTorch

usage() {
    cat <<END
usage: bash test/$NAME.sh [--data_path=DIR] [flags of main.py ...]

DIR holds cifar-100-python (or is that folder, or its .tar.gz); without it CIFAR-100 is downloaded
into data/. Flags given here come after those of the recipe and win; python main.py -h lists them.
From the environment: DEVICE (default: auto), NPROC (default: $1), ASCEND_DEVICE_ID (default: 0),
PYTHON=$PYTHON. Results: test/output/<device id>/ and ./<CaseName>.pth.tar
END
}

# run_case perf|acc NPROC BATCH EPOCHS "$@": trains and leaves what the document promises.
run_case() {
    local kind=$1 nproc=${NPROC:-$2} batch=$3 epochs=$4 data="" flags=()
    shift 4
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                usage "$nproc"
                exit 0
                ;;
            --data_path=*) data=${1#*=} ;;
            --data_path)
                if [ $# -lt 2 ]; then
                    echo "$NAME: --data_path needs a folder: --data_path=DIR" >&2
                    exit 2
                fi
                data=$2
                shift
                ;;
            *) flags+=("$1") ;;
        esac
        shift
    done
    local id=${ASCEND_DEVICE_ID:-0} images=$((nproc * batch)) started=$SECONDS status=0
    local case_name=${NETWORK}_bs${images}_${nproc}p_$kind output=$ROOT/test/output/$id
    local log=$output/train_$id.log workspace=$output/$case_name
    keep_earlier "$output" "$log" "$case_name"
    local lr
    lr=$(awk "BEGIN { print 0.1 * $images / 128 }")
    local command=("$PYTHON" "$ROOT/multiproc.py" --nproc_per_node "$nproc" "$ROOT/main.py")
    if [ -n "$data" ]; then command+=("$data"); fi
    command+=(
        --dataset cifar100 --arch resnet50_cifar --device "${DEVICE:-auto}" --amp
        -b "$batch" --epochs "$epochs" --lr "$lr" --lr-milestones 60,120,160 --lr-gamma 0.2
        --wd 5e-4 --workspace "$workspace" ${flags[@]+"${flags[@]}"}
    )
    "${command[@]}" > >(tee -a "$log") 2>&1 &
    local child=$!
    # Signals that this shell gets go on to the training; its own end is waited for.
    trap 'kill -TERM "$child" 2>/dev/null || true' TERM HUP
    trap 'kill -INT "$child" 2>/dev/null || true' INT
    while true; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if [ "$status" -ne 0 ]; then
        echo "$NAME: the training failed with exit code $status; see $log" >&2
        exit "$status"
    fi
    PYTHONPATH=$ROOT "$PYTHON" -m image_classification.report "$workspace" --case "$case_name" \
        --network "$NETWORK" --output "$output" --seconds $((SECONDS - started)) | tee -a "$log"
    cp -f -- "$workspace/checkpoint.pth.tar" "$ROOT/$case_name.pth.tar"
    echo "weights: $ROOT/$case_name.pth.tar, log: $log"
}

# keep_earlier OUTPUT LOG CASE: moves the results of an earlier run of this case out of the way.
keep_earlier() {
    local old stamp
    mkdir -p -- "$1"
    stamp=$1/earlier/$(date +%Y%m%d-%H%M%S)
    for old in "$2" "$1/$3" "$1/$3.log" "$1/train_$3_perf_report.log"; do
        if [ -e "$old" ]; then
            mkdir -p -- "$stamp"
            mv -- "$old" "$stamp/"
        fi
    done
}
