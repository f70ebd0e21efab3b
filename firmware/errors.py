"""Named errors: what a device or the firmware refuses, and what to do about it."""

from m890.hdl.commands import ATTEND, COMMANDS, NOP, SEGMENT, Error, Opcode


class FirmwareError(RuntimeError):
    """Any error of the firmware or the device below it."""


class MemoryFull(FirmwareError):
    """Device memory cannot hold what was asked for."""

    def __init__(self, what: str, needed: int, left: int) -> None:
        super().__init__(
            f"{what} needs {needed:,} bytes of device memory but {left:,} are left:"
            " give the device more memory or ask for less"
        )
        self.what, self.needed, self.left = what, needed, left


class ScratchFull(FirmwareError):
    """The scratch memory for queries, outputs and tables is in use."""

    def __init__(self, needed: int, size: int) -> None:
        super().__init__(
            f"scratch memory of {size:,} bytes has no room for {needed:,} more:"
            " free buffers, split the batch, or give the driver a larger scratch_bytes"
        )
        self.needed, self.size = needed, size


class PoolFull(FirmwareError):
    """No page is free and none can be evicted; nothing was changed."""

    def __init__(self, needed: int, available: int, pages: int) -> None:
        super().__init__(
            f"{needed} pages are needed but {available} of the tenant's {pages} are free or can be"
            " evicted: release or trim a sequence, or give it a larger quota or pool"
        )
        self.needed, self.available, self.pages = needed, available, pages


class SequencesFull(FirmwareError):
    """Every entry of the core's sequence table is in use."""

    def __init__(self, sequences: int) -> None:
        super().__init__(
            f"all {sequences} sequences of the core are in use: release one before making another"
        )
        self.sequences = sequences


class UnknownSequence(FirmwareError):
    """The sequence was never created, or has been released."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"sequence {sequence} does not exist: create or fork it first")
        self.sequence = sequence


class UnknownTenant(FirmwareError):
    """The tenant has no quota, or the core does not know it."""

    def __init__(self, tenant: int) -> None:
        super().__init__(
            f"tenant {tenant} has no pages: give it a quota, below the core's tenant limit"
        )
        self.tenant = tenant


class ContextLimit(FirmwareError):
    """A sequence would grow past the longest context; nothing was changed."""

    def __init__(self, sequence: int, tokens: int, limit: int) -> None:
        super().__init__(
            f"sequence {sequence} would hold {tokens} tokens but the limit is {limit}:"
            " end it, or make the cache with a larger limit"
        )
        self.sequence, self.tokens, self.limit = sequence, tokens, limit


class BadLength(FirmwareError):
    """A token count that a sequence cannot be forked at, trimmed to or written from."""

    def __init__(self, sequence: int, tokens: int, length: int) -> None:
        super().__init__(
            f"sequence {sequence} has {length} committed tokens, so {tokens} is out of place:"
            f" name a token count from 0 to {length}, and start new tokens at {length}"
        )
        self.sequence, self.tokens, self.length = sequence, tokens, length


class ShapeError(FirmwareError):
    """Arrays or a model's shape that the core cannot take; the message names value and limit."""


class DeviceTimeout(FirmwareError):
    """The device made no progress."""

    def __init__(self, cycles: int, waiting: str = "a completion") -> None:
        super().__init__(
            f"nothing moved for {cycles:,} cycles while waiting for {waiting}:"
            " look at the waves of the last command"
        )
        self.cycles = cycles


class RingError(FirmwareError):
    """The rings failed: a completion could not be written, say."""

    rule = "the rings stopped: call the driver's recover()"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{self.rule} ({detail})")


class RingOverrun(RingError):
    """More commands were announced than the ring has entries; the device ignored the doorbell."""

    rule = "RING_TAIL ran past the ring's free entries: submit commands through the driver"


class BadRing(RingError):
    """Base or size of a ring cannot be used."""

    rule = "a ring's base must be 128-byte aligned and its size a power of two up to 32768"


class CommandError(FirmwareError):
    """A command that the device refused; it changed nothing.

    `opcode`, `field`, `value` and `index` (segment, row or token, where there is one) say which.
    """

    advice = "correct the command"

    def __init__(self, opcode: str, field: str, value: int | None, index: int, tag: int) -> None:
        at = f" of segment {index}" if field.startswith("segment.") else ""
        shown = "" if value is None else f" = {value:#x}" if abs(value) > 0xFFFF else f" = {value}"
        super().__init__(f"{opcode} refused for {field}{shown}{at}: {self.advice}")
        self.opcode, self.field, self.value, self.index, self.tag = opcode, field, value, index, tag
        self.command: dict[str, int] = {}  # all its fields


class BadOpcode(CommandError):
    advice = "use an opcode of hdl/commands.py"


class BadAddress(CommandError):
    advice = "keep every byte inside the device's memory"


class BadAlignment(CommandError):
    advice = "align addresses and strides to the port's 2 x lanes bytes"


class BadRows(CommandError):
    advice = "use from 1 row to as many as the core has"


class BadSegments(CommandError):
    advice = "use from 1 segment to the core's limit"


class BadHeadSize(CommandError):
    advice = "use from 1 tile of lanes features to the core's largest head"


class BadFormat(CommandError):
    advice = "use a code of Format or OutputFormat"


class BadPlane(CommandError):
    advice = "define the plane first, below the core's plane limit"


class BadSequence(CommandError):
    advice = "create the sequence first, below the core's sequence limit"


class BadRange(CommandError):
    advice = "keep start <= end inside the sequence's pages and limit"


class BadPage(CommandError):
    advice = "write only page numbers of the pool into the block table"


class BusError(CommandError):
    advice = "the memory answered with an error: check the address map"


class BadSegmentKind(CommandError):
    advice = "use a kind of SegmentKind"


class BadTenant(CommandError):
    advice = "name the tenant of the sequence or page, below the core's tenant limit"


class OutOfPages(CommandError):
    advice = "release or trim sequences, take pins away, or use a larger pool"


class QuotaExceeded(CommandError):
    advice = "let the tenant give pages up, or raise its quota"


class SequenceOpen(CommandError):
    advice = "release the sequence first, or open another"


class NotPinned(CommandError):
    advice = "pin the pages first, and take no more pins away than there are"


class TooShared(CommandError):
    advice = "give the page up elsewhere first: its references cannot be counted any further"


class TableError(CommandError):
    advice = "the page manager's memory is damaged: reset the core and start anew"


class BadTag(CommandError):
    """A row of K or V is not what was written: a bit of it, of its scales or of its tag flipped.

    `sequence`, `plane` and `token` name it, the first one of the job. The job wrote nothing.
    """

    advice = "recompute the token's K and V and append them again in place"

    def __init__(self, sequence: int, plane: int, token: int, tag: int) -> None:
        super().__init__(Opcode.ATTEND.name, "plane", plane, sequence, tag)
        self.args = (
            f"token {token} of sequence {sequence} is damaged in plane {plane}: {self.advice}",
        )
        self.sequence, self.plane, self.token = sequence, plane, token


class Unrepairable(FirmwareError):
    """A token that is damaged again each time it has been rewritten: its memory does not hold."""

    def __init__(self, damage: BadTag, attempts: int) -> None:
        super().__init__(
            f"token {damage.token} of sequence {damage.sequence} is damaged in plane"
            f" {damage.plane} after {attempts} repairs: the memory behind it cannot be trusted"
        )
        self.sequence, self.plane, self.token = damage.sequence, damage.plane, damage.token


COMMAND_ERRORS: dict[Error, type[CommandError]] = {
    Error.BAD_OPCODE: BadOpcode,
    Error.BAD_ADDRESS: BadAddress,
    Error.BAD_ALIGNMENT: BadAlignment,
    Error.BAD_ROWS: BadRows,
    Error.BAD_SEGMENTS: BadSegments,
    Error.BAD_HEAD_SIZE: BadHeadSize,
    Error.BAD_FORMAT: BadFormat,
    Error.BAD_PLANE: BadPlane,
    Error.BAD_SEQUENCE: BadSequence,
    Error.BAD_RANGE: BadRange,
    Error.BAD_PAGE: BadPage,
    Error.BUS_ERROR: BusError,
    Error.BAD_SEGMENT_KIND: BadSegmentKind,
    Error.BAD_TENANT: BadTenant,
    Error.OUT_OF_PAGES: OutOfPages,
    Error.QUOTA: QuotaExceeded,
    Error.SEQUENCE_OPEN: SequenceOpen,
    Error.NOT_PINNED: NotPinned,
    Error.TOO_SHARED: TooShared,
    Error.TABLE_ERROR: TableError,
    Error.BAD_TAG: BadTag,
}
RING_ERRORS: dict[Error, type[RingError]] = {
    Error.RING_OVERRUN: RingOverrun,
    Error.BAD_RING: BadRing,
}


def command_error(completion: dict[str, int], command: bytes) -> CommandError:
    """The exception of a failed completion; `command` is the record as it was submitted."""
    opcode, index, tag = completion["opcode"], completion["field"], completion["tag"]
    record, title = NOP, f"opcode {opcode}"
    if opcode in set(Opcode):
        record, title = COMMANDS[Opcode(opcode)], Opcode(opcode).name
    fields, value = record.fields, None
    if completion["error"] == Error.BAD_TAG:
        plane = ATTEND.unpack(command)["plane"]
        return BadTag(completion["index"], plane, completion["beats"], tag)
    kind = COMMAND_ERRORS.get(Error(completion["error"]), CommandError)
    if index == 0 and kind in (BadPage, BadTenant, TableError, BusError):
        # Found on the way, behind no field of its own
        name = "memory" if kind is BusError else "segment.sequence"
    elif index < len(fields):
        name = fields[index].name
        value = record.unpack(command)[name]
    elif index < len(fields) + len(SEGMENT.fields):
        name = f"segment.{SEGMENT.fields[index - len(fields)].name}"
    else:
        name = f"field {index}"
    error = kind(title, name, value, completion["index"], tag)
    error.command = record.unpack(command)
    return error
