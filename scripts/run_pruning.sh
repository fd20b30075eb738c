#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Makes a trained ResNet narrower, trains what is left, and compares before and after:
#   bash scripts/run_pruning.sh CHECKPOINT DIR WORKSPACE [flags of main.py ...]
# From the environment: KEEP (share of the channels that is left, 0.7), DEVICE, NPROC, PYTHON.
source "$(dirname -- "${BASH_SOURCE[0]}")/../run_scripts/_common.sh"
if [ $# -lt 3 ] || [[ "$1$2$3" = -* ]]; then
    sed -n '5,6s/^# *//p' "${BASH_SOURCE[0]}"
    case ${1:-} in -h | --help) exit 0 ;; esac
    exit 2
fi
checkpoint=$1 data=$2 workspace=$3
shift 3
need_python
judge=()
for ((place = 1; place <= $#; place++)); do
    next=$((place + 1))
    case ${!place} in
        --val-split) judge=(--val-split "${!next:-}") ;;
        --val-split=*) judge=("${!place}") ;;
    esac
done
mkdir -p -- "$workspace"
if [ -e "$workspace/pruned.pth.tar" ]; then # CHECKPOINT and KEEP count in the first start only
    echo "$NAME: going on with $workspace/pruned.pth.tar"
else
    "$PYTHON" "$ROOT/prune.py" --checkpoint "$checkpoint" --keep "${KEEP:-0.7}" \
        --output "$workspace/pruned.pth.tar"
fi
# A small rate: the weights are good, they only have to make up for what is gone.
"$PYTHON" "$ROOT/multiproc.py" --nproc_per_node "${NPROC:-1}" "$ROOT/main.py" "$data" \
    --device "${DEVICE:-auto}" --workspace "$workspace" --raport-file raport.json \
    --pretrained-weights "$workspace/pruned.pth.tar" --resume auto \
    --epochs 30 -b 32 --lr 0.01 --lr-schedule cosine --momentum 0.9 --weight-decay 1e-4 "$@"
"$PYTHON" "$ROOT/benchmarks/inference.py" "$checkpoint" "$workspace/pruned.pth.tar" \
    "$workspace/model_best.pth.tar" --data "$data" ${judge[@]+"${judge[@]}"} \
    --json "$workspace/pruned.json"
