#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Fuzzes the JPEG decoder under AddressSanitizer and UndefinedBehaviorSanitizer; needs clang++.
#
# bash test/fuzz/run_fuzzer.sh [SECONDS] [FOLDER]
#   SECONDS   how long (default: 60)
#   FOLDER    for the program, the corpus and what it finds (default: test/output/fuzz)
# From the environment: CXX (default: clang++), PYTHON (default: python3).
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
seconds=${1:-60} folder=${2:-$ROOT/test/output/fuzz}
csrc=$ROOT/image_classification/fast_loader/csrc
mkdir -p "$folder/corpus" "$folder/objects" "$folder/findings"
flags=(-std=c++17 -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
for source in "$csrc"/*.cpp "$ROOT/test/fuzz/decode_fuzzer.cpp"; do
    case $(basename "$source") in
        kernels_avx2.cpp) extra=(-mavx2 -mbmi -mbmi2 -mmovbe) ;;
        kernels_avx512.cpp)
            extra=(-mavx2 -mbmi -mbmi2 -mmovbe -mavx512f -mavx512bw -mavx512vl -mavx512vbmi)
            ;;
        c_api.cpp | batch_decoder.cpp | image_file.cpp) continue ;;
        *) extra=() ;;
    esac
    [ "$(uname -m)" = x86_64 ] || extra=()
    "${CXX:-clang++}" "${flags[@]}" ${extra[@]+"${extra[@]}"} -I"$csrc" -c "$source" \
        -o "$folder/objects/$(basename "$source").o"
done
"${CXX:-clang++}" -fsanitize=fuzzer,address,undefined "$folder"/objects/*.o -o "$folder/decode_fuzzer"
"${PYTHON:-python3}" "$ROOT/test/fuzz/build_corpus.py" "$folder/corpus"
"$folder/decode_fuzzer" -max_total_time="$seconds" -max_len=8192 -timeout=10 \
    -artifact_prefix="$folder/findings/" -print_final_stats=1 "$folder/corpus"
