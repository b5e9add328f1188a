"""The setting of several processes that train one model, each on its own part of every batch."""

import torch.distributed as dist

from fptt._checks import check_count


class DataParallel:
    """Train one model in several processes, each on its own part of every batch.

    With `sync_every=1` the gradients are added up at every update,

        g = Σ_r (N_r / Σ_s N_s) g_r,   N_r the samples, or real steps, in the batch of process r,

    so that all processes make the update that one would make on the whole batch: weights, averages W̄ and duals λ are
    the same in all of them, bit for bit. With `sync_every=k` each makes k updates of its own, and then weights,
    averages and duals become their means over the processes: a k-th of the messages, and another path. The regularizer
    comes from there: in FedDyn (Acar et al., ICLR 2021) devices with data of their own are held together by it.
    Moments of the optimizer stay with their process.

    The model begins with the weights of process 0. Every process must train on as many batches, cut into as many
    chunks. A `BatchResult` is of the whole batch, and the same in all processes, but for the final state. NaN or Inf
    in one process stops all of them. Buffers of the model, as of BatchNorm, become their means after every batch. Use
    no `DistributedDataParallel` around the model: it would average a second time.

    Args:
        group: The processes; None for all of them.
        sync_every: Updates, ≥ 1, between two averagings of the weights; 1 adds up gradients instead.
        check: Compare weights, averages and duals of all processes after every batch that ends in step, for debugging;
            a difference raises a RuntimeError.

    Raises:
        ValueError: If `torch.distributed` is not initialized, or `sync_every` is no positive integer.

    Examples:
        >>> fptt.DataParallel(sync_every=0)
        Traceback (most recent call last):
        ValueError: sync_every must be a positive integer, got 0.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, sync_every: int = 1, check: bool = False) -> None:
        check_count("sync_every", sync_every)
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "group must be one of torch.distributed, or None for all processes: call init_process_group() first."
            )
        self.group, self.sync_every, self.check = group, sync_every, check

    @property
    def adds_gradients(self) -> bool:
        """Whether the processes make every update together."""
        return self.sync_every == 1

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size(self.group)
