"""What libnbd sees of an empty writable export of 200 MiB; prints `agreed` at the end."""

import errno
import sys

import nbd

h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:drive")
h.connect_uri(sys.argv[1])
SIZE = 200 << 20
assert h.get_size() == SIZE
assert h.get_protocol() == "newstyle-fixed"
assert h.get_structured_replies_negotiated()
for able in ("zero", "fast_zero", "trim", "fua", "flush", "multi_conn", "cache", "df"):
    assert getattr(h, "can_" + able)(), able
assert not h.is_read_only()
minimum, preferred, maximum = (
    h.get_block_size(which)
    for which in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)
)
assert (minimum, preferred, maximum) == (1, 4096, 64 << 20), (minimum, preferred, maximum)


def refused(number, call, *arguments):
    h.set_strict_mode(0)
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (error, number)
    else:
        raise AssertionError("not refused")


# The longest request, off every boundary.
big = bytes(range(1, 251)) * ((64 << 20) // 250 + 1)
big = big[: 64 << 20]
h.pwrite(big, 3)
assert h.pread(len(big), 3) == big

# Structured reads: holes and data, then one piece.
h.zero(8 << 20, 16 << 20)
pieces = []
h.pread_structured(
    1 << 20,
    (16 << 20) - (512 << 10),
    lambda data, offset, status, error: pieces.append((offset, len(data), status)),
)
assert {status for _, _, status in pieces} == {nbd.READ_HOLE, nbd.READ_DATA}, pieces
assert sum(length for _, length, _ in pieces) == 1 << 20, pieces
pieces.clear()
h.pread_structured(
    1 << 20,
    (16 << 20) - (512 << 10),
    lambda data, offset, status, error: pieces.append((offset, len(data), status)),
    nbd.CMD_FLAG_DF,
)
assert len(pieces) == 1, pieces

# Block status of both contexts, whole and with REQ_ONE.
status = {}


def extent(context, offset, entries, error):
    status.setdefault(context, []).extend(entries)


h.block_status(SIZE, 0, extent)
assert set(status) == {"base:allocation", "qemu:dirty-bitmap:drive"}, status
dirty = (64 << 20) + (64 << 10)
assert status["qemu:dirty-bitmap:drive"] == [dirty, 1, SIZE - dirty, 0], status
status.clear()
h.block_status(SIZE - (16 << 20), 16 << 20, extent, nbd.CMD_FLAG_REQ_ONE)
assert status["base:allocation"] == [8 << 20, 3], status
assert all(len(entries) == 2 for entries in status.values()), status

# Flags that change nothing to be seen.
h.pwrite(b"durable", 100 << 20, nbd.CMD_FLAG_FUA)
h.zero(4096, 100 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(1 << 20, 101 << 20, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1 << 20, 102 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()

# Refusals.
refused(errno.EINVAL, h.pread, 2, SIZE - 1)
refused(errno.ENOSPC, h.pwrite, b"xx", SIZE - 1)
refused(errno.ENOSPC, h.zero, 2, SIZE - 1)
refused(errno.ENOSPC, h.trim, 2, SIZE - 1)

# Many at once, answered in any order.
cookies = {}
for number in range(500):
    buffer = nbd.Buffer.from_bytearray(bytearray([number % 250 + 1]) * 4096)
    cookies[h.aio_pwrite(buffer, (120 << 20) + number * 4096)] = number
while h.aio_in_flight():
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
for number in range(500):
    assert h.pread(4096, (120 << 20) + number * 4096) == bytes([number % 250 + 1]) * 4096
h.shutdown()
print("agreed")
