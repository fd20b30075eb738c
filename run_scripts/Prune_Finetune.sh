#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Makes a trained ResNet narrower, trains what is left, and compares both:
#   bash run_scripts/Prune_Finetune.sh CHECKPOINT DIR [WORKSPACE] [flags of main.py ...]
# From the environment: KEEP (share of the channels that is left, 0.7), DEVICE, NPROC, PYTHON.
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"
case ${1:-} in
    "" | -*)
        sed -n '5,6s/^# *//p' "${BASH_SOURCE[0]}"
        if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then exit 0; fi
        exit 2
        ;;
esac
need_python
checkpoint=$(find_checkpoint "$1") || exit $?
if [ -z "${2:-}" ]; then
    echo "$NAME: no data: bash run_scripts/$NAME.sh CHECKPOINT DIR" >&2
    exit 2
fi
data=$2 workspace=$(dirname -- "$checkpoint")/pruned
shift 2
case ${1:-} in
    "" | -*) ;;
    *)
        workspace=$1
        shift
        ;;
esac
mkdir -p -- "$workspace"
"$PYTHON" "$ROOT/prune.py" --checkpoint "$checkpoint" --keep "${KEEP:-0.7}" \
    --output "$workspace/pruned.pth.tar"
# A small rate: the weights are good, they only have to make up for what is gone.
"$PYTHON" "$ROOT/multiproc.py" --nproc_per_node "${NPROC:-1}" "$ROOT/main.py" "$data" \
    --device "${DEVICE:-auto}" --workspace "$workspace" --raport-file raport.json \
    --pretrained-weights "$workspace/pruned.pth.tar" \
    --epochs 30 -b 64 --lr 0.01 --lr-schedule cosine --momentum 0.9 --weight-decay 1e-4 "$@"
"$PYTHON" "$ROOT/benchmarks/inference.py" "$checkpoint" "$workspace/pruned.pth.tar" \
    "$workspace/model_best.pth.tar" --data "$data" --json "$workspace/pruned.json"
