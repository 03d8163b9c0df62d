"""Folders as people have them: what belongs to the data is read, and what is not clear is
refused.
"""

import io
import json
import os
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from guidestar.cli import main
from guidestar.core.rng import Draw
from guidestar.data.folders import image_folder, parquet
from guidestar.data.layout import find_files, find_pictures
from guidestar.data.pictures import PictureFormat, prepare_pictures
from guidestar.data.shards import Shards
from guidestar.data.source import pick
from guidestar.data.splits import find_splits, split_word
from guidestar.io.files import Damaged
from guidestar.train.recipe import schema as recipes
from guidestar.train.recipe.propose import propose

LOOK = PictureFormat(size=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def labelled(folder, **more):
    """Return the classes of a folder, and the class of the picture of each grey value."""
    source = image_folder(folder, LOOK, **more)
    x, targets = source.batch(range(source.size), Draw(range(source.size)))
    values = ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    return source.columns["label"].classes, dict(
        zip(values, targets["label"].tolist(), strict=True)
    )


def captions(folder, **more):
    source = image_folder(folder, LOOK, **more)
    return source.batch(range(source.size), Draw(range(source.size)))[1]["text"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for value, name in enumerate(("cat/0.png", "cat/1.png", "dog/2.png")):
        write(folder / name, value)
    return folder


RUBBISH = [
    *(".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/cat/._0.png", ".git/objects/x.png"),
    *("cat/.ipynb_checkpoints/0.png", "cat/._0.png", "cat/.hidden.png", "@eaDir/0.png"),
]


def test_what_other_programs_leave_is_passed_over(photos):
    for name in RUBBISH:
        write(photos / name, 99)
    for name in ("Thumbs.db", "cat/Thumbs.db", ".DS_Store", "dog/desktop.ini"):
        (photos / name).write_bytes(b"x")
    assert labelled(photos) == (("cat", "dog"), {0: 0, 1: 0, 2: 1})


@pytest.mark.parametrize("name", ["[D] photos", "photos*", "a?b", ".hidden", "$x {y}"])
def test_a_root_may_be_called_anything(photos, name):
    root = photos.rename(photos.parent / name)
    assert labelled(root) == (("cat", "dog"), {0: 0, 1: 0, 2: 1})


def test_class_folders_may_be_links_and_links_in_a_circle_end(photos, tmp_path):
    write(tmp_path / "elsewhere" / "7.png", 7)
    (photos / "bird").symlink_to(tmp_path / "elsewhere")
    assert labelled(photos) == (("bird", "cat", "dog"), {7: 0, 0: 1, 1: 1, 2: 2})
    (photos / "cat" / "again").symlink_to(photos)
    assert len(list(find_files(photos))) < 100


def test_splits_are_refused_with_what_to_write(photos, tmp_path):
    whole = tmp_path / "whole"
    photos.rename(whole / "train") if whole.mkdir() is None else None
    write(whole / "test" / "cat" / "9.png", 9)
    assert list(find_splits(whole, find_pictures(whole))) == ["train", "test"]
    with pytest.raises(
        ValueError, match="holds the splits train, test, which would be mixed"
    ) as caught:
        image_folder(whole, LOOK)
    assert f'path = "{whole}/train" and test = "{whole}/test"' in str(caught.value)


def test_the_first_two_of_several_splits_are_proposed(tmp_path):
    for name in ("test", "train", "val"):
        write(tmp_path / "p" / name / "cat" / "0.png")
    with pytest.raises(ValueError, match="holds the splits train, ") as caught:
        image_folder(tmp_path / "p", LOOK)
    first, second, third = (
        str(caught.value).partition("splits ")[2].partition(", which")[0].split(", ")
    )
    assert {first, second, third} == {"train", "test", "val"}
    where = tmp_path / "p"
    assert f'path = "{where}/{first}" and test = "{where}/{second}"' in str(caught.value)


def test_splits_with_tables_are_refused_too(tmp_path):
    for name in ("Train", "val"):
        write(tmp_path / "p" / name / "0.png")
        (tmp_path / "p" / name / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    with pytest.raises(ValueError, match="holds the splits Train, val"):
        image_folder(tmp_path / "p", LOOK)


NAMES = {
    "train": ["train", "Train", "TRAIN", "train2017", "seg_train", "trainA", "my-train-set"],
    "test": ["test", "images_test", "Test01"],
    "val": ["val2017"],
    "": ["cat", "trainer", "station", "contest", "2017", "größe"],
}


def test_names_of_splits_hold_a_word_that_names_one():
    for word, names in NAMES.items():
        assert [split_word(name) for name in names] == [word] * len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat", "test/cat", "extra/cat"),  # beside something else
        ("data/train/cat", "data/test/cat"),  # in a folder of their own
        ("seg_train/cat", "seg_val/cat"),
        ("train2017", "val2017"),  # pictures alone
    ],
)
def test_splits_are_found_wherever_they_lie(tmp_path, names):
    for value, name in enumerate(names):
        write(tmp_path / name / f"{value}.png", value)
    found = find_splits(tmp_path, find_pictures(tmp_path))
    wanted = [(tmp_path / name).relative_to(tmp_path).as_posix() for name in names[:2]]
    tops = [w.removesuffix("/cat") for w in wanted]
    assert [path.relative_to(tmp_path).as_posix() for path in found.values()] == tops
    with pytest.raises(ValueError, match="which would be mixed") as caught:
        image_folder(tmp_path, LOOK)
    assert f'path = "{tmp_path / tops[0]}" and test = "{tmp_path / tops[1]}"' in str(caught.value)


@pytest.mark.parametrize("how", ["captions", "tables"])
def test_captions_and_tables_make_folders_splits(tmp_path, how):
    for value, name in enumerate(("train/0", "test/1", "car/2")):
        write(tmp_path / f"{name}.png", value)
        if how == "captions":
            (tmp_path / f"{name}.txt").write_text("x")
        else:
            lines = f"file_name,text\n{value}.png,x\n"
            (tmp_path / name).with_name("metadata.csv").write_text(lines)
    with pytest.raises(ValueError, match="holds the splits train, test"):
        image_folder(tmp_path, LOOK)


def test_splits_inside_class_folders_are_refused(tmp_path):
    for value, name in enumerate(("cat/train", "cat/test", "dog/train", "dog/test")):
        write(tmp_path / name / f"{value}.png", value)
    with pytest.raises(ValueError, match="'cat/train' and 'cat/test' are splits inside a folder"):
        image_folder(tmp_path, LOOK)


@pytest.mark.parametrize("names", [("train/x", "car/x"), ("train", "test", "car"), ("train",)])
def test_classes_called_like_splits_are_no_splits(tmp_path, names):
    for value, name in enumerate(names):
        write(tmp_path / "p" / name / f"{value}.png", value)
    assert not find_splits(tmp_path / "p", find_pictures(tmp_path / "p"))


def test_splits_are_not_looked_for_below_several_folders(tmp_path):
    names = [f"{a}/{b}/{part}" for a, b in ("ab", "ba") for part in ("train/x", "test/x")]
    for value, name in enumerate(names):
        write(tmp_path / name / f"{value}.png", value)
    assert find_splits(tmp_path, find_pictures(tmp_path)) == {}
    only = tmp_path / "a"  # below one folder they are
    assert list(find_splits(only, find_pictures(only))) == ["train", "test"]


def test_folders_of_splits_alone_are_classes_where_that_is_stated(tmp_path):
    for value, name in enumerate(("train", "test")):
        write(tmp_path / name / f"{value}.png", value)
    with pytest.raises(ValueError, match=r'state data.classes = \["test", "train"\]$'):
        image_folder(tmp_path, LOOK)
    stated = labelled(tmp_path, classes=("test", "train"))
    assert stated == (("test", "train"), {0: 1, 1: 0})


def test_a_table_in_a_folder_below_is_not_passed_over(tmp_path):
    write(tmp_path / "p" / "train" / "0.png")
    (tmp_path / "p" / "train" / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    with pytest.raises(ValueError, match=f'give that folder .path = "{tmp_path}/p/train".'):
        image_folder(tmp_path / "p", LOOK)
    assert captions(tmp_path / "p" / "train") == ["a"]


def test_a_recipe_is_proposed_for_splits(photos, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    photos.rename(whole / "train")
    for value, name in ((8, "cat"), (9, "dog")):
        write(whole / "test" / name / f"{value}.png", value)
    text, _ = propose(whole, name="pets", steps=4)
    (tmp_path / "r.toml").write_text(text)
    data = recipes.read_recipe(tmp_path / "r.toml").data
    assert (data.path, data.test) == (str(whole / "train"), str(whole / "test"))
    assert "holdout" not in text


def table(folder, text, name="metadata.csv", encoding="utf-8"):
    for value in range(2):
        write(folder / "a" / f"{value}.png", value)
    (folder / name).write_text(text, encoding=encoding)
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_have_commas_semicolons_or_tabs_and_a_mark_at_the_start(tmp_path, mark, encoding):
    rows = [["file_name", "text"], ["a/0.png", "größe"], ["a/1.png", '"x, y; z"']]
    text = "\r\n".join(mark.join(row) for row in rows)
    assert captions(table(tmp_path / "p", text, encoding=encoding)) == ["größe", "x, y; z"]


def test_a_line_table_may_have_a_mark_at_its_start(tmp_path):
    text = '{"file_name": "a/0.png", "text": "x"}\n\n{"file_name": "a/1.png", "text": "y"}\n'
    folder = table(tmp_path / "p", text, "metadata.jsonl", "utf-8-sig")
    assert captions(folder) == ["x", "y"]


@pytest.mark.parametrize("word", ["NA", "None", "null", "nan", "N/A", "True"])
def test_words_for_nothing_stay_words(tmp_path, word):
    text = f"file_name,text\na/0.png,{word}\na/1.png,x\n"
    assert captions(table(tmp_path / "p", text)) == [word, "x"]


def test_numbers_that_are_stated_to_be_captions_stay_as_written(tmp_path):
    folder = table(tmp_path / "p", "file_name,text\na/0.png,007\na/1.png,1.50\n")
    assert captions(folder, columns={"text": "text"}) == ["007", "1.50"]
    assert image_folder(folder, LOOK).columns["text"].kind == "vector"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_keep_their_lines(tmp_path, kind):
    text = "a\u2028b\x85c\n\nd"
    rows = [{"file_name": f"a/{i}.png", "text": text + str(i)} for i in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if kind == "csv":
        lines = ["file_name,text", "", *(f'{r["file_name"]},"{r["text"]}"' for r in rows)]
    folder = table(tmp_path / "p", "\n".join(lines), f"metadata.{kind}")
    assert captions(folder) == [f"{text}0", f"{text}1"]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_lines_of_a_table_may_end_in_other_ways(tmp_path, end):
    lines = ["file_name;text", "a/0.png;x, y", "a/1.png;z", ""]
    assert captions(table(tmp_path / "p", end.join(lines))) == ["x, y", "z"]


def test_names_that_are_not_utf8_are_refused(photos):
    os.rename(os.fsencode(photos / "cat"), os.fsencode(photos) + b"/c\xff")
    with pytest.raises(ValueError, match=r"the name 'c\\udcff/0.png' is not UTF-8; rename it$"):
        image_folder(photos, LOOK)


def test_links_that_lead_nowhere_are_refused(photos):
    (photos / "bird").symlink_to(photos / "gone")
    with pytest.raises(ValueError, match="the link 'bird' leads nowhere"):
        image_folder(photos, LOOK)
    (photos / "bird").unlink()
    (photos / "bird").symlink_to(photos / "bird")  # to itself
    with pytest.raises(ValueError, match="the link 'bird' leads nowhere"):
        image_folder(photos, LOOK)


def test_pictures_whose_link_leads_nowhere_are_bad_ones(photos, tmp_path):
    (photos / "cat" / "3.png").symlink_to(tmp_path / "gone.png")
    for folder, size in ((photos, 3), (photos / "cat", 2)):
        for cache in (None, tmp_path / "cache"):
            with pytest.raises(Damaged, match=r"cannot read the image .*/cat/3\.png"):
                image_folder(folder, LOOK, cache=cache)
            assert image_folder(folder, LOOK, max_bad=1, cache=cache).size == size


@pytest.mark.parametrize("value", [[1.0, None], ["x", None]])
def test_nulls_in_lists_are_refused(tmp_path, value):
    whole = [value[0], value[0]]
    rows = [{"file_name": f"a/{i}.png", "v": v} for i, v in enumerate((whole, value))]
    folder = table(tmp_path / "p", "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    with pytest.raises(ValueError, match="row 1 of 'v' holds a null"):
        image_folder(folder, LOOK)


def test_a_column_may_not_be_called_as_the_pictures_are(tmp_path):
    with pytest.raises(ValueError, match='a column cannot be called "image"'):
        image_folder(table(tmp_path / "p", "file_name,image\na/0.png,x\na/1.png,y\n"), LOOK)


def test_a_column_without_pictures_is_named(tmp_path):
    datasets.Dataset.from_dict({"image": [1, 2]}).to_parquet(tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="column 'image' holds no encoded pictures, but int64"):
        parquet(tmp_path / "0.parquet", LOOK)


@pytest.mark.parametrize("name", ["./a/{}.png", "a\\{}.png", ".\\a\\{}.png", "a/./{}.png"])
def test_names_may_be_written_in_several_ways(tmp_path, name):
    rows = "".join(f"{name.format(i)},{'xy'[i]}\n" for i in range(2))
    assert captions(table(tmp_path / "p", "file_name,text\n" + rows)) == ["x", "y"]


WRONG_TABLES = [
    ("file,text\na/0.png,x\n", "has no column file_name, but file, text; add it"),
    ("file_name,text\na/0.png,x\na/0.png,y\na/1.png,z\n", "names 'a/0.png' twice"),
    ("file_name,text\na/0.png,x, y\na/1.png,z\n", "row 1 has 3 cells for 2 columns; put text"),
    ("file_name,text\na/0.png,\na/1.png,z\n", "row 0 has no 'text'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_TABLES)
def test_tables_that_do_not_fit_are_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        image_folder(table(tmp_path / "p", text), LOOK)
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding_is_named(tmp_path):
    folder = table(tmp_path / "p", "")
    (folder / "metadata.csv").write_bytes("file_name,text\na/0.png,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv: not UTF-8 \(byte 25\); save it as UTF-8"):
        image_folder(folder, LOOK)


def test_a_damaged_parquet_table_is_named(tmp_path):
    folder = table(tmp_path / "p", "nonsense", "metadata.parquet")
    with pytest.raises(ValueError, match=r"metadata\.parquet: not readable as parquet"):
        image_folder(folder, LOOK)


def test_captions_lie_beside_their_pictures(tmp_path):
    for value in range(3):
        write(tmp_path / "p" / f"{value}.png", value)
        (tmp_path / "p" / f"{value}.txt").write_text(f"  picture {value}\n", encoding="utf-8-sig")
    (tmp_path / "p" / "README.txt").write_text("about")
    assert captions(tmp_path / "p") == ["picture 0", "picture 1", "picture 2"]
    assert "label" not in image_folder(tmp_path / "p", LOOK).columns


def test_captions_beside_pictures_go_with_class_folders(photos):
    for name, text in (("cat/0", "a"), ("cat/1", "b"), ("dog/2", "c")):
        (photos / f"{name}.txt").write_text(text)
    assert captions(photos) == ["a", "b", "c"]
    assert labelled(photos) == (("cat", "dog"), {0: 0, 1: 0, 2: 1})


def test_captions_for_some_pictures_only_are_refused(photos):
    (photos / "cat" / "0.txt").write_text("a")
    with pytest.raises(
        ValueError, match=r"1 of 3 images have a caption .* but 'cat/1.png' has none"
    ):
        image_folder(photos, LOOK)


def test_an_empty_caption_is_named(photos):
    for name in ("cat/0", "cat/1", "dog/2"):
        (photos / f"{name}.txt").write_text(" \n" if name == "cat/1" else "x")
    with pytest.raises(ValueError, match="row 1 has no 'text'"):
        image_folder(photos, LOOK)


def parquet_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": [image]}, features=features).to_parquet(path)


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.parquet", "test-0.parquet"),
        ("train/0.parquet", "validation/0.parquet"),
        ("pets-train-0.parquet", "pets-test-0.parquet"),
        ("a/train/0.parquet", "b/test/0.parquet"),
    ],
)
def test_parquet_files_of_several_splits_are_refused(tmp_path, names):
    for name in names:
        parquet_file(tmp_path / "d" / name)
    with pytest.raises(
        ValueError, match="which would be mixed; give the one to train on: path = "
    ) as caught:
        parquet(tmp_path / "d", LOOK)
    proposed = str(caught.value).rpartition('path = "')[2].rstrip('"')
    assert parquet(proposed, LOOK).size == 1


def test_shards_of_several_splits_are_refused(tmp_path):
    for name in ("train-000.tar", "test-000.tar"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r'path = ".*/train\*\.tar"'):
        Shards(tmp_path, LOOK)


def shard(folder, suffix, **beside):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(file, "TIFF" if "if" in suffix else "PNG")
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for kind, content in {suffix: file.getvalue(), **beside}.items():
            entry = tarfile.TarInfo(f"a.{kind}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("suffix", ["PNG", "tif"])
def test_shards_hold_pictures_of_any_kind(tmp_path, suffix):
    x, _ = Shards(shard(tmp_path / "s", suffix), LOOK).batch([0], Draw([0]))
    torch.testing.assert_close(x, torch.full((1, 3, 8, 8), 51 / 127.5 - 1))


def test_marks_at_the_start_are_no_part_of_names_and_captions(tmp_path):
    folder = shard(tmp_path / "s", "png", txt="\ufeffa cat\n".encode(), cls=b"0")
    (folder / "classes.txt").write_text("cat\n\ndog\n", encoding="utf-8-sig")
    source = Shards(folder, LOOK)
    assert source.columns["label"].classes == ("cat", "dog")
    assert source.batch([0], Draw([0]))[1]["caption"] == ["a cat"]
    (folder / "classes.txt").write_bytes(b"c\xe4t\n")
    with pytest.raises(ValueError, match=r"classes\.txt: not UTF-8"):
        Shards(folder, LOOK)


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"nonsense" * 100)
    with pytest.raises(Damaged, match=r"0\.tar: not readable as webdataset"):
        Shards(tmp_path, LOOK)


def test_the_recipe_for_captions_trains(tmp_path, capsys):
    folder = tmp_path / 'p "q"'
    for value in range(24):
        write(folder / f"{value}.png", value * 10)
        (folder / f"{value}.txt").write_text(f"grey number {value}")
    text, found = propose(folder, name="greys", steps=3)
    assert "columns: text (text)" in found and "PATH" not in text
    (tmp_path / "r.toml").write_text(text)
    recipe = recipes.read_recipe(tmp_path / "r.toml")
    assert recipe.data.path == str(folder) and recipe.conditions["text"].encoder == "clip"
    with pytest.raises(SystemExit) as done:
        main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--dry-run"])
    assert done.value.code == 0, capsys.readouterr().err


def test_pictures_are_found_by_any_case_of_their_suffix(tmp_path):
    write(tmp_path / "a.PNG")
    assert [f.name for f in find_pictures(tmp_path)] == ["a.PNG"]
    assert os.fspath(tmp_path / "a.PNG") == str(find_pictures(tmp_path)[0])


def test_flips_are_from_left_to_right():
    pixels = torch.tensor([[[[0, 255], [10, 20]]]], dtype=torch.uint8).expand(64, 1, 2, 2)
    draw = Draw(range(64))
    x = prepare_pictures(pixels, PictureFormat(size=2, flip=True), draw)
    flipped = draw.uniform("flip") < 0.5
    assert 0 < flipped.sum() < 64
    for value, wanted in ((True, [[255, 0], [20, 10]]), (False, [[0, 255], [10, 20]])):
        rows = ((x[flipped == value] + 1) * 127.5).round()
        assert torch.equal(rows, torch.tensor([[wanted]]).expand_as(rows).float())


def test_each_of_several_captions_is_drawn_by_its_share():
    draw = Draw(range(300))
    drawn = pick({"text": [("a", "b", "c")] * 300}, range(300), draw)["text"]
    u = draw.uniform("caption").tolist()
    assert drawn == ["a" if v < 1 / 3 else "b" if v < 2 / 3 else "c" for v in u]
    assert min(drawn.count(c) for c in "abc") > 70
