# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The real command line on the CPU-backed fake npu and mlu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes.support import fake_environment, skip_reason
from runs import (
    checkpoint,
    environment,
    run_main,
    same,
    values,
    write_images,
    write_narrow_weights,
)

REASON = skip_reason()
pytestmark = [
    pytest.mark.fake_accelerator,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

# Another order in memory is another order of sums: the cpu has to take that of the accelerators.
SMALL = ("--arch", "resnet18", "--image-size", 32, "-b", 4, "-j", 0, "-p", 1, "--lr", 0.01,
         "--seed", 7, "--memory-format", "nchw", "--epochs", 1, "--prof", 4)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def on_cpu(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("cpu") / "run"
    run_main(images, *SMALL, "--device", "cpu", "--workspace", workspace)
    return workspace


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return write_narrow_weights(tmp_path_factory.mktemp("weights") / "narrow.pth", "resnet18")


def fake(kind: str, **switches: object) -> dict[str, str]:
    return {**fake_environment(kind, **switches), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("kind", ["npu", "mlu"])
def test_fp32_equals_the_cpu_bit_for_bit(
    images: Path, on_cpu: Path, tmp_path: Path, kind: str
) -> None:
    done = run_main(images, *SMALL, "--device", kind, "--workspace", tmp_path / "w", env=fake(kind))
    assert f"1 x {kind}:0" in done.stdout
    for metric in ("train.loss", "train.top1"):
        assert values(tmp_path / "w", "train", metric) == values(on_cpu, "train", metric)
    mine = checkpoint(tmp_path / "w" / "checkpoint.pth.tar")
    theirs = checkpoint(on_cpu / "checkpoint.pth.tar")
    assert same(mine["state_dict"], theirs["state_dict"]) == []
    assert same(mine["optimizer"], theirs["optimizer"]) == []


def test_auto_finds_a_plug_in_that_does_not_load_itself(
    images: Path, narrow: tuple[str, Path], tmp_path: Path
) -> None:
    stats = tmp_path / "stats.json"
    done = run_main(images, *SMALL, *narrow, "--amp", "--workspace", tmp_path / "w",
                    env=fake("mlu", stats=stats))  # fmt: skip
    assert "1 x mlu:0" in done.stdout and "bfloat16" in done.stdout
    assert all(loss > 0 for loss in values(tmp_path / "w", "train", "train.loss"))
    assert stats.exists()


def test_no_host_wait_per_step_on_an_accelerator(
    images: Path, narrow: tuple[str, Path], tmp_path: Path
) -> None:
    stats = tmp_path / "stats.json"
    run_main(images, *SMALL[:-2], *narrow, "--epochs", 2, "-p", 100, "--training-only", "--amp",
             "--no-checkpoints", "--mixup", 0.2, "--device", "npu", "--workspace", tmp_path / "w",
             env=fake("npu", stats=stats))  # fmt: skip
    sites = json.loads(stats.read_text())["wait_sites"]
    assert not [site for site in sites if site.startswith("training.py")], sites
    # Six batches per epoch; only the sums of the epoch are read.
    reads = {site: count for site, count in sites.items() if "running_sums.py" in site}
    assert [count for site, count in reads.items() if " read " in site] == [2], sites
    # The flags of steps: an event of four steps ago, or at the end of an epoch.
    flags = {site for site in sites if site.startswith("divergence.py")}
    assert len(flags) == 1 and next(iter(flags)).endswith(" _read synchronize"), sites


@pytest.mark.parametrize("old_torch", [False, True])
def test_two_processes(images: Path, tmp_path: Path, old_torch: bool) -> None:
    env = fake("mlu" if old_torch else "npu", old_torch=old_torch)
    kind = "mlu" if old_torch else "npu"
    env["HCCL_EXEC_TIMEOUT"] = "1836"  # HCCL's own default contradicts the process group's
    common = (*SMALL[:4], "-j", 0, "-p", 1, "--lr", 0.01, "--seed", 7, "--epochs", 1,
              "--freeze-bn", "--zero-init-last-bn")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    run_main(images, *common, "-b", 8, "--device", "cpu", "--workspace", one)
    done = run_main(images, *common, "-b", 4, "--device", kind, "--workspace", two, ranks=2,
                    env=env)  # fmt: skip
    assert f"2 x {kind}:0" in done.stdout
    assert (done.stdout + done.stderr).count("HCCL_EXEC_TIMEOUT=1836 is") == (kind == "npu")
    assert f"{kind}:1" not in done.stderr
    first, second = values(one, "train", "train.loss"), values(two, "train", "train.loss")
    assert second == pytest.approx(first, rel=1e-5)
    assert values(two, "epoch", "val.correct") == values(one, "epoch", "val.correct")


@pytest.mark.parametrize(("kind", "engine"), [("npu", "ddp"), ("mlu", "fsdp")])
def test_batch_norm_over_all_devices(
    images: Path, narrow: tuple[str, Path], tmp_path: Path, kind: str, engine: str
) -> None:
    """Two devices with four images each train as one with eight, sharded or not."""
    common = (*SMALL[:4], *narrow, "-j", 0, "-p", 1, "--lr", 0.01, "--seed", 7, "--epochs", 1)
    one, two = tmp_path / "one", tmp_path / "two"
    run_main(images, *common, "-b", 8, "--device", "cpu", "--workspace", one)
    run_main(images, *common, "-b", 4, "--device", kind, "--sync-bn", "--parallel", engine,
             "--workspace", two, ranks=2, env=fake(kind))  # fmt: skip
    for metric in ("train.loss", "val.loss"):
        first, second = (values(place, "epoch", metric) for place in (one, two))
        assert second == pytest.approx(first, rel=1e-4), metric
    mine, theirs = (checkpoint(place / "checkpoint.pth.tar")["state_dict"] for place in (two, one))
    for name in ("bn1.running_mean", "layer4.1.bn2.running_var", "fc.weight"):
        assert torch.allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-5), name


def test_a_checkpoint_moves_between_devices(images: Path, on_cpu: Path, tmp_path: Path) -> None:
    last = on_cpu / "checkpoint.pth.tar"
    more = (images, *SMALL[:-4], "--epochs", 2, "--prof", 4, "--resume", last)
    run_main(*more, "--device", "cpu", "--workspace", tmp_path / "cpu")
    run_main(*more, "--device", "npu", "--workspace", tmp_path / "npu", env=fake("npu"))
    mine = checkpoint(tmp_path / "npu" / "checkpoint.pth.tar")
    theirs = checkpoint(tmp_path / "cpu" / "checkpoint.pth.tar")
    assert mine["epoch"] == 2
    assert same(mine["state_dict"], theirs["state_dict"]) == []
    # and back: what the npu wrote is evaluated on the cpu, without any plug-in
    done = run_main(images, "-b", 4, "-j", 0, "--device", "cpu", "--evaluate",
                    "--resume", tmp_path / "npu" / "checkpoint.pth.tar",
                    "--workspace", tmp_path / "e", env=environment())  # fmt: skip
    assert "evaluated: top-1" in done.stdout


def test_a_device_with_float16_only(images: Path, narrow: tuple[str, Path], tmp_path: Path) -> None:
    env = fake("mlu", no_bf16=True)
    done = run_main(images, *SMALL, *narrow, "--amp", "--device", "mlu",
                    "--workspace", tmp_path / "w", env=env)  # fmt: skip
    assert "float16 with a grad scaler" in done.stdout
    scales = values(tmp_path / "w", "train", "train.grad_scale")
    assert scales[0] > 1
    assert checkpoint(tmp_path / "w" / "checkpoint.pth.tar")["amp"]["scale"] == scales[-1]
    done = run_main(images, *SMALL, "--amp", "--amp-dtype", "bfloat16", "--device", "mlu",
                    "--workspace", tmp_path / "x", env=env, expect=2)  # fmt: skip
    assert "bfloat16 is not supported" in done.stderr


def test_a_device_that_saturates(images: Path, narrow: tuple[str, Path], tmp_path: Path) -> None:
    done = run_main(images, *SMALL, *narrow, "--amp", "--amp-dtype", "float16", "--device", "npu",
                    "--static-loss-scale", 2.0**40, "--dynamic-loss-scale",
                    "--workspace", tmp_path / "w", env=fake("npu", saturate=True))  # fmt: skip
    assert "Traceback" not in done.stderr
    scales = values(tmp_path / "w", "train", "train.grad_scale")
    assert scales[0] == 2.0**39  # the overflow was seen although no infinity appears
    assert scales == sorted(scales, reverse=True)


@pytest.mark.parametrize("precision", ["--amp", "--fp16"])
def test_inference(images: Path, on_cpu: Path, tmp_path: Path, precision: str) -> None:
    run_main(images, "-b", 4, "-j", 0, "--device", "mlu", precision, "--evaluate",
             "--resume", on_cpu / "model_best.pth.tar", "--workspace", tmp_path / "w",
             env=fake("mlu"))  # fmt: skip
    (seen,) = values(tmp_path / "w", "summary", "val.seen")
    assert seen == 12


def test_an_absent_device_is_a_clear_error(images: Path, tmp_path: Path) -> None:
    for kind, env, text in [
        ("npu", environment(), "torch_npu"),
        ("mlu", environment(), "torch_mlu"),
        ("npu", fake("npu", broken=True), "libfakedriver"),
        ("npu", fake("npu", count=0), "no ascend npu found"),
    ]:
        done = run_main(images, *SMALL, "--device", kind, "--workspace", tmp_path / "w", env=env,
                        expect=2)  # fmt: skip
        (error,) = [line for line in done.stderr.splitlines() if "error:" in line]
        assert text.lower() in error.lower(), error
    assert not (tmp_path / "w").exists()


def test_what_no_accelerator_but_cuda_can_do(images: Path, tmp_path: Path) -> None:
    for flags, text in ((("--jit", "script", "--amp"), "--jit script has no mixed precision"),
                        (("--dist-backend", "gloo"), "does not serve device 'mlu'; allowed: cncl")):
        done = run_main(images, *SMALL, *flags, "--workspace", tmp_path / "w", env=fake("mlu"),
                        expect=2)  # fmt: skip
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert text in line and not (tmp_path / "w").exists()


def test_more_processes_than_devices(images: Path, tmp_path: Path) -> None:
    done = run_main(images, *SMALL, "--device", "npu", "--workspace", tmp_path / "w", ranks=2,
                    env=fake("npu", count=1), expect=2)  # fmt: skip
    assert "LOCAL_RANK=1" in done.stderr + done.stdout
    shared = {**fake("npu"), "ASCEND_RT_VISIBLE_DEVICES": "0"}
    done = run_main(images, *SMALL, "--device", "npu", "--workspace", tmp_path / "w", ranks=2,
                    env=shared, expect=2)  # fmt: skip
    assert "share one device" in done.stderr + done.stdout


def test_out_of_memory_has_its_exit_code(images: Path, tmp_path: Path) -> None:
    done = run_main(images, *SMALL, "--device", "npu", "--workspace", tmp_path / "w",
                    env=fake("npu", oom_mb=60), expect=6)  # fmt: skip
    assert "out of memory with --batch-size 4" in done.stderr
    assert "try --batch-size 2" in done.stderr
