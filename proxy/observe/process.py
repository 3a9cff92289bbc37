"""Facts of this process for the metrics page, with the names all Prometheus clients use."""

from __future__ import annotations

import os
import resource
import time

from proxy.observe.metrics import Registry


def add_process_metrics(registry: Registry) -> None:
    """Register ``process_*``. The numbers are read when the page is rendered; a failing one shows NaN."""
    cpu = registry.counter("process_cpu_seconds_total", "User and system CPU time.")
    cpu.set_function(time.process_time)
    registry.gauge("process_resident_memory_bytes", "Resident memory.").set_function(_resident)
    registry.gauge("process_virtual_memory_bytes", "Virtual memory.").set_function(_virtual)
    registry.gauge("process_open_fds", "Open file descriptors.").set_function(_open_fds)
    registry.gauge("process_max_fds", "Limit of open file descriptors.").set_function(_max_fds)
    started = registry.gauge("process_start_time_seconds", "When the process started, since the epoch.")
    started.labels().value = _start_time()


def _statm(field: int) -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[field]) * os.sysconf("SC_PAGE_SIZE")


def _virtual() -> float:
    return _statm(0)


def _resident() -> float:
    return _statm(1)


def _open_fds() -> float:
    return len(os.listdir("/proc/self/fd")) - 1  # without the one that reads the directory


def _max_fds() -> float:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _start_time() -> float:
    """From field 22 of /proc/self/stat (proc(5)); now, where there is no /proc."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])  # the name in () may hold spaces
    except OSError:
        return time.time()
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
