"""Original archives, small ones made up, become what the tasks read."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks import archives
from fptt.experiments.tasks.archives import SIGNALS, Archive, convert
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.scores import IGNORED
from tests.experiments.data_sets import sizes


def text(array: np.ndarray) -> str:
    return "\n".join("  ".join(f"{value:.12e}" for value in row) for row in np.atleast_2d(array)) + "\n"


def zipped(path: Path, files: Mapping[str, str], inner: str | None = None) -> Path:
    """Write a zip archive, within another one if that has a name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, own in files.items():
            file.writestr(name, own)
    if inner is None:
        path.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(inner, content.getvalue())
            file.writestr("__MACOSX/x/train/y_train.txt", "junk")
    return path


def har_files(signals: np.ndarray, persons: Mapping[str, list[int]], labels: list[int]) -> dict[str, str]:
    """Return the files of as many windows, (9, N, 128), in both parts, labels from 1."""
    files = {}
    for part, own in persons.items():
        folder = f"UCI HAR Dataset/{part}"
        for name, signal in zip(SIGNALS, signals, strict=True):
            files[f"{folder}/Inertial Signals/{name}_{part}.txt"] = text(signal)
        files[f"{folder}/y_{part}.txt"] = "".join(f"{label}\n" for label in labels)
        files[f"{folder}/subject_{part}.txt"] = "".join(f"{person}\n" for person in own)
    return files


PERSONS = {"train": [1, 1, 2, 3, 4], "test": [5, 5, 6, 6, 6]}


def test_har_is_windows_of_nine_signals(tmp_path: Path) -> None:
    signals = np.random.default_rng(0).normal(size=(9, 5, 128))
    path = zipped(tmp_path / "a.zip", har_files(signals, PERSONS, [1, 6, 3, 3, 2]), inner="UCI HAR Dataset.zip")
    with Archive(path) as archive:
        train, test = convert("har", archive, tmp_path / "out")
    assert train.found == "5 windows of 4 persons: 1, 1, 2, 0, 0, 1 of the six activities"
    assert not train.is_original
    assert test.found.startswith("5 windows of 2 persons")
    rows = load_dataset(str(tmp_path / "out"))["train"].with_format("numpy")  # pyright: ignore
    np.testing.assert_array_equal(rows["inertial"], signals.transpose(1, 2, 0).astype(np.float32))
    assert list(rows["label"]) == [0, 5, 2, 2, 1]
    assert list(rows["subject"]) == PERSONS["train"]
    task = load_task(Setting(task="har", data=str(tmp_path / "out")), 0)
    assert sizes(task) == [2, 3, 5]


def hapt_files(signals: Mapping[tuple[int, int], np.ndarray], labels: list[list[int]]) -> dict[str, str]:
    files = {"RawData/labels.txt": text(np.array(labels)), "Test/subject_id_test.txt": "3\n3\n7\n"}
    for (experiment, person), signal in signals.items():
        end = f"_exp{experiment:02d}_user{person:02d}.txt"
        files |= {f"RawData/acc{end}": text(signal[:, :3]), f"RawData/gyro{end}": text(signal[:, 3:])}
    return {f"HAPT Data Set/{name}": content for name, content in files.items()}


def test_hapt_is_recordings_with_a_label_a_step(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    places = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    signals = {place: generator.normal(size=(20 + place[0], 6)) for place in places}
    labels = [[1, 1, 5, 1, 3], [1, 1, 12, 6, 21], [3, 3, 2, 4, 4], [4, 4, 1, 1, 9], [5, 5, 1, 1, 9], [2, 2, 1, 1, 9]]
    path = zipped(tmp_path / "a.zip", hapt_files(signals, labels))
    with Archive(path) as archive:
        train, test = convert("hapt", archive, tmp_path / "out")
    assert train.found == "4 recordings of 4 persons: 92 steps, 46 of them with a label"
    assert test.found == "1 recordings of 1 persons: 23 steps, 1 of them with a label"
    rows = load_dataset(str(tmp_path / "out"))["train"].with_format("numpy")[0]  # pyright: ignore
    np.testing.assert_array_equal(rows["signal"], signals[1, 1].astype(np.float32))
    # steps are counted from 1, and the last one belongs to the activity
    assert rows["label"].tolist() == [5] * 3 + [0, 0] + [12] * 16
    task = load_task(Setting(task="hapt", data=str(tmp_path / "out"), length=23), 0)
    targets = task.test[0][1]  # pyright: ignore
    assert targets.tolist() == [IGNORED] * 3 + [1] + [IGNORED] * 19
    assert run(["stream", "--data", str(tmp_path / "out"), "--out", str(tmp_path / "s"), "--hidden-size", "4"]) == 0


LINES = {"ptb": [" a cat <unk> \n", " the N \n"], "ptb.char": ["a _ c a t \n", " t h e _ N \n "]}


def ptb_archive(path: Path, links: Mapping[str, str] | None = None) -> Path:
    """Write the archive, with links in the folder of the texts, by their names and what they lead to."""
    with tarfile.open(path, "w:gz") as file:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"./simple-examples/data/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            file.addfile(member)
        for prefix, lines in LINES.items():
            for part in ("train", "valid", "test"):
                content = "".join(lines).encode()
                member = tarfile.TarInfo(f"./simple-examples/data/{prefix}.{part}.txt")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def test_ptb_is_lines_of_words_and_of_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ptb_archive(tmp_path / "a.tgz")
    # printf ' a cat <unk> \n the N \n' | git hash-object --stdin
    monkeypatch.setitem(archives.PTB_DIGESTS, "ptb.train.txt", "97e65f42310f445253b1d0805ec3553ea6628b21")
    assert run(["data", "ptb", str(path), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n" in told
    assert told.count("as in the original") == 1
    assert "ptb-word/train: 2 lines, git's SHA-1 97e65f42310f445253b1d0805ec3553ea6628b21, as in the original" in told
    assert told.count("which the original has not") == 5
    for name, expected in (("ptb-word", ["a cat <unk>", "the N"]), ("ptb-char", ["a _ c a t", "t h e _ N"])):
        splits = load_dataset(str(tmp_path / "out" / name))
        assert {part: list(splits[part]["sentence"]) for part in splits} == dict.fromkeys(  # pyright: ignore
            ("train", "validation", "test"), expected
        )


def test_ptb_goes_beside_other_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the guide has it: `--out data/har`, `--out data/hapt`, and `--out data` for both folders of the Treebank."""
    path, out = ptb_archive(tmp_path / "a.tgz"), tmp_path / "data"
    (out / "har").mkdir(parents=True)
    (out / "har" / "train.parquet").touch()
    assert run(["data", "ptb", str(path), "--out", str(out)]) == 0
    assert f"--task ptb-char --data {out / 'ptb-char'}" in " ".join(capsys.readouterr().out.split())
    assert run(["data", "ptb", str(path), "--out", str(out)]) == 2
    assert f"{str(out / 'ptb-word')!r} must be a new or an empty folder" in " ".join(capsys.readouterr().err.split())


def test_links_to_nothing_are_no_files_of_an_archive(tmp_path: Path) -> None:
    path = ptb_archive(tmp_path / "a.tgz", {"latest": "gone.txt", "round": "round", "words.txt": "ptb.train.txt"})
    with Archive(path) as archive:
        assert archive.read("words.txt") == archive.read("ptb.train.txt") == "".join(LINES["ptb"]).encode()
        for name in ("latest", "round"):
            with pytest.raises(UserError, match=f"must have one file '{name}', got 0"):
                archive.read(name)
        assert len(convert("ptb", archive, tmp_path / "out")) == 6


def test_what_is_wrong_in_an_archive_is_named(tmp_path: Path) -> None:
    signals = np.zeros((9, 5, 128))
    files = har_files(signals, PERSONS, [1, 6, 3, 3, 2])
    name = "UCI HAR Dataset/test/y_test.txt"
    cases = [
        ({k: v for k, v in files.items() if k != name}, "must have one file 'test/y_test.txt', got 0"),
        ({**files, "other/test/y_test.txt": "1\n"}, "must have one file 'test/y_test.txt', got 2"),
        ({**files, name: "1\n2\n"}, r"as many windows, .* part 'test', got \[2, 5\]"),
        ({**files, name: "1\n2\n3\n4\n7\n"}, r"got \[5\] with labels \[1, 2, 3, 4, 7\]"),
        ({**files, name: "1\n2\nx\n4\n5\n"}, "'test/y_test.txt' in the archive .* must hold 1 numbers a line"),
        ({**files, name: "1 2\n" * 5}, "must hold 1 numbers a line: got 2 columns"),
        ({**files, name: ""}, "must hold 1 numbers a line: it is empty"),
    ]
    for own, message in cases:
        with Archive(zipped(tmp_path / "a.zip", own)) as archive, pytest.raises(UserError, match=message):
            convert("har", archive, tmp_path / "out")
    bad = hapt_files({(1, 1): np.zeros((5, 6))}, [[1, 1, 5, 1, 6]])
    with (
        Archive(zipped(tmp_path / "a.zip", bad)) as archive,
        pytest.raises(UserError, match="experiment 1, got 5, 1 to 6"),
    ):
        convert("hapt", archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_or_no_empty_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_text("hello")
    good = ptb_archive(tmp_path / "good.tgz")
    (tmp_path / "cut.tgz").write_bytes(good.read_bytes()[:150])
    (tmp_path / "full" / "ptb-char" / "old").mkdir(parents=True)
    cases = [
        ("nowhere.zip", "out", "nowhere.zip' does not exist"),
        ("a.zip", "out", "a.zip' cannot be read: it is no zip or tar archive"),
        ("cut.tgz", "out", "cut.tgz' cannot be read"),
        ("good.tgz", "full", "must be a new or an empty folder"),
    ]
    for name, out, message in cases:
        assert run(["data", "ptb", str(tmp_path / name), "--out", str(tmp_path / out)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
