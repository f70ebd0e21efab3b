"""Requests of the ONNX cases on devices: keys and values appended into pages, rows in jobs."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.kv import placed
from m890.firmware.memory_map import PlaneShape, memory_bytes, pool_bytes
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.onnx.attention import Executor, Request, golden, padded

NAMES = ("golden", "model", "rtl")
"""What can run requests: the golden model itself, or a device with the firmware's driver."""
SCRATCH = 1 << 20


class DeviceExecutor:
    """Runs requests on a device, one after the other, in one plane and one sequence."""

    def __init__(self, device: Device) -> None:
        self.config = config = device.config
        self.driver = driver = Driver(device, ring=64, scratch_bytes=SCRATCH)
        shape = PlaneShape(1, Format.FP16, config.max_head)
        self.base = driver.map.allocate("pages", pool_bytes(config, shape, config.pages)).start
        self.table = driver.map.allocate("block table", 4 * config.pages).start

    def __call__(self, request: Request) -> np.ndarray:
        config, driver = self.config, self.driver
        head = -(-max(request.query.shape[1], request.v.shape[1]) // config.lanes) * config.lanes
        tokens = len(request.k)
        shape = PlaneShape(1, Format.FP16, head)
        pages = -(-tokens // config.page_tokens)
        places = [driver.place(padded(x, tokens, head)) for x in (request.k, request.v)]
        driver.submit(
            "PLANE", plane=0, format=int(Format.FP16), head=head // config.lanes, base=self.base,
            stride=shape.stride(config),
        )  # fmt: skip
        # Pages in falling order: contiguous memory would hide an untranslated address.
        placed.adopt(driver, 0, np.sort(placed.take(driver, pages))[::-1], self.table)
        driver.submit(
            "APPEND", plane=0, sequence=0, start=0, tokens=tokens,
            source_format=int(Format.FP16), k=places[0], v=places[1], source_stride=2 * head,
        )  # fmt: skip
        rows = len(request.query)
        out = driver.buffer(4 * rows * head)
        for at in range(0, rows, config.rows):
            places += self._attend(request, slice(at, min(at + config.rows, rows)), head, out)
        driver.submit("RELEASE", sequence=0)
        driver.wait_all()
        result = driver.view(out, (rows, head), "<f4")[:, : request.v.shape[1]].copy()
        driver.free(*places, out)
        return result

    def _attend(self, request: Request, part: slice, head: int, out: int) -> list[int]:
        """Submits the job of some rows; returns the buffers that it uses."""
        config, driver = self.config, self.driver
        position = request.position[part]
        count = len(position)
        seeing = (position >= 0) | (not request.causal)
        query = driver.place(padded(request.query[part], count, head))
        bias = 0 if request.bias is None else driver.place(self._bias(request.bias[part]))
        row_table = pack(ROW, count, {"position": np.maximum(position, 0)})
        segment = pack(
            SEGMENT,
            1,
            {
                "end": request.length,
                "row_mask": sum(1 << r for r in range(count) if seeing[r]),
                "address": bias,
            },
        )
        gap = -row_table.size % config.port_bytes
        table = driver.place(
            np.concatenate([row_table.ravel(), np.zeros(gap, np.uint8), segment.ravel()])
        )
        cap = np.float32(request.softcap)
        inverse = np.float32(1) / cap if cap else np.float32(0)
        driver.submit(
            "ATTEND", plane=0, rows=count, segments=1, tables=table, query=query,
            causal=int(request.causal), bias=int(request.bias is not None), query_format=1,
            output_format=int(OutputFormat.FP32), output=out + 4 * part.start * head,
            query_stride=2 * head, output_stride=4 * head,
            softcap=int(cap.view(np.uint32)), softcap_inverse=int(inverse.view(np.uint32)),
        )  # fmt: skip
        return [query, table] + ([bias] if bias else [])

    def _bias(self, bias: np.ndarray) -> np.ndarray:
        """[row, token] as the core reads it: [chunk, row, lane]."""
        rows, tokens = bias.shape
        chunks = -(-tokens // self.config.lanes)
        whole = padded(bias, rows, chunks * self.config.lanes)
        return whole.reshape(rows, chunks, self.config.lanes).transpose(1, 0, 2)


@contextmanager
def executor(name: str, config: CoreConfig) -> Iterator[Executor]:
    """One of NAMES, closed at the end."""
    if name == "golden":
        yield golden(config)
        return
    shape = PlaneShape(1, Format.FP16, config.max_head)
    size = memory_bytes(config, shape, scratch=SCRATCH)
    if name == "model":
        from m890.sim.timing.device import ModelDevice

        device: Device = ModelDevice(config, size)
    else:
        from m890.sim.rtl.device import RtlDevice

        device = RtlDevice(config, memory_bytes=size)
    try:
        yield DeviceExecutor(device)
    finally:
        device.close()
