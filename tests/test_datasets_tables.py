"""Datasets that a CSV or Parquet file lists."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from pathlib import Path

import harness_process
import numpy as np
import pytest
from PIL import Image

from softcache.datasets._fraction import split_fraction, with_fraction
from softcache.datasets._open import open_samples
from softcache.errors import DatasetError, SoftcacheError
from softcache.extras import install_command

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs the extra [parquet]")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for number, name in enumerate(["a.png", "deep/b.jpg", "c", "d.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name, "PNG")
    return tmp_path


ROWS = [
    ("file", "label", "split", "note"),
    ("deep/b.jpg", "dog", "train", "x, y"),
    ("./a.png", "cat", "train", ""),
    ("c", "", "train", ""),
    ("d.png", "dog", "val", 'he said "no"'),
]


def write(path: Path, rows: list[tuple[str, ...]], encoding: str = "utf-8") -> str:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows(rows)
    return f"csv:{path}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_lists_files_labels_and_splits(pets, capsys, encoding):
    spec = write(pets / "pets.csv", ROWS, encoding)
    train, test = open_samples(spec, "train"), open_samples(spec, "test")
    assert (train.names, train.labels.tolist()) == (["deep/b.jpg", "a.png", "c"], [1, 0, -1])
    assert (test.names, test.labels.tolist()) == (["d.png"], [1])
    assert train.classes == test.classes == ("cat", "dog")
    assert (train.size, train.recipe, train.spec) == (224, "rrc+flip", spec)
    assert train.image(0)[0, 0].tolist() == [1, 0, 0]
    assert f"the test split of {pets / 'pets.csv'} is val\n" in capsys.readouterr().err


def test_columns_have_other_names_too_and_numbers_sort_as_numbers(pets):
    rows = [("Class", "Image"), ("10", "a.png"), ("9", "c"), ("-1", "d.png")]
    samples = open_samples(write(pets / "pets.csv", rows) + ",test_fraction=0", "train")
    assert samples.classes == ("9", "10")
    assert samples.labels.tolist() == [1, 0, -1]


def test_a_table_without_splits_is_divided_like_folders(tmp_path):
    names = [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(10, 40)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    spec = write(tmp_path / "pets.csv", [("path", "class"), *((name, name[:3]) for name in names)])
    with pytest.raises(DatasetError, match=r"has no column split: --test-fraction 0\.2 holds out a fifth"):
        open_samples(spec, "train")
    for split in ("train", "test"):
        table = open_samples(f"{spec},test_fraction=0.2", split)
        folder = open_samples(f"folder:{tmp_path},test_fraction=0.2", split)
        assert table.names == folder.names
        assert table.fingerprint() == folder.fingerprint()


def test_an_absolute_path_may_lie_elsewhere_and_one_within_is_relative(pets, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    Image.new("RGB", (4, 4), (7, 7, 7)).save(elsewhere)
    rows = [("file", "split"), (str(elsewhere), "train"), (str(pets / "a.png"), "train")]
    samples = open_samples(write(pets / "pets.csv", rows), "train")
    assert samples.names == [str(elsewhere), "a.png"]
    assert samples.image(0)[0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("rows", "split", "says"),
    [
        (
            [("name", "label"), ("a.png", "x")],
            "train",
            "no column file, image or path in its header, found name, l",
        ),
        ([("file", "path"), ("a.png", "a.png")], "train", "more than one column for the file, file and path"),
        ([("file", "split"), ("a.png", "train"), ("../b.png", "train")], "train", r"line 3: \.\./b\.png leads out of"),
        ([("file", "split"), ("deep/../../b.png", "train")], "train", "line 2: .* leads out of"),
        ([("file", "split"), ("none.png", "train")], "train", r"line 2: .*none\.png can't be read: No such file"),
        ([("file", "split"), ("deep", "train")], "train", "line 2: .*deep is not a regular file"),
        ([("file", "split"), ("pipe.png", "train")], "train", "line 2: .*pipe.png is not a regular file"),
        ([("file", "split"), ("a\0.png", "train")], "train", "line 2: .*NUL"),
        ([("file", "split"), ("", "train")], "train", "line 2: no file"),
        ([("file", "split"), ("a.png", "dev")], "train", "line 2: split 'dev' is neither train nor test, val"),
        ([("file", "split"), ("a.png",)], "train", "line 2: 1 fields, the header has 2"),
        ([("file", "split"), ("a.png", "train")], "test", "has no test split: none of its 1 rows is in it"),
        ([("file", "split"), ("a.png", "test")], "test", "the test split has no labels"),
        ([("file", "label", "split"), ("a.png", "-2", "train")], "train", "line 2: label -2 is below -1"),
        (
            [("file", "label", "split"), ("a.png", "x", "train"), ("c", "y", "test")],
            "train",
            "the train split lacks classes of the test split: y",
        ),
        (
            [("file", "label", "split"), ("a.png", "x", "train"), ("./a.png", "x", "test")],
            "train",
            r"line 3: a\.png has another label or split in line 2",
        ),
        ([], "train", "no column file, image or path in its header, found none"),
    ],
)
def test_bad_tables(pets, rows, split, says):
    os.mkfifo(pets / "pipe.png")
    with pytest.raises(DatasetError, match=says) as caught:
        open_samples(write(pets / "pets.csv", rows), split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"file,split\n\xff.png,train\n", "is not UTF-8 text"),
        (b'file,split\n"a.png,train\n', "line 2: unexpected end of data"),
        (b"file,split\na.png" + b"x" * 200_000 + b",train\n", "line 2: field larger than field limit"),
    ],
)
def test_damaged_csv_files(pets, content, says):
    (pets / "pets.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=says) as caught:
        open_samples(f"csv:{pets / 'pets.csv'}", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["csv", pytest.param("parquet", marks=needs_pyarrow)])
def test_a_table_that_is_none_is_refused_unread(tmp_path, source):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="pipe can't be read: it is not a regular file"):
        open_samples(f"{source}:{tmp_path / 'pipe'}", "train")
    with pytest.raises(DatasetError, match="no file at"):
        open_samples(f"{source}:{tmp_path / 'gone'}", "train")


OUTPUTS = [
    ("file", "smiling", "glasses", "age", "height", "split"),
    ("a.png", "1", "no", "31.5", "-2", "train"),
    ("deep/b.jpg", "0", "", "", "1e3", "train"),
    ("c", "", "", "", "", "train"),
    ("d.png", "True", "yes", "7", "0", "test"),
]


def test_columns_are_labels_of_other_kinds(pets):
    spec = write(pets / "pets.csv", OUTPUTS)
    train = open_samples(f"{spec},binary=smiling+glasses", "train")
    assert (train.label_kind, train.classes) == ("binary", ("smiling", "glasses"))
    assert train.labels.tolist() == [[1, 0], [0, 255], [255, 255]]
    assert open_samples(f"{spec},binary=smiling+glasses", "test").labels.tolist() == [[1, 1]]
    ages = open_samples(f"{spec},values=age", "train")
    assert (ages.label_kind, ages.classes, ages.labels.shape) == ("values", ("age",), (3,))
    assert ages.labels[0] == 31.5
    assert np.isnan(ages.labels[1:]).all()
    both = open_samples(f"{spec},values=height+age", "train")
    assert np.array_equal(both.labels, np.float32([[-2, 31.5], [1000, np.nan], [np.nan] * 2]), equal_nan=True)
    assert both.spec == f"{spec},values=height+age"
    again = open_samples(both.spec, "train")
    assert again.fingerprint() == both.fingerprint()


def test_other_labels_with_a_share_that_is_held_out(pets):
    spec = write(pets / "pets.csv", [row[:-1] for row in OUTPUTS])
    plain = open_samples(f"{spec},values=age,test_fraction=0.5", "test").names
    assert plain == open_samples(f"{spec},binary=smiling,test_fraction=0.5", "test").names
    assert with_fraction(f"{spec},values=age", 0.5) == f"{spec},values=age,test_fraction=0.5"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("binary=age", "line 2: age is '31.5', not 1, 0, true, false, yes or no"),
        ("values=glasses", "line 2: glasses is 'no', not a finite number"),
        ("values=weight", "has no column 'weight': it has file, smiling"),
        ("values=file", "the column 'file' can't be a label too"),
        ("values=age+age", "must name each column once"),
        ("values=age,binary=smiling", "give binary or values, not both"),
    ],
)
def test_columns_that_are_no_labels(pets, option, says):
    with pytest.raises(SoftcacheError, match=says):
        open_samples(f"{write(pets / 'pets.csv', OUTPUTS)},{option}", "train")


@needs_pyarrow
def test_labels_of_other_kinds_in_a_parquet_file(pets):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "file": ["a.png", "deep/b.jpg", "c"], "smiling": pa.array([True, False, None]),
        "age": pa.array([31.5, None, 7.0], pa.float32()), "glasses": pa.array([1, 0, None], pa.int8()),
    }  # fmt: skip
    pq.write_table(pa.table(rows), pets / "pets.parquet")
    spec = f"parquet:{pets / 'pets.parquet'}"
    train = open_samples(f"{spec},binary=smiling+glasses,test_fraction=0", "train")
    assert train.labels.tolist() == [[1, 1], [0, 0], [255, 255]]
    ages = open_samples(f"{spec},values=age,test_fraction=0", "train").labels
    assert np.array_equal(ages, np.float32([31.5, np.nan, 7]), equal_nan=True)


@needs_pyarrow
def test_a_parquet_file_is_the_same_dataset_as_a_csv_file(pets):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict(zip(ROWS[0], zip(*ROWS[1:], strict=True), strict=True))
    columns["label"] = ("dog", "cat", None, "dog")
    pq.write_table(pa.table(columns), pets / "pets.parquet")
    for split in ("train", "test"):
        one = open_samples(f"parquet:{pets / 'pets.parquet'}", split)
        other = open_samples(write(pets / "pets.csv", ROWS), split)
        assert one.fingerprint() == other.fingerprint()
        assert one.spec == f"parquet:{pets / 'pets.parquet'}"
    numbers = pa.table({"file": ["a.png", "c"], "label": pa.array([10, 9], pa.int64())})
    pq.write_table(numbers, pets / "numbers.parquet")
    samples = open_samples(f"parquet:{pets / 'numbers.parquet'},test_fraction=0", "train")
    assert (samples.classes, samples.labels.tolist()) == (("9", "10"), [1, 0])


@needs_pyarrow
def test_bad_parquet_files(pets):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (pets / "pets.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(DatasetError, match=r"pets\.parquet can't be read as Parquet"):
        open_samples(f"parquet:{pets / 'pets.parquet'}", "train")
    pq.write_table(pa.table({"file": ["a.png"], "label": [0.5], "split": ["train"]}), pets / "pets.parquet")
    with pytest.raises(DatasetError, match="column of the label must hold texts or whole numbers, found float"):
        open_samples(f"parquet:{pets / 'pets.parquet'}", "train")


def test_without_pyarrow_the_extra_is_named(pets):
    """In a process that can't see it."""
    (pets / "pets.parquet").write_bytes(b"")
    code = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'pyarrow' else found(name, package)\n"
        "from softcache.cli._main import run\n"
        f"sys.exit(run(['--quiet', 'layers', '--dataset', 'parquet:{pets / 'pets.parquet'}']))"
    )
    done = harness_process.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"softcache: a parquet: dataset needs pyarrow: {install_command('parquet')}\n"


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        ("csv:a.csv,test_fraction=0.25", "csv:a.csv"),
        ("csv:a.csv,test_fraction=0.25,values=age", "csv:a.csv,values=age"),
        ("csv:a.csv,binary=x+y,test_fraction=0.25", "csv:a.csv,binary=x+y"),
        ("folder:a,test_fraction=0.25,bits=16", "folder:a,bits=16"),
    ],
)
def test_the_share_is_found_wherever_it_stands_among_the_options(spec: str, plain: str) -> None:
    assert split_fraction(spec) == (plain, 0.25)
    assert split_fraction(with_fraction(plain, 0.25)) == (plain, 0.25)
