# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034
# What the recipes share; sourced by them, not run.
#
# From the environment: DEVICE, NPROC, PYTHON, IMAGENET_TRAIN_DATASET (CIFAR: CIFAR_DATASET) and, for
# inference, PRECISION.

set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
NAME=$(basename -- "$0" .sh)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON=$ROOT/.venv/bin/python; fi
fi

# ResNet-50 v1.5 of the NGC catalogue, 90 epochs: 2048 images per optimizer step on any number of
# devices (gradients are accumulated where devices x 128 is less).
NGC_RESNET50_V15_90E=(
    --arch resnet50 -c fanin --epochs 90 -b 128 --optimizer-batch-size 2048
    --lr 2.048 --lr-schedule cosine --warmup 8 --mom 0.875 --wd 3.0517578125e-05
    --label-smoothing 0.1 -j4 -p 100
)

# show_usage POSITIONAL VARIABLES: what -h as the first argument prints.
show_usage() {
    local dataset=IMAGENET_TRAIN_DATASET
    if [ -n "${DATA+set}" ]; then dataset=CIFAR_DATASET; fi
    cat <<END
usage: bash run_scripts/$NAME.sh [$1] [flags of main.py ...]

Flags given here come after those of the recipe and win; python main.py -h lists all of them.
From the environment (env.sh explains them): $dataset, PYTHON=$PYTHON,
$2
END
}

# need_python: checks what every recipe needs before it starts.
need_python() {
    if ! command -v "$PYTHON" >/dev/null; then
        echo "$NAME: PYTHON=$PYTHON cannot be run: name a Python, or bash scripts/setup_env.sh" >&2
        exit 2
    fi
}

# need_dataset: checks what every recipe for ImageNet needs before it starts.
need_dataset() {
    need_python
    if [ -z "${IMAGENET_TRAIN_DATASET:-}" ]; then
        echo "please set environment variable IMAGENET_TRAIN_DATASET." >&2
        echo "(env.sh does: source env.sh; or IMAGENET_TRAIN_DATASET=DIR before the command)" >&2
        exit 3
    fi
}

# train DEVICE NPROC FLAGS... -- [WORKSPACE] [EXTRA FLAGS...]: becomes the launcher. The data is
# what the recipe has put into DATA (see use_cifar), else ImageNet.
train() {
    local device=${DEVICE:-$1} nproc=${NPROC:-$2} flags=()
    shift 2
    while [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    shift
    case ${1:-} in
        -h | --help)
            show_usage WORKSPACE "DEVICE=$device NPROC=$nproc"
            exit 0
            ;;
        -*) flags+=(--run-name "$NAME") ;;
        "")
            flags+=(--run-name "$NAME")
            if [ $# -gt 0 ]; then shift; fi
            ;;
        *)
            flags+=(--workspace "$1")
            shift
            ;;
    esac
    if [ -z "${DATA+set}" ]; then
        need_dataset
        DATA=("$IMAGENET_TRAIN_DATASET")
    fi
    need_python
    # exec: the launcher takes this shell's place, so that signals reach it.
    exec "$PYTHON" "$ROOT/multiproc.py" --nproc_per_node "$nproc" "$ROOT/main.py" \
        "${DATA[@]}" --raport-file raport.json --device "$device" "${flags[@]}" "$@"
}

# share IMAGES: prints how many of the images of a step each of NPROC processes (default: 1) gets.
share() {
    local nproc=${NPROC:-1}
    if ! [[ $nproc =~ ^[1-9][0-9]*$ ]] || [ $(($1 % nproc)) -ne 0 ]; then
        echo "$NAME: NPROC=$nproc: must divide the $1 images of a step" >&2
        exit 2
    fi
    echo $(($1 / nproc))
}

# use_cifar cifar10|cifar100: the data set of a recipe; CIFAR_DATASET names its folder, else it is
# downloaded into data/ where it is missing.
use_cifar() {
    DATA=(--dataset "$1")
    if [ -n "${CIFAR_DATASET:-}" ]; then DATA+=("$CIFAR_DATASET"); fi
}

# newest FILE...: prints the newest of those that exist, if any.
newest() {
    local candidate found=""
    for candidate in "$@"; do
        if [ -f "$candidate" ] && { [ -z "$found" ] || [ "$candidate" -nt "$found" ]; }; then
            found=$candidate
        fi
    done
    if [ -n "$found" ]; then echo "$found"; fi
}

# find_checkpoint [PATH]: prints the file itself, the checkpoint of a run's folder, or the newest
# best one below models/. With --seeds the runs lie in seed_* folders: the newest best one wins.
find_checkpoint() {
    local best=model_best.pth.tar last=checkpoint.pth.tar found
    if [ -z "${1:-}" ]; then
        found=$(newest "$ROOT"/models/*/"$best" "$ROOT"/models/*/seed_*/"$best")
        if [ -z "$found" ]; then
            echo "$NAME: no checkpoint: there is no $best in $ROOT/models/* or models/*/seed_*;" \
                "train first or name a checkpoint: bash run_scripts/$NAME.sh PATH" >&2
            return 4
        fi
    elif [ -f "$1" ]; then
        found=$1
    else
        found=$(newest "$1/$best" "$1"/seed_*/"$best")
        if [ -z "$found" ]; then found=$(newest "$1/$last" "$1"/seed_*/"$last"); fi
        if [ -z "$found" ]; then
            echo "$NAME: no checkpoint: $1 is neither a file nor a folder with $best or $last" \
                "in it or in its seed_* folders; train first or name another one" >&2
            return 4
        fi
    fi
    echo "$found"
}

# infer FLAGS... -- [WORKSPACE or CHECKPOINT] [EXTRA FLAGS...]: becomes one process of main.py.
infer() {
    local flags=() wanted="" path
    while [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    shift
    case ${1:-} in
        -h | --help)
            show_usage "WORKSPACE|CHECKPOINT" "DEVICE=${DEVICE:-auto} PRECISION=FP32"
            exit 0
            ;;
        -*) ;;
        *)
            wanted=${1:-}
            if [ $# -gt 0 ]; then shift; fi
            ;;
    esac
    case ${PRECISION:-FP32} in
        FP32) ;;
        FP16) flags+=(--fp16) ;;
        AMP) flags+=(--amp) ;;
        *)
            echo "$NAME: PRECISION=$PRECISION: expected FP32, FP16 or AMP" >&2
            exit 2
            ;;
    esac
    need_dataset
    path=$(find_checkpoint "$wanted") || exit $?
    echo "evaluating $path" >&2
    exec "$PYTHON" "$ROOT/main.py" "$IMAGENET_TRAIN_DATASET" --evaluate --resume "$path" \
        --workspace "$(dirname -- "$path")" --raport-file raport.json \
        --device "${DEVICE:-auto}" "${flags[@]}" "$@"
}
