# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checks the package on a real accelerator and writes one report; see test/hardware_check.sh.

Every check runs main.py or multiproc.py in processes of their own with a time limit, so that one
that crashes or hangs does not end the others. This process imports no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hardware_runs import FALLBACK_SWITCHES, ROOT, Bench, Failure, Skip, differences

FIRST_STEP_TOLERANCE, TOLERANCE = 1e-4, 1e-2  # relative, FP32 on the device against the CPU
RANKS_TOLERANCE = 1e-3  # relative, two processes against one
AMP_FIRST_STEP_TOLERANCE, AMP_TOLERANCE = 3e-2, 1e-1  # relative, at step 1 and in the mean
OVERFLOWING_SCALE = 2.0**24  # makes float16 gradients overflow, which the scaler has to notice
REPORT = "hardware_report.md"
OUTPUT_LINES = 40  # of a failed process that the report shows


@dataclasses.dataclass
class Result:
    """A row of the report; status is PASS, FAIL or SKIP."""

    check: str
    status: str
    finding: str
    seconds: float
    command: str = ""
    output: str = ""


# ---- the checks: each returns its finding, or raises Skip or Failure ---------------------------


def check_environment(bench: Bench) -> str:
    """What is there; `main` has asked already, since all else depends on it."""
    found = bench.environment
    memory = f", {found['memory_GiB']:.0f} GiB" if found["memory_GiB"] else ""
    masks = [f"{name}={value}" for name, value in found["masks"].items()]
    masks = masks or [f"{found['mask_name']} not set"] if found["mask_name"] else ["no mask"]
    return (
        f"{found['count']} x {found['name']}{memory}, torch {found['torch']}, "
        f"{found['plugin'] or 'no plug-in'}, driver {found['driver'] or 'unknown'}, "
        f"{found['collective']}, {', '.join(masks)}, {found['telemetry'] or 'no telemetry'}"
    )


def check_parity(bench: Bench) -> str:
    """FP32 training on the device gives the losses of the CPU."""
    cpu = bench.small_run("cpu", "--no-checkpoints", device="cpu", exact=True)
    device = bench.reference()
    gaps = differences(device.losses, cpu.losses)
    val = differences(*([row["val.loss"] for row in run.epochs] for run in (device, cpu)))
    bench.figures["parity"] = {"relative_difference": gaps, "validation": val}
    text = (
        f"{len(gaps)} steps, largest relative difference of the loss {max(gaps):.1e} (step 1: "
        f"{gaps[0]:.1e}, validation: {max(val):.1e}; allowed {TOLERANCE:g}, at step 1 "
        f"{FIRST_STEP_TOLERANCE:g})"
    )
    if gaps[0] > FIRST_STEP_TOLERANCE or max(gaps + val) > TOLERANCE:
        small = FIRST_STEP_TOLERANCE < gaps[0] < AMP_FIRST_STEP_TOLERANCE
        raise Failure(text + ("; as with FP32 units of fewer bits (TF32, HF32)" if small else ""))
    return text


def check_amp(bench: Bench, dtype: str) -> str:
    """Mixed precision stays near FP32, and float16's scaler notices an overflow."""
    if bench.environment["amp"][dtype]:
        raise Skip(bench.environment["amp"][dtype])
    flags = ("--amp", "--amp-dtype", dtype, "--no-checkpoints")
    expected = bench.reference().losses
    epochs = ("--run-epochs", "1") if bench.quick else ()
    found = bench.small_run(dtype, *flags, *epochs).losses
    expected = expected[: len(found)]
    first = differences(found, expected)[0]
    mean = differences([sum(found) / len(found)], [sum(expected) / len(expected)])[0]
    text = (
        f"{len(found)} steps, relative difference to FP32 {first:.1e} at step 1, {mean:.1e} "
        f"in the mean (allowed {AMP_FIRST_STEP_TOLERANCE:g}, {AMP_TOLERANCE:g})"
    )
    if first > AMP_FIRST_STEP_TOLERANCE or mean > AMP_TOLERANCE:
        raise Failure(text)
    return text + (overflow(bench, flags) if dtype == "float16" else "")


def overflow(bench: Bench, flags: tuple[str, ...]) -> str:
    """Starts with a loss scale that must be found to be too large."""
    run = bench.small_run(
        "overflow", *flags, "--dynamic-loss-scale", "--static-loss-scale",
        f"{OVERFLOWING_SCALE:.0f}", "--epochs", "1", "--iters", "5", "--training-only",
    )  # fmt: skip
    skipped, scale = run.last["train.skipped_steps"], run.last["train.grad_scale"]
    kind = "vendor's scaler (saturating device)" if bench.environment["saturates"] else "scaler"
    text = f"{kind} skipped {skipped} of 5 steps with overflow, scale {scale:g}"
    if not skipped or not scale < OVERFLOWING_SCALE or not math.isfinite(run.losses[-1]):
        raise Failure(f"overflow not noticed: {text}, loss {run.losses[-1]}")
    return f"; {text}"


def check_collective(bench: Bench) -> str:
    """Two devices give the losses of one with the same global batch."""
    if bench.device != "cpu" and bench.environment["count"] < 2:
        raise Skip("one device is visible")
    batch = 8 if bench.quick else 16
    flags = ("--freeze-bn", "--epochs", "1", "--iters", "5", "--training-only", "--no-checkpoints")
    pair = bench.small_run("two_ranks", *flags, "-b", str(batch // 2), ranks=2, exact=True)
    one = bench.small_run("one_rank", *flags, "-b", str(batch), exact=True)
    gaps = differences(pair.losses, one.losses)
    text = (
        f"{bench.environment['collective']}, 2 processes ended with exit code 0, {len(gaps)} steps "
        f"of {batch} images, largest relative difference to one process {max(gaps):.1e} "
        f"(allowed {RANKS_TOLERANCE:g})"
    )
    if max(gaps) > RANKS_TOLERANCE:
        raise Failure(text)
    return text


def check_resume(bench: Bench) -> str:
    """An epoch after a resume gives the weights of the run that was not interrupted."""
    straight = bench.reference()
    first_epoch = str(straight.folder / "checkpoint_0000.pth.tar")
    resumed = bench.small_run("resumed", "--resume", first_epoch, exact=True)
    if len(resumed.epochs) != 1:
        raise Failure(f"the resumed run made {len(resumed.epochs)} epochs instead of 1")
    last = "checkpoint.pth.tar"
    found = bench.probe("compare", str(straight.folder / last), str(resumed.folder / last))
    if found["equal"]:
        return f"{found['tensors']} tensors of model and optimizer equal bit for bit"
    again = bench.small_run("repeated", exact=True)
    spread = bench.probe("compare", str(straight.folder / last), str(again.folder / last))
    text = f"largest difference {found['largest']:.1e}, between equal runs {spread['largest']:.1e}"
    if spread["equal"] or found["largest"] > max(10 * spread["largest"], 1e-6):
        raise Failure(f"the resumed run has other weights: {text}")
    return f"within what this device does not repeat: {text}"


def check_images(bench: Bench, *precision: str) -> str:
    """Training throughput on synthetic images."""
    tiny = bench.quick or bench.device == "cpu"
    arch, size, batch = ("resnet18", "32", 8) if tiny else ("resnet50", "224", 256)
    steps = 3 if bench.quick else 50
    name = "images-amp" if precision else "images-fp32"
    while True:
        try:
            run = bench.train(
                f"{name}-{batch}", "--data-backend", "synthetic", "--synthetic-size",
                str(batch * steps), "1", "--arch", arch, "--image-size", size, "-b", str(batch),
                "--epochs", "1", "--training-only", "--no-checkpoints", *precision,
            )  # fmt: skip
            break
        except Failure as failure:
            if batch <= 8 or failure.finished is None or failure.finished.code != 6:
                raise
            batch //= 2
    row = run.epochs[-1]
    speed, peak = float(row["train.total_ips"]), row.get("device.memory_peak")
    bench.figures[name] = {"images_per_s": speed, "batch": batch, "arch": arch, "size": size}
    if not (math.isfinite(speed) and speed > 0):
        raise Failure(f"{speed} images/s")
    memory = f", {peak / 1024:.1f} GiB" if peak else ""
    chosen = bench.environment["amp"]["auto"] if precision else "FP32"
    what = f"{arch}, {size} px, batch {batch}, {steps} steps"
    return f"{speed:.1f} images/s: {what}{memory}; {chosen}"


def check_fallback(bench: Bench) -> str:
    """No operator of the runs above was computed on the CPU instead."""
    switch = FALLBACK_SWITCHES.get(bench.device)
    if switch is None:
        raise Skip(f"not applicable: {bench.device} does not fall back")
    bench.reference()
    setting = " ".join(f"{key}={value}" for key, value in switch.items())
    if bench.operators:
        names = sorted({name for found in bench.operators.values() for name in found})
        where = ", ".join(sorted(bench.operators))
        raise Failure(f"computed on the CPU: {', '.join(names)} (runs: {where}; with {setting})")
    return f"none with {setting} in {len(bench.losses)} runs"


def check_waits(bench: Bench) -> str:
    """More training steps do not make the host wait more often."""
    if bench.device == "cpu":
        raise Skip("not applicable: a CPU has nothing to wait for")
    bench.reference()  # there are images, and kernels are compiled
    size = "32" if bench.quick else "64"
    found = bench.probe("waits", bench.device, str(bench.work / "images"), size)
    if found.get("skip"):
        raise Skip(found["skip"])
    steps, more = found["steps"], found["more_waits"]
    if more:
        events = ", ".join(f"{count} x {name}" for name, count in more.items())
        raise Failure(f"{steps} more steps make the host wait more often: {events}")
    return f"{steps} more steps, no further wait (in all {found['waits']})"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "environment": check_environment,
    "parity": check_parity,
    "bfloat16": functools.partial(check_amp, dtype="bfloat16"),
    "float16": functools.partial(check_amp, dtype="float16"),
    "collective": check_collective,
    "resume": check_resume,
    "images-fp32": check_images,
    "images-amp": lambda bench: check_images(bench, "--amp"),
    "fall-back": check_fallback,
    "host-waits": check_waits,
}


# ---- running them, and the report --------------------------------------------------------------


def perform(name: str, bench: Bench) -> Result:
    """Makes one check; whatever goes wrong in it is its result."""
    started = time.monotonic()
    command = output = ""
    try:
        status, finding = "PASS", CHECKS[name](bench)
    except Skip as skip:
        status, finding = "SKIP", str(skip)
    except Failure as failure:
        status, finding = "FAIL", str(failure)
        if failure.finished is not None:
            command, output = failure.finished.command, failure.finished.output
    except Exception as error:  # a defect of the check must not hide the results of the others
        status, finding = "FAIL", f"the check itself failed: {type(error).__name__}: {error}"
    finding = " ".join(finding.split())
    return Result(name, status, finding, time.monotonic() - started, command, output)


def summary(results: list[Result]) -> str:
    """Says how many checks passed, failed and were skipped."""
    counts = {kind: sum(result.status == kind for result in results)
              for kind in ("PASS", "FAIL", "SKIP")}  # fmt: skip
    verdict = "FAIL" if counts["FAIL"] else "PASS"
    return f"{verdict}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())


def write_report(path: Path, bench: Bench, results: list[Result], command: str) -> None:
    """Writes the report: table, environment, losses, output of what failed, all as JSON."""
    device = bench.environment.get("device", bench.device)
    lines = [f"# Hardware check: {device}", "", f"{summary(results)}", ""]
    lines += [f"`{command}`, {time.strftime('%Y-%m-%d %H:%M:%S %z')}", ""]
    lines += ["| check | result | finding | s |", "|---|---|---|---:|"]
    for row in results:
        finding = row.finding.replace("|", "\\|")
        lines.append(f"| {row.check} | {row.status} | {finding} | {row.seconds:.1f} |")
    lines += ["", *(f"- {note}" for note in bench.notes), "", "## Environment", ""]
    lines += [f"- {key}: {'-' if value in ('', None) else value}"
              for key, value in bench.environment.items()]  # fmt: skip
    runs = {name: losses for name, losses in bench.losses.items() if "images" not in name}
    if runs:
        lines += ["", "## Loss of each step", "", "| step | " + " | ".join(runs) + " |"]
        lines += ["|---:|" + "---:|" * len(runs)]
    for step in range(max(map(len, runs.values()), default=0)):
        values = [f"{run[step]:.6f}" if step < len(run) else "" for run in runs.values()]
        lines.append(f"| {step + 1} | " + " | ".join(values) + " |")
    for row in results:
        if row.command:
            shown = row.output.splitlines()[-OUTPUT_LINES:]
            lines += ["", f"## Failed: {row.check}", "", f"`{row.command}`", "", "```text"]
            lines += [*(line.replace("```", "'''") for line in shown), "```"]
    content = {
        "result": summary(results), "command": command, "environment": bench.environment,
        "checks": [{key: value for key, value in dataclasses.asdict(row).items() if key != "output"}
                   for row in results],
        "figures": bench.figures, "losses": bench.losses, "fall_back": bench.operators,
        "notes": bench.notes,
    }  # fmt: skip
    lines += ["", "## The same as JSON", "", "```json", json.dumps(content, indent=1), "```", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="test/hardware_check.sh", allow_abbrev=False,
        description="Checks the package on this machine's accelerator in about ten minutes.",
        epilog=f"Checks: {', '.join(CHECKS)}. Exit code: 0 nothing failed, 1 a check failed, "
        "2 usage, or the device is not there.",
    )  # fmt: skip
    add = parser.add_argument
    add("--device", default="auto", choices=["auto", "cuda", "npu", "mlu", "xpu", "cpu"],
        help="default: auto, the accelerator that is there, else the CPU")  # fmt: skip
    add("--output", type=Path, default=ROOT / "models" / "hardware_check", metavar="DIR",
        help=f"folder of {REPORT} (default: models/hardware_check)")  # fmt: skip
    add("--quick", action="store_true", help="tiny networks, 3 steps instead of 50 for images/s")
    add("--only", metavar="A,B,...", help="only these checks (and environment)")
    args = parser.parse_args(argv)
    names = list(CHECKS) if args.only is None else args.only.split(",")
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: unknown; known: {', '.join(CHECKS)}")
    args.names = [name for name in CHECKS if name in names and name != "environment"]
    return args


def run_checks(bench: Bench, names: list[str]) -> list[Result] | None:
    """Asks for the environment, then makes the checks; None when the device is not there."""
    started, results = time.monotonic(), []
    try:
        bench.environment = bench.probe("environment", bench.device)
        bench.device = bench.environment["type"]
        results.append(perform("environment", bench))
        results[0].seconds = time.monotonic() - started
    except Failure as failure:
        finished = failure.finished
        if finished is None or finished.code == 2:
            print(f"hardware_check: {finished and finished.output.strip()}", file=sys.stderr)
            return None
        seconds = time.monotonic() - started
        results = [Result("environment", "FAIL", str(failure), seconds, finished.command,
                          finished.output)]  # fmt: skip
        names = []  # nothing can be compared on a device that answers nothing
    show(results[0])
    for name in names:
        results.append(perform(name, bench))
        show(results[-1])
    return results


def show(row: Result) -> None:
    """Prints a row of the table."""
    print(f"{row.status}  {row.check:<14} {row.seconds:6.1f} s  {row.finding}", flush=True)


def main(argv: list[str]) -> int:
    """Runs the checks and writes the report."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    created = not args.output.exists()
    args.output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=args.output)).resolve()
    try:
        bench = Bench(args.device, args.quick, work)
        results = run_checks(bench, args.names)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if results is None:
        if created:
            args.output.rmdir()
        return 2
    report = args.output / REPORT
    write_report(report, bench, results, shlex.join(["bash", "test/hardware_check.sh", *argv]))
    print(f"\n{summary(results)}\nreport: {report}")
    return int(any(result.status == "FAIL" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
