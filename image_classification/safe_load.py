# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The one function that reads weight and checkpoint files, without ever running their code.

A file of `torch.save` is a pickle: a program that can call anything. torch reads it with
`weights_only=True`, which allows tensors and plain values alone; before torch 2.6 two kinds of
container evaded that (CVE-2025-32434), so the container is looked at first. There is no option
and no fallback that reads a file in any other way.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from image_classification.errors import CheckpointError
from image_classification.model_card import from_strings

_ZIP = b"PK\x03\x04"
# torch.save before 1.6, and today with _use_new_zipfile_serialization=False: a pickled number.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_FOREIGN = {
    b"\x80": "a plain pickle, not a file of torch.save",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"<": "a web page; the download needs to be repeated",
    b"\x89HDF": "an HDF5 file of another framework",
    b"\x08": "an ONNX or protobuf file, which holds no training weights; classify.py takes one "
    "whose name ends in .onnx",
}
# Kinds of numbers with which a network can compute; others, such as 4 bits, lack the operations.
_NUMBERS = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
}  # fmt: skip
_CURE = "save tensors and plain values alone: torch.save(model.state_dict(), PATH)"


def is_plain_tensor(value: object) -> bool:
    """Whether something from a file is a dense CPU tensor of ordinary numbers."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.dtype in _NUMBERS
    )


def load_tensors(path: str | os.PathLike[str]) -> object:
    """Read a file of `torch.save` or a safetensors file onto the CPU.

    Args:
        path: the file. It is read completely and its check sums are compared.

    Returns:
        What was saved: tensors, and numbers, strings, lists, tuples, dicts around them. Of a
        safetensors file its tensors by name, below `state_dict` where export.py wrote it.

    Raises:
        CheckpointError: missing, damaged, foreign or unsafe file, in one line.
    """
    name = os.fspath(path)
    with _open(name) as file:
        head = file.read(4096)
        if _is_safetensors(head, os.fstat(file.fileno()).st_size):
            return _load_safetensors(name)
        if head.startswith(_ZIP):
            _check_zip(name, file)
        elif head.startswith(_LEGACY):
            if _torch_version() < (2, 6):
                raise CheckpointError(
                    f"cannot load {name!r}: the format of torch.save before 1.6 is safe to read "
                    "only from torch 2.6 on; load it there with weights_only=True and save it again"
                )
        else:
            raise CheckpointError(f"cannot load {name!r}: it is {_describe(head)}")
        file.seek(0)
        return _load_pickle(name, file)


def _open(name: str) -> BinaryIO:
    """Open a regular, non-empty file; a named pipe, for one, would block for ever."""
    try:
        status = Path(name).stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            inside = sorted(path.name for path in Path(name).glob("*.pth*"))[:3]
            cure = f"give a file in it: {', '.join(inside)}" if inside else "give a weight file"
            raise CheckpointError(f"cannot load {name!r}: it is {kind}; {cure}")
        if status.st_size == 0:
            raise CheckpointError(f"cannot load {name!r}: it is empty; write or copy it again")
        return open(name, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot load {name!r}: {reason}; check the path") from error


def _describe(head: bytes) -> str:
    # A tar archive has its magic number behind the first member's name.
    if head[257:262] == b"ustar" or head.startswith(b"sys_info"):
        return f"a tar archive (torch.save before 0.1.10 wrote such files); {_CURE}"
    for magic, description in _FOREIGN.items():
        if head.startswith(magic):
            return f"{description} ({_CURE})" if magic == b"\x80" else description
    return "neither a file of torch.save nor a safetensors file, or its beginning is damaged"


def _check_zip(name: str, file: BinaryIO) -> None:
    """Refuse what torch would run (TorchScript) and what it would not notice (flipped bits)."""
    try:
        with zipfile.ZipFile(file) as archive:
            # torch.save puts everything into one folder, which torch's reader leaves out.
            members = [member.filename.partition("/")[2] for member in archive.infolist()]
            _refuse_torchscript(name, members)
            if "data.pkl" not in members:
                raise CheckpointError(
                    f"cannot load {name!r}: it is a zip archive of something else"
                )
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CheckpointError(
                    f"cannot load {name!r}: it was compressed after torch.save; unpack it and zip "
                    "it again without compression (zip -0)"
                )
            _compare_check_sums(archive)
        # Asked again of torch's own reader: a crafted file can show two readers different members.
        file.seek(0)
        _refuse_torchscript(name, torch._C.PyTorchFileReader(file).get_all_records())
    except CheckpointError:
        raise
    # The bytes are not trusted, so neither is the list of what a reader may raise on them.
    except Exception as error:
        raise CheckpointError(
            f"cannot load {name!r}: it is truncated or damaged; copy or write it again"
        ) from error


def _refuse_torchscript(name: str, members: list[str]) -> None:
    if "constants.pkl" in members or any(member.startswith("code/") for member in members):
        raise CheckpointError(
            f"cannot load {name!r}: it is a TorchScript archive, that is code; {_CURE}"
        )


def _compare_check_sums(archive: zipfile.ZipFile) -> None:
    """Read every member; zipfile raises BadZipFile where a check sum is wrong."""
    for member in archive.infolist():
        if member.CRC == 0:  # not computed: torch.serialization.set_crc32_options(False)
            continue
        with archive.open(member) as record:
            while record.read(1 << 20):
                pass


def _load_pickle(name: str, file: BinaryIO) -> object:
    safe_globals = getattr(torch.serialization, "safe_globals", None)  # torch 2.5
    # torchvision's training script stores its options as a Namespace, which is data.
    allowed = safe_globals([argparse.Namespace]) if safe_globals else contextlib.nullcontext()
    try:
        with allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's are about damage, which is an error here
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        unsafe = re.search(r"GLOBAL ([A-Za-z0-9_.]+)", str(error))
        if unsafe:
            what = unsafe.group(1).rstrip(".")
            raise CheckpointError(
                f"refused to load {name!r}: it would call {what}, which could be harmful; {_CURE}"
            ) from error
        raise CheckpointError(
            f"cannot load {name!r}: it is damaged, or holds more than tensors and plain values; "
            f"copy it again, or {_CURE}"
        ) from error


def _is_safetensors(head: bytes, size: int) -> bool:
    """A length as 8 bytes little-endian, then JSON of that length."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _load_safetensors(name: str) -> object:
    try:
        safetensors = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise CheckpointError(
            f"cannot load {name!r}: safetensors files need a package; pip install safetensors"
        ) from error
    try:
        tensors = safetensors.load_file(name, device="cpu")
        with safetensors.safe_open(name, "pt") as file:
            card = from_strings(file.metadata() or {})
    except Exception as error:
        raise CheckpointError(
            f"cannot load {name!r}: it is a damaged safetensors file; copy it again"
        ) from error
    return {**card, "state_dict": tensors} if card else tensors


def _torch_version() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", torch.__version__)[:2]
    return int(major), int(minor)
