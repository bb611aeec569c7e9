"""A ledger on a file system that machines share keeps no write-ahead log."""

import sqlite3
from pathlib import Path

import pytest

from spine_engine.run import ledger
from spine_engine.run.folders import shared_file_system

TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /data rw - nfs4 server:/export rw
31 30 0:41 / /data/local rw - xfs /dev/vdb rw
32 22 0:42 / /my\\040scans rw shared:7 - cifs //server/scans rw
33 22 0:43 / /home/s3 rw - fuse.s3fs s3fs rw
34 22 0:44 / /lustre rw - lustre mgs@tcp:/fs rw
35 22 0:45 / /over rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", None),
        ("/home/me/out", None),
        ("/data", "nfs4"),
        ("/data/out", "nfs4"),
        ("/database/out", None),
        ("/data/local/out", None),
        ("/my scans/out", "cifs"),
        ("/home/s3/a/b", "fuse.s3fs"),
        ("/lustre/out", "lustre"),
        ("/over/out", None),
    ],
)
def test_the_deepest_mount_decides(folder, kind, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    assert shared_file_system(Path(folder), table) == kind


def test_without_a_table_of_mounts_a_disk_is_taken_for_local(tmp_path):
    assert shared_file_system(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("kind", "mode"), [(None, "wal"), ("nfs4", "delete")])
def test_the_journal_follows_the_file_system(kind, mode, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "shared_file_system", lambda folder: kind)
    path = tmp_path / "ledger.sqlite"
    ledger.Ledger(path, {"bundle": "b"}).close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)
    database.close()
