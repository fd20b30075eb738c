# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The JPEG decoder under AddressSanitizer and UBSan, on a corpus and damaged copies of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.fast_loader.build import KERNEL_FLAGS, SOURCES

FUZZ = Path(__file__).parents[1] / "fuzz"
UNUSED = {"c_api", "batch_decoder", "image_file"}  # threads and files are not what is fuzzed
# Tracking variables through instrumented code takes a minute; the lines of a report need none.
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-var-tracking", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with its sanitizers")
def test_no_input_makes_the_decoder_step_out_of_line(tmp_path: Path) -> None:
    kernel_flags = KERNEL_FLAGS if platform.machine() == "x86_64" else {}
    sources = [path for path in SOURCES.glob("*.cpp") if path.stem not in UNUSED]
    objects = []
    for source in [*sources, FUZZ / "decode_fuzzer.cpp", FUZZ / "replay.cpp"]:
        objects.append(tmp_path / f"{source.stem}.o")
        extra = kernel_flags.get(source.stem, ())
        command = ["g++", *FLAGS, *extra, f"-I{SOURCES}", "-c", source, "-o", objects[-1]]
        built = subprocess.run(command, capture_output=True, text=True)
        if "cannot find -lasan" in built.stderr:
            pytest.skip("g++ has no sanitizers here")
        assert built.returncode == 0, built.stderr
    subprocess.run(["g++", *FLAGS, *objects, "-o", tmp_path / "replay"], check=True)
    subprocess.run([sys.executable, FUZZ / "build_corpus.py", tmp_path / "corpus"], check=True)
    done = subprocess.run(
        [tmp_path / "replay", tmp_path / "corpus", "30"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 6000
