"""Copies between a GPU's memory and the pool, for engines whose KV cache lies on a GPU. Not run on a GPU.

    driver         the CUDA driver: the one file that speaks to it
    registration   the pool's memory made reachable for a device, in the background
    bounce         a detour through pinned memory for what could not be
    remote         which bytes lie on another NUMA node than the device
    copies         loads and stores on streams of their own, in the order that keeps bytes right
    survey         which devices there are, asked in a process of its own

A worker process uses them in this order, after its engine has chosen a device (never in a scheduler, never before a
fork):

    device = Device(ordinal)
    pool.prefer_numa_node(device.numa_node)
    registration = Registration(pool, device)
    registration.begin()
    copier = DeviceCopier(device, registration)
    ...                                          # each step: before_next_step, load, poll; compute; store
    copier.close(5.0), registration.close(), device.close()
"""

from maru.engine.device_copy.copies import CopyCounters, DeviceCopier, Row
from maru.engine.device_copy.driver import Device, DeviceError, DeviceLate, DeviceLost, DeviceUnavailable
from maru.engine.device_copy.registration import Registration

__all__ = [
    "CopyCounters",
    "Device",
    "DeviceCopier",
    "DeviceError",
    "DeviceLate",
    "DeviceLost",
    "DeviceUnavailable",
    "Registration",
    "Row",
]
