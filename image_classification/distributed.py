# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: who am I, how many are we, sums over all of us.

Three launchers are understood without any option: multiproc.py and torchrun (RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and Slurm's srun (SLURM_PROCID, SLURM_LOCALID, ...).
Small host-side sums travel as CPU tensors over gloo, so that they never wait for the device.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from image_classification.device_table import collectives
from image_classification.errors import LostPeerError, UsageError, first_line
from image_classification.launcher import HEARTBEAT, die_with_parent

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from image_classification.device import Device

# Whether the ranks meet in a store that torchrun's agent holds.
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_START = (
    "start with `python multiproc.py --nproc_per_node N main.py ...`, torchrun or srun, or unset "
    "WORLD_SIZE and SLURM_STEP_NUM_TASKS for a single process"
)


@dataclass(frozen=True)
class Launch:
    """What the launcher told this process.

    Attributes:
        rank: Index of this process in the whole run, 0 <= rank < world_size.
        local_rank: Index of this process on its node.
        world_size: Number of processes of the run.
        local_world_size: Number of processes on this node.
        launcher: "none", "multiproc/torchrun" or "slurm".
        master_addr: Host name of rank 0, empty without a launcher.
        heartbeat: Descriptor to which a byte is written after each step, if anybody reads it.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    launcher: str = "none"
    master_addr: str = ""
    heartbeat: int | None = None

    @property
    def primary(self) -> bool:
        """True on rank 0, the only process that writes files."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Number of nodes, assuming the same number of processes on each."""
        return max(1, self.world_size // max(1, self.local_world_size))


def die_with_torchrun() -> None:
    """Asks the kernel to end this process when torchrun's agent dies, as multiproc.py does.

    An agent that is killed leaves its ranks training for ever. The request is for the thread that
    started this process: the agent's main thread, which waits for its ranks (Linux).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(os.getppid())


def read_launch() -> Launch:
    """Reads the launcher's environment variables.

    Returns:
        The place of this process in the run; rank 0 of 1 when there is no launcher.

    Raises:
        UsageError: A variable of the launcher is missing, not a whole number or out of range.
    """
    environ = os.environ
    if "RANK" not in environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        # srun sets this variable, a batch script without srun does not
        _translate_slurm()
        launcher = "slurm"
    elif "WORLD_SIZE" in environ:
        launcher = "multiproc/torchrun"
    else:
        return Launch()
    rank, local_rank, world_size = map(_number, ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    local_world_size = _number("LOCAL_WORLD_SIZE", world_size)
    if not 0 <= rank < world_size:
        raise UsageError(
            f"RANK={rank} is outside 0..{world_size - 1} (WORLD_SIZE={world_size}); {_START}"
        )
    if local_rank < 0 or local_world_size < 1:
        raise UsageError(
            f"LOCAL_RANK={local_rank} must be at least 0, LOCAL_WORLD_SIZE={local_world_size} at "
            f"least 1; {_START}"
        )
    if world_size > 1:
        _check_meeting_point()
    address = environ.get("MASTER_ADDR", "")
    heartbeat = _number(HEARTBEAT) if HEARTBEAT in environ else None
    environ.pop(HEARTBEAT, None)  # not for processes that this one starts
    return Launch(rank, local_rank, world_size, local_world_size, launcher, address, heartbeat)


def _number(name: str, default: int | None = None) -> int:
    """Reads a launcher's variable; a UsageError if it is missing without default or no number."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UsageError(f"{name} is missing, but other variables of a launcher are set; {_START}")
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name}={text!r}: expected a whole number; {_START}") from None


def _check_meeting_point() -> None:
    """MASTER_ADDR and MASTER_PORT, which torch would miss with a traceback."""
    if not os.environ.get("MASTER_ADDR"):
        raise UsageError(f"MASTER_ADDR is missing, but several processes are to meet; {_START}")
    if not 1 <= _number("MASTER_PORT") <= 65535:
        raise UsageError(f"MASTER_PORT={os.environ['MASTER_PORT']}: expected 1..65535; {_START}")


def _translate_slurm() -> None:
    """Sets torch's variables from those of srun (https://slurm.schedmd.com/srun.html)."""
    environ = os.environ
    nodes = environ.get("SLURM_STEP_NODELIST", "127.0.0.1")  # for example "gpu[03-07,12]"
    first = re.sub(r"\[(\d+).*?\]", r"\1", nodes, count=1).split(",")[0]
    # Every task of the job computes the same port; another job on the node gets another one.
    port = 20000 + _number("SLURM_JOB_ID", 0) % 20000
    per_node = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    world_size = _number("SLURM_STEP_NUM_TASKS")
    translated = {
        "RANK": _number("SLURM_PROCID"),
        "LOCAL_RANK": _number("SLURM_LOCALID", 0),
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": per_node.group() if per_node else world_size,
    }
    environ.setdefault("MASTER_ADDR", first)
    environ.setdefault("MASTER_PORT", str(port))
    environ.update({name: str(value) for name, value in translated.items()})


def check_launch(
    launch: Launch, *, num_nodes: int | None, master_addr: str | None, device_index: int | None
) -> None:
    """Compares what the user said of the launch with what the launcher did.

    Args:
        launch: What `read_launch` returned.
        num_nodes: `--world-size`, the number of nodes, or None.
        master_addr: `--addr`, the host of rank 0, or None.
        device_index: `--gpu-id`, or None.

    Raises:
        UsageError: They contradict each other.
    """
    command = "python multiproc.py --nnodes N --node_rank K --master_addr HOST main.py ..."
    if num_nodes not in (None, launch.num_nodes):
        raise UsageError(
            f"--world-size {num_nodes} asks for {num_nodes} nodes, this run has "
            f"{launch.num_nodes}; start on each node: {command}"
        )
    if master_addr is not None and master_addr != launch.master_addr:
        raise UsageError(
            f"--addr {master_addr} is not the launcher's master address "
            f"({launch.master_addr or 'there is no launcher'}); start on each node: {command}"
        )
    if device_index is not None and launch.world_size > 1:
        raise UsageError(
            f"--gpu-id {device_index} picks one device, but {launch.world_size} processes run; "
            "limit the devices with the visible-devices variable instead"
        )


def init(
    launch: Launch, device: Device, backend: str | None, timeout_s: float = 600.0
) -> list[str]:
    """Joins the process group; does nothing for a single process.

    Args:
        launch: What `read_launch` returned.
        device: The device of this process; its collective library is the default.
        backend: Collective library the user asked for, or None.
        timeout_s: Seconds until a collective that a peer never joins gives up.

    Returns:
        One line for each variable of the user's that contradicts the time-out.

    Raises:
        UsageError: The asked-for backend does not serve the device.
        LostPeerError: The other processes did not show up in time.
    """
    allowed = collectives(device.type)
    if backend is not None and backend not in allowed:
        raise UsageError(
            f"--dist-backend {backend} does not serve device '{device.type}'; "
            f"allowed: {' or '.join(allowed)} (leave the option out to follow the device)"
        )
    if launch.world_size == 1:
        return []
    import torch.distributed as dist

    notes, collective = _torchrun_notes(launch), backend or device.collective
    if device.is_accelerator and collective != "gloo":
        notes += device.spec.limit_collectives(timeout_s)
        collective = f"cpu:gloo,{device.type}:{collective}"
    try:
        dist.init_process_group(
            collective,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device.process_group_device(),
            store=_torchrun_store(launch, timeout_s),
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LostPeerError(
            f"rank {launch.rank} of {launch.world_size} could not join the others at {address}: "
            f"{first_line(error)}; check that all {launch.world_size} processes run and the port "
            "is free"
        ) from None
    _check_distinct_devices(launch, device)
    return notes


def _torchrun_store(launch: Launch, timeout_s: float) -> dist.Store | None:
    """Returns where the ranks of this start meet; None where torch's own choice is right.

    The store of torchrun's agent outlives its ranks. What they find in it after a new start are
    the addresses of those before (pytorch#135712), so each start gets keys of its own. Several
    nodes do not count their starts alike: see `_torchrun_notes`.
    """
    environ = os.environ
    if environ.get(_AGENT_STORE) != "True" or launch.num_nodes > 1:
        return None
    import torch.distributed as dist

    store = dist.TCPStore(
        environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=False,
        timeout=timedelta(seconds=timeout_s), wait_for_workers=False,
    )  # fmt: skip
    return dist.PrefixStore(f"start {environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _torchrun_notes(launch: Launch) -> list[str]:
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if os.environ.get(_AGENT_STORE) != "True" or launch.num_nodes == 1 or restarts == "0":
        return []
    return [
        "after a new start by torchrun the nodes may not find each other: set "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun on every node"
    ]


def _check_distinct_devices(launch: Launch, device: Device) -> None:
    """Two ranks on one accelerator would wait for each other, or halve its speed unnoticed."""
    import torch.distributed as dist

    if not device.is_accelerator:
        return
    mine = f"{socket.gethostname()} {device.identity}"
    owners: list[Any] = [None] * launch.world_size
    for rank in range(launch.world_size):
        box = [mine]
        dist.broadcast_object_list(box, src=rank, device=_cpu())
        owners[rank] = box[0]
    if owners.count(mine) > 1:
        others = [rank for rank, owner in enumerate(owners) if owner == mine]
        raise UsageError(
            f"ranks {', '.join(map(str, others))} share one device ({mine}); start at most one "
            "process per device (--nproc_per_node), or widen the visible-devices variable"
        )


def wrap(
    model: torch.nn.Module, launch: Launch, device: Device, *, static_graph: bool,
    bucket_mib: int | None = None,
) -> torch.nn.Module:  # fmt: skip
    """Wraps the model so that backward adds up gradients over the ranks.

    Args:
        model: The network on the device.
        launch: What `read_launch` returned.
        device: The device of this process.
        static_graph: Every step uses the same graph (not with gradient accumulation, whose
            `no_sync` steps differ from the others).
        bucket_mib: MiB of gradients that are added up together, >= 1; None: torch's 25, of which
            the first to be ready are only 1.

    Returns:
        A DistributedDataParallel module; the model itself for a single process or if it is sharded.
    """
    from image_classification.sharding import is_sharded  # imports torch

    if launch.world_size == 1 or is_sharded(model):
        return model
    from torch.nn.parallel import DistributedDataParallel

    # Rank 0's BatchNorm statistics are copied before validation and saving, not in each step.
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    renamed = "forward_sync_buffers" in parameters  # since torch 2.15
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    if bucket_mib is not None:  # its default also says that the first bucket may be smaller
        options["bucket_cap_mb"] = bucket_mib
    return DistributedDataParallel(
        model,
        device_ids=device.ddp_device_ids(),
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        **options,
    )


def with_sync_batch_norm(model: torch.nn.Module, device: Device) -> torch.nn.Module:
    """Gives BatchNorm the statistics of all ranks' images.

    Raises:
        UsageError: The device is a CPU, for which PyTorch does not have it.
    """
    if not device.is_accelerator:
        raise UsageError("--sync-bn needs an accelerator; on cpu run without it")
    import torch

    found: torch.nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return found


def shutdown() -> None:
    """Leaves the process group, if this process is in one."""
    if is_active():
        import torch.distributed as dist

        dist.destroy_process_group()


def sum_over_ranks(values: list[float]) -> list[float]:
    """Adds host numbers over all ranks, elementwise, in double precision.

    Args:
        values: The numbers of this rank; integers up to 2**53 stay exact.

    Returns:
        The sums, the same on every rank.
    """
    if not is_active():
        return values
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total]


def max_over_ranks(value: int) -> int:
    """Returns the largest of the whole numbers that the ranks pass in."""
    if not is_active():
        return value
    import torch
    import torch.distributed as dist

    largest = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def concat_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Joins the columns that the ranks hold, in the order of the ranks.

    Args:
        values: [K, N] int64 or float64 on the CPU; N may differ between the ranks and be 0, K may
            not.

    Returns:
        [K, sum of N] of the same type, the same on every rank.
    """
    if not is_active():
        return values
    import torch
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    counts = torch.zeros(world_size, dtype=torch.int64)
    counts[rank] = values.shape[1]
    dist.all_reduce(counts)
    # Each rank fills in its own columns; all others add zeros.
    joined = torch.zeros(values.shape[0], int(counts.sum()), dtype=values.dtype)
    start = int(counts[:rank].sum())
    joined[:, start : start + values.shape[1]] = values
    dist.all_reduce(joined)
    return joined


def share_from_primary(value: Any) -> Any:
    """Gives every rank the value (a JSON type) that rank 0 passes in."""
    if not is_active():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=_cpu())
    return box[0]


def shared_seed() -> int:
    """Draws a seed that all ranks share, in [0, 2**32)."""
    return int(share_from_primary(int.from_bytes(os.urandom(4), "little")))


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Copies rank 0's buffers (BatchNorm statistics) into the model of every other rank."""
    if not is_active():
        return
    import torch.distributed as dist

    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def is_active() -> bool:
    """Whether this process is one of several that have met."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")
