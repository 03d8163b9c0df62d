"""Files that are whole or absent, their former versions, and whose fault a failed write is."""

import os

import pytest

from guidestar.io import files
from guidestar.io.files import check_name, keep_former, make_folder, name_write_errors, whole_or_not


def listed(folder):
    return {f.name: f.read_text() for f in folder.iterdir()}


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    with whole_or_not(path) as beside:
        assert beside.parent == path.parent and beside.name == "a.txt.writing"
        beside.write_text("one")
        assert not path.exists()
    assert listed(path.parent) == {"a.txt": "one"}
    with pytest.raises(KeyError), whole_or_not(path) as beside:
        beside.write_text("two")
        raise KeyError
    assert listed(path.parent) == {"a.txt": "one"}
    with pytest.raises(KeyError), whole_or_not(path):  # nothing was begun
        raise KeyError
    folder = tmp_path / "f"
    with pytest.raises(KeyError), whole_or_not(folder) as beside:
        (beside / "deep").mkdir(parents=True)
        (beside / "deep" / "x").write_text("1")
        raise KeyError
    assert not folder.exists() and not beside.exists()
    with whole_or_not(folder) as beside:
        beside.mkdir()
        (beside / "x").write_text("1")
    assert listed(folder) == {"x": "1"}


def test_a_file_is_on_disk_before_it_has_its_name_and_so_is_the_name(tmp_path, monkeypatch):
    flushed: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(
        os, "fsync", lambda h: flushed.append((os.fstat(h).st_ino, sorted(os.listdir(tmp_path))))
    )
    with whole_or_not(tmp_path / "a") as beside:
        beside.write_text("1")
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with whole_or_not(tmp_path / "a") as beside:
            beside.write_text("1")
    assert len(os.listdir("/proc/self/fd")) == held
    del flushed[2:-2]
    inodes = [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]
    assert flushed[2:] == [(inodes[0], ["a", "a.writing"]), (inodes[1], ["a"])]
    assert [names for _, names in flushed[:2]] == [["a.writing"], ["a"]]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "a.txt"
    with pytest.raises(OSError, match=rf"^cannot write {below}: \w"), whole_or_not(below):
        pass
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match=r"^cannot write b: full$"), whole_or_not(path):
        raise OSError("cannot write b: full")  # named already
    with pytest.raises(OSError, match=f"^cannot write {path}: odd$"), whole_or_not(path):
        raise OSError("odd")
    with pytest.raises(OSError, match=f"^cannot write {path}: No space"), whole_or_not(path):
        raise OSError(28, "No space left on device")


def test_a_write_that_fails_in_another_library_is_named(tmp_path):
    path = tmp_path / "a.txt"
    for error in (
        RuntimeError("it failed (os error 28)"),
        RuntimeError("[Errno 28] no space"),
        RuntimeError("PytorchStreamWriter failed\nwriting"),
        RuntimeError("inline_container.cc:1 unexpected pos"),
    ):
        words = " ".join(str(error).split()).replace("(", r"\(").replace(")", r"\)")
        words = words.replace("[", r"\[")
        with (
            pytest.raises(OSError, match=f"^cannot write {path}: {words}$"),
            name_write_errors(path),
        ):
            raise error
    with pytest.raises(RuntimeError, match=r"^another$"), name_write_errors(path):
        raise RuntimeError("another")
    with pytest.raises(OSError, match=f"^cannot write {path}: No space$"), name_write_errors(path):
        raise RuntimeError("in the end") from OSError(28, "No space")
    with pytest.raises(OSError, match=f"^cannot write {path}: No space$"), name_write_errors(path):
        try:
            raise OSError(28, "No space")
        except OSError:
            raise RuntimeError("after it")  # noqa: B904
    with pytest.raises(OSError, match=f"^cannot write {path}: odd words$"), name_write_errors(path):
        raise RuntimeError("in the end") from OSError("odd\nwords")
    with pytest.raises(OSError, match=r"^cannot write b: x$"), name_write_errors(path):
        raise OSError("cannot write b: x")
    with pytest.raises(RuntimeError, match="after it"), name_write_errors(path):
        raise RuntimeError("after it") from OSError("cannot write b: x")
    with name_write_errors(path):
        pass


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, {}),
        (2, {"a.1.pt": "5"}),
        (3, {"a.1.pt": "5", "a.2.pt": "4"}),
        (4, {"a.1.pt": "5", "a.2.pt": "4", "a.3.pt": "3"}),
    ],
)
@pytest.mark.parametrize("links", [True, False])
def test_former_versions_are_moved_up(tmp_path, monkeypatch, keep, kept, links):
    def refuse(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.pt"
    keep_former(path, keep)  # there is none yet
    assert listed(tmp_path) == {}
    for version in range(1, 6):
        with whole_or_not(path) as beside:
            beside.write_text(str(version))
        keep_former(path, keep)
        assert path.read_text() == str(version)
    assert listed(tmp_path) == {"a.pt": "5", **kept}
    (tmp_path / "a.pt.keeping").write_text("left by a run that was killed")
    keep_former(path, 2)
    assert ("a.pt.keeping" in listed(tmp_path)) is False
    assert listed(tmp_path)["a.1.pt"] == "5"


def test_a_folder_that_can_be_written_to(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir() and not listed(tmp_path / "a" / "b")
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"  # it is there already
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"^cannot write to the folder {tmp_path}/file/x: \w"):
        make_folder(tmp_path / "file" / "x")


def test_names_of_folders_up_to_their_length():
    for good in ("a", "x" * 100, "é" * 50, "a.b-c_d", "comet", "com1x", "nulls", "a b"):
        assert check_name(good, "it") == good
    bad = {
        "": "it is empty",
        " ": "it is empty",
        "x" * 101: "longer than 100 bytes",
        "é" * 51: "longer than 100 bytes",
        "a/b": "a sign of paths",
        "a\x7f": "a sign of paths",
        ".a": "starts with",
        "-a": "starts with",
        " a": "starts with",
        "a.": "ends in",
        "a ": "ends in",
        "con": "a device",
        "LPT1.txt": "a device",
        "Parts": "it is taken",
    }
    for name, why in bad.items():
        with pytest.raises(ValueError, match=f"^it becomes a folder's name and cannot be .*{why}"):
            check_name(name, "it", taken={"parts"})
    with pytest.raises(ValueError, match="it is no text"):
        check_name(3, "it")


def test_a_name_of_half_a_character_holds_a_sign_of_paths():
    assert files._unfit("a\ud800", ()) == "it holds a sign of paths"
    half = files.LONGEST_NAME // 2
    assert files._unfit("é" * half, ()) is None
    assert files._unfit("é" * (half + 1), ()) == f"it is longer than {files.LONGEST_NAME} bytes"
