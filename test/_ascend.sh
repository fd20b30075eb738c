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
-b changes the name of the case and the rate with it; --resume auto goes on with an earlier run.
From the environment: DEVICE (default: auto), NPROC (default: $1), ASCEND_DEVICE_ID (default: 0; the
folder of the results, and the device of a run on one), PYTHON=$PYTHON.
Results: test/output/<device id>/ and ./<CaseName>.pth.tar
END
}

# refuse TEXT: ends before anything has happened.
refuse() {
    echo "$NAME: $1" >&2
    exit 2
}

# run_case perf|acc NPROC BATCH EPOCHS "$@": trains and leaves what the document promises.
run_case() {
    local kind=$1 nproc=${NPROC:-$2} batch=$3 epochs=$4 data=() flags=() launch=() resume=""
    shift 4
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                usage "$nproc"
                exit 0
                ;;
            --workspace* | --seeds* | --checkpoint-filename* | --evaluate)
                refuse "${1%%=*} is not for this script, whose results have their places: use main.py"
                ;;
            --data_path | -b | --batch-size | --addr)
                if [ $# -lt 2 ]; then refuse "${1%%=*} needs a value"; fi
                ;;
        esac
        case $1 in
            --data_path=*) data=("${1#*=}") ;;
            --data_path)
                data=("$2")
                shift
                ;;
            --batch-size=*) batch=${1#*=} ;;
            -b | --batch-size)
                batch=$2
                shift
                ;;
            -b*) batch=${1#-b} ;;
            --addr=*)
                flags+=("$1")
                launch=(--master_addr "${1#*=}")
                ;;
            --addr)
                flags+=("$1" "$2")
                launch=(--master_addr "$2")
                shift
                ;;
            *)
                if [[ $1 == --resume* ]]; then resume=yes; fi
                flags+=("$1")
                ;;
        esac
        shift
    done
    need_python
    if [[ ${data[*]-x} == "" ]]; then refuse "--data_path is empty: --data_path=DIR"; fi
    if ! [[ $batch =~ ^[1-9][0-9]*$ ]]; then refuse "-b $batch: must be a whole number from 1"; fi
    if ! [[ $nproc =~ ^[1-9][0-9]*$ ]]; then refuse "NPROC=$nproc: must be a whole number from 1"; fi
    if [ "$nproc" = 1 ] && [ -n "${ASCEND_DEVICE_ID:-}" ] && [ "${DEVICE:-auto}" != cpu ]; then
        flags=(--gpu-id "$ASCEND_DEVICE_ID" ${flags[@]+"${flags[@]}"})
    fi
    local id=${ASCEND_DEVICE_ID:-0} images=$((nproc * batch)) started=$SECONDS status=0
    local case_name=${NETWORK}_bs${images}_${nproc}p_$kind output=$ROOT/test/output/$id
    local log=$output/train_$id.log workspace=$output/$case_name kept=""
    mkdir -p -- "$output"
    if [ -z "$resume" ]; then keep_earlier "$output" "$log" "$case_name"; fi
    local lr
    lr=$(awk "BEGIN { print 0.1 * $images / 128 }")
    local command=(
        "$PYTHON" "$ROOT/multiproc.py" --nproc_per_node "$nproc" ${launch[@]+"${launch[@]}"}
        "$ROOT/main.py" ${data[@]+"${data[@]}"}
        --dataset cifar100 --arch resnet50_cifar --device "${DEVICE:-auto}" --amp
        -b "$batch" --epochs "$epochs" --lr "$lr" --lr-milestones "60,120,160" --lr-gamma 0.2
        --wd 5e-4 --workspace "$workspace" ${flags[@]+"${flags[@]}"}
    )
    # A signal to the whole group must not end the log before the training.
    "${command[@]}" > >(trap '' INT TERM HUP && exec tee -a "$log") 2>&1 &
    local child=$!
    # Signals that this shell gets go on to the training, whose end is waited for. A job of a shell
    # ignores SIGINT; all three mean the same.
    trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM HUP
    while true; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if [ "$status" -ne 0 ]; then
        # Nothing was trained, say because of a wrong option: the earlier results stay in place.
        if [ -n "$kept" ] && ! [ -e "$workspace/checkpoint.pth.tar" ] &&
            ! grep -qs '"type": "epoch"' "$workspace/metrics.jsonl"; then
            rm -rf -- "$workspace"
            cat -- "$log" >>"$kept/$(basename -- "$log")"
            mv -f -- "$kept"/* "$output/"
            rmdir -- "$kept"
        fi
        echo "$NAME: the training failed with exit code $status; see $log" >&2
        exit "$status"
    fi
    PYTHONPATH=$ROOT "$PYTHON" -m image_classification.report "$workspace" --case "$case_name" \
        --network "$NETWORK" --output "$output" --seconds $((SECONDS - started)) | tee -a "$log"
    if [ -e "$workspace/checkpoint.pth.tar" ]; then # not with --no-checkpoints
        cp -f -- "$workspace/checkpoint.pth.tar" "$ROOT/.$case_name.tmp"
        mv -f -- "$ROOT/.$case_name.tmp" "$ROOT/$case_name.pth.tar"
        echo "weights: $ROOT/$case_name.pth.tar, log: $log"
    fi
}

# keep_earlier OUTPUT LOG CASE: moves the log of the device and the results of an earlier run of this
# case out of the way, into the folder `kept`.
keep_earlier() {
    local old stamp number=1
    stamp=$1/earlier/$(date +%Y%m%d-%H%M%S)
    while [ -e "$stamp${number#1}" ]; do number=$((number + 1)); done
    stamp=$stamp${number#1}
    for old in "$2" "$1/$3" "$1/$3.log" "$1/train_$3_perf_report.log"; do
        if [ -e "$old" ]; then
            mkdir -p -- "$stamp"
            mv -- "$old" "$stamp/"
            kept=$stamp
        fi
    done
}
