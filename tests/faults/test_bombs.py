"""Small files that claim to be huge."""

import struct
import subprocess
import sys
import time
import zlib

import pytest

# Not ru_maxrss, which starts from the size of the process that started it.
CHILD = """
import sys
from pathlib import Path
from deeplab_jax import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def bomb(side):
    """Returns a black grey PNG of side x side pixels, whole and valid."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [12000, 20000], ids=["144 Mpixel", "400 Mpixel"])
def test_bomb_is_refused_before_it_costs_anything(trained, tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    assert path.stat().st_size < 1_000_000
    argv = ["predict", "--checkpoint", str(trained), "--output", str(tmp_path / "out"), str(path)]
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", CHILD, *argv], capture_output=True, text=True)
    assert time.perf_counter() - start < 15
    assert run.returncode == 3
    assert run.stderr.startswith(f"error: {path}: is too large to decode safely")
    assert run.stderr.count("\n") == 1
    assert int(run.stdout.splitlines()[-1]) < 1_000_000  # KiB
