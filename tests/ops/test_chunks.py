"""Rows are cut into equal chunks of bounded size."""

from loractl.ops.chunks import chunk_rows


def test_rows_are_cut_into_equal_chunks() -> None:
    assert chunk_rows(0, 300, 4) == 1
    assert chunk_rows(1000, 300, 4) == 1000  # 1.2 MB
    assert chunk_rows(1600, 49152, 2) == 800  # 1,024 fit
    assert chunk_rows(400, 524288, 4) == 58  # 48 would fit; in 64 rows seven chunks


def test_a_device_takes_more_rows_at_a_time() -> None:
    assert chunk_rows(8192, 128256, 2, on_cpu=False) == 2048  # 2,093 fit
    assert chunk_rows(8192, 32000, 2, on_cpu=False) == 4096
    assert chunk_rows(2048, 10**6, 2, on_cpu=False) == 1024
