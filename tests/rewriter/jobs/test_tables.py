"""Files are read by row, whatever slice is asked for, and what is wrong with one is said in one line."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewriter.jobs.formats import open_table
from rewriter.jobs.tables import TableError, fingerprint, reshaped

Array = np.ndarray[Any, Any]
ROWS = 2500


@pytest.fixture(scope="module")
def samples() -> Array:
    return np.random.default_rng(0).normal(size=(ROWS, 4))


def npy(path: Path, x: Array) -> Path:
    np.save(path / "x.npy", x)
    return path / "x.npy"


def npz(path: Path, x: Array) -> Path:
    np.savez(path / "x.npz", x=x)
    return path / "x.npz"


def compressed(path: Path, x: Array) -> Path:
    np.savez_compressed(path / "c.npz", x=x)
    return path / "c.npz"


def text(path: Path, x: Array) -> Path:
    # Seventeen digits give back every float64.
    pd.DataFrame(x, columns=list("abcd")).to_csv(path / "x.csv", index=False, float_format="%.17g")
    return path / "x.csv"


def parquet(path: Path, x: Array) -> Path:
    pd.DataFrame(x, columns=list("abcd")).to_parquet(path / "x.parquet", row_group_size=300)
    return path / "x.parquet"


def tensors(path: Path, x: Array) -> Path:
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(x.reshape(ROWS, 2, 2))
    pq.write_table(pa.table({"x": column}), path / "t.parquet", row_group_size=300)
    return path / "t.parquet"


def lists(path: Path, x: Array) -> Path:
    pq.write_table(pa.table({"x": x.reshape(ROWS, 2, 2).tolist()}), path / "l.parquet")
    return path / "l.parquet"


def arrow(path: Path, x: Array) -> Path:
    table = pa.table(dict(zip("abcd", x.T, strict=True)))
    with pa.OSFile(str(path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return path / "x.arrow"


FORMATS = [npy, npz, compressed, text, parquet, tensors, lists, arrow]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_any_slice_is_what_was_written(
    form: Callable[[Path, Array], Path], tmp_path: Path, samples: Array
) -> None:
    table = open_table(form(tmp_path, samples))
    assert table.rows == ROWS
    # Forwards, over the borders of groups, backwards, and beyond the end.
    for start, stop in ((0, 3), (290, 910), (1020, 1030), (2047, 2049), (5, 6), (2490, 2600)):
        (found,) = reshaped(table.read(start, stop), (4,)).values()
        np.testing.assert_array_equal(found, samples[start:stop])


def test_names_of_columns_are_features(tmp_path: Path, samples: Array) -> None:
    for form in (text, parquet, arrow):
        assert open_table(form(tmp_path, samples)).columns == tuple("abcd")
    for form in (npy, npz, tensors):
        assert open_table(form(tmp_path, samples)).columns is None


def test_several_inputs_of_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((5, 3)), lengths=np.arange(5))
    read = open_table(tmp_path / "x.npz").read(1, 3)
    assert list(read) == ["x", "lengths"]
    np.testing.assert_array_equal(read["lengths"], [1, 2])


def test_cells_without_a_number_are_missing_in_their_row_alone(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n1,2\n3,\n4,"five"\n6\n\n7,8\n')
    table = open_table(tmp_path / "x.csv")
    nan = np.nan
    np.testing.assert_array_equal(table.read(0, 9)["x"], [[1, 2], [3, nan], [4, nan], [nan, nan], [7, 8]])


def test_an_empty_line_of_one_column_is_a_row_without_a_number(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n" + "1\n\n" * 1500)
    table = open_table(tmp_path / "x.csv")
    assert table.rows == 3000
    for start, stop in ((0, 3000), (1023, 1026), (1025, 1026)):
        np.testing.assert_array_equal(
            table.read(start, stop)["x"][:, 0], np.tile([1, np.nan], 1500)[start:stop]
        )


def test_what_only_python_reads_as_a_number_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n1_000,2\n٣,4\n"5",6e1\n')
    np.testing.assert_array_equal(
        open_table(tmp_path / "x.csv").read(0, 3)["x"], [[np.nan, 2], [np.nan, 4], [5, 60]]
    )


def test_missing_values_of_a_column_are_nan(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1, None, 3]), "b": [1.0, 2.0, 3.0]}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(open_table(tmp_path / "x.parquet").read(0, 3)["x"][:, 0], [1, np.nan, 3])


def _with_missing(x: Array) -> pa.Array:
    flat: list[Any] = x.reshape(len(x), -1).tolist()
    flat[1], flat[3][2] = None, None
    storage = pa.array(flat, pa.list_(pa.float64(), len(flat[0])))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float64(), x.shape[1:]), storage)


def _lists_with_missing(x: Array) -> pa.Array:
    rows: list[Any] = x.tolist()
    rows[1], rows[3][1][0] = [[1.0, 2.0], [3.0]], None
    rows[5], rows[6] = [[1.0, 2.0], None], [[1.0, 2.0, 3.0]]
    return pa.array(rows)


@pytest.mark.parametrize(
    ("column", "bad"),
    [(_with_missing, {1, 3}), (_lists_with_missing, {1, 3, 5, 6})],
    ids=["tensors", "lists"],
)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_an_array_that_is_none_is_missing_in_its_row_alone(
    ending: str, column: Callable[[Array], pa.Array], bad: set[int], tmp_path: Path, samples: Array
) -> None:
    x = samples[:20].reshape(20, 2, 2)
    table, path = pa.table({"x": column(x)}), tmp_path / f"x.{ending}"
    if ending == "parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    opened = open_table(path)
    # Whatever rows are beside it.
    for start, stop in ((0, 20), (1, 2), (5, 7)):
        found = opened.read(start, stop)["x"]
        rows = np.isfinite(found).all((1, 2))
        assert [k for k in range(start, stop) if not rows[k - start]] == sorted(bad & set(range(start, stop)))
        np.testing.assert_array_equal(found[rows], x[start:stop][rows])


@pytest.mark.parametrize("form", ["numbers", "lists"])
def test_a_damaged_row_group_costs_its_rows_alone(form: str, tmp_path: Path, samples: Array) -> None:
    x = samples[:40]
    table = pd.DataFrame(x, columns=list("abcd")) if form == "numbers" else {"x": x.tolist()}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(table), path, row_group_size=10, write_page_checksum=True, use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[group.data_page_offset + group.total_compressed_size // 2] ^= 255
    path.write_bytes(content)
    found = open_table(path).read(5, 35)["x"]
    np.testing.assert_array_equal(found[5:], x[10:35])
    assert np.isnan(found[:5]).all()


def _objects(path: Path) -> Path:
    np.save(path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    return path / "x.npy"


def _cut(path: Path) -> Path:
    file = npz(path, np.zeros((9, 4)))
    file.write_bytes(file.read_bytes()[:300])
    return file


def _claiming(path: Path, shape: tuple[int, ...], numbers: int, *, told: int | None = None) -> Path:
    """Write an archive whose array says to be of a shape, and holds so many numbers."""
    with zipfile.ZipFile(path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": shape}
            )
            for start in range(0, numbers, 1 << 20):
                file.write(bytes(8 * min(1 << 20, numbers - start)))
        # The directory at the end of the file says it, too.
        archive.filelist[0].file_size = told or archive.filelist[0].file_size
    return path / "x.npz"


def _long(path: Path) -> Path:
    with (path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 5, 3)}
        )
        file.write(bytes(120))
    return path / "x.npy"


def _fortran(path: Path) -> Path:
    np.savez(path / "x.npz", x=np.asfortranarray(np.ones((4, 3))))
    return path / "x.npz"


def _unequal(path: Path) -> Path:
    np.savez(path / "x.npz", x=np.ones((4, 3)), y=np.ones(5))
    return path / "x.npz"


def _nameless(path: Path) -> Path:
    (path / "x.csv").write_text("1,2\n3,4\n")
    return path / "x.csv"


def _several_lines(path: Path) -> Path:
    (path / "x.csv").write_text('a,b\n1,2\n3,"so\nmany"\n5,6\n')
    return path / "x.csv"


def _words(path: Path) -> Path:
    pq.write_table(pa.table({"a": ["one", "two"]}), path / "x.parquet")
    return path / "x.parquet"


def _lists_of_words(path: Path) -> Path:
    pq.write_table(pa.table({"a": [["one"], ["two"]]}), path / "x.parquet")
    return path / "x.parquet"


def _mixed(path: Path) -> Path:
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [[1.0], [2.0]]}), path / "x.parquet")
    return path / "x.parquet"


def _empty(path: Path) -> Path:
    np.save(path / "x.npy", np.zeros((0, 3)))
    return path / "x.npy"


def _no_table(path: Path) -> Path:
    (path / "x.parquet").write_bytes(b"PAR1 but nothing else")
    return path / "x.parquet"


REFUSED = {
    "objects": (_objects, ("damaged", "Python objects")),
    "cut": (_cut, ("damaged",)),
    "claims": (lambda path: _claiming(path, (10**12, 5, 3), 15), ("damaged", "takes 120,000,000,000,128")),
    "claims twice": (
        lambda path: _claiming(path, (10**12, 5, 3), 15, told=10**15),
        ("damaged", "takes 120,000,000,000,128"),
    ),
    "no columns": (lambda path: _claiming(path, (10**12, 0), 0), ("expected numbers in each row",)),
    "claims of a file": (_long, ("damaged",)),
    "fortran": (_fortran, ("Fortran's order", "np.ascontiguousarray")),
    "unequal": (_unequal, ("one number of rows", "'x': 4")),
    "nameless": (_nameless, ("first line of different names",)),
    "lines": (_several_lines, ("line 3: a cell in quotes goes on in the next line",)),
    "words": (_words, ("a: expected numbers or arrays", "string")),
    "lists of words": (_lists_of_words, ("a: expected numbers or arrays", "string")),
    "mixed": (_mixed, ("numbers in all columns, or arrays in all",)),
    "empty": (_empty, ("holds no rows",)),
    "no table": (_no_table, ("damaged, or no .parquet file",)),
    "missing": (lambda path: path / "x.npy", ("no such file",)),
    "ending": (lambda path: Path(__file__), ("expected .npy, .npz", "got .py")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_said(name: str, tmp_path: Path) -> None:
    make, said = REFUSED[name]
    with pytest.raises(TableError) as caught:
        open_table(make(tmp_path)).read(0, 2)
    assert all(each in str(caught.value) for each in said), str(caught.value)


@pytest.mark.parametrize("form", [npy, compressed], ids=lambda form: form.__name__)
def test_what_unpacks_to_more_than_is_read_at_once_is_refused(
    form: Callable[[Path, Array], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewriter.jobs.tables._MOST", 1 << 20)
    table = open_table(form(tmp_path, np.zeros((4, 1 << 16))))
    assert table.read(0, 2)["x"].nbytes == 1 << 20
    with pytest.raises(TableError, match="3 rows of 524,288 bytes are more than the 1,048,576 that are read"):
        table.read(0, 3)


def test_an_archive_that_is_damaged_in_the_middle_says_where(tmp_path: Path, samples: Array) -> None:
    path = compressed(tmp_path, samples)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    table = open_table(path)
    np.testing.assert_array_equal(table.read(0, 100)["x"], samples[:100])
    with pytest.raises(TableError, match=r"c\.npz: x: damaged before row 2500"):
        table.read(100, ROWS)


def test_rows_that_do_not_fit_a_shape_are_refused() -> None:
    with pytest.raises(TableError, match=r"rows of shape \(6,\) do not fit the shape \(2, 2\)"):
        reshaped({"x": np.zeros((3, 6))}, (2, 2))


@pytest.mark.parametrize("place", [0, 200_000, 399_999])
def test_a_fingerprint_tells_files_apart_wherever_they_differ(place: int, tmp_path: Path) -> None:
    x = np.zeros(400_000)
    first = fingerprint(npy(tmp_path, x))
    assert fingerprint(npy(tmp_path, x)) == first
    x[place] = 1
    assert fingerprint(npy(tmp_path, x)) != first
