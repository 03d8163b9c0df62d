"""Data of one's own: every layout reads to the pixel, and every mistake is one clear line before
any training.
"""

import csv
import gc
import io
import json
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from guidestar.core.rng import Draw
from guidestar.data import folders
from guidestar.data.folders import image_folder, parquet
from guidestar.data.latents import latents
from guidestar.data.pictures import PictureFormat
from guidestar.data.shards import Shards
from guidestar.data.source import Column, InMemory, split
from guidestar.data.tensors import Standardised, Standardiser, tensors
from guidestar.train.loop.fit import fit
from guidestar.train.loop.trainer import Trainer
from guidestar.train.objectives.objective import Objective, TrainSettings

LOOK = PictureFormat(size=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def picture(seed, size=(8, 8), mode="RGB"):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return np.random.default_rng(seed).integers(
        0, 256, (size[1], size[0], *channels), dtype=np.uint8
    )


def write(path, seed=0, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture(seed, **more)
    Image.fromarray(pixels).save(path)
    return pixels


def batch(source, rows):
    return source.batch(rows, Draw(list(rows)))


def as_x(pixels):
    return torch.from_numpy(pixels).movedim(-1, 0).float() / 127.5 - 1


@pytest.fixture
def classes(tmp_path):
    folder = tmp_path / "photos"
    pixels = {
        (name, i): write(folder / name / f"{i}.png", seed)
        for seed, (name, i) in enumerate((n, i) for n in ("cat", "dog") for i in range(3))
    }
    return folder, pixels


def test_sub_folders_are_classes_and_pixels_are_exact(classes):
    folder, pixels = classes
    source = image_folder(folder, LOOK)
    assert source.shape == (3, 8, 8) and source.size == 6
    assert source.columns == {"label": Column(kind="class", classes=("cat", "dog"))}
    x, targets = batch(source, [0, 2, 4])
    assert targets["label"].tolist() == [0, 0, 1]
    for found, key in zip(x, [("cat", 0), ("cat", 2), ("dog", 1)], strict=True):
        assert torch.equal(found, as_x(pixels[key]))


def test_grey_pictures_stay_grey_unless_asked(tmp_path):
    pixels = write(tmp_path / "p" / "a" / "0.png", mode="L")
    grey, colour = (
        image_folder(tmp_path / "p", LOOK),
        image_folder(tmp_path / "p", PictureFormat(size=8, channels=3)),
    )
    assert torch.equal(batch(grey, [0])[0][0, 0], torch.from_numpy(pixels).float() / 127.5 - 1)
    assert colour.shape == (3, 8, 8) and torch.equal(
        batch(colour, [0])[0][0, 2], batch(grey, [0])[0][0, 0]
    )


def test_transparency_is_laid_on_white(tmp_path):
    pixels = write(tmp_path / "p" / "a" / "0.png", mode="RGBA").astype(float)
    share = pixels[..., 3:] / 255
    wanted = pixels[..., :3] * share + 255 * (1 - share)
    found = (batch(image_folder(tmp_path / "p", LOOK), [0])[0][0].movedim(0, -1) + 1) * 127.5
    assert np.abs(found.numpy() - wanted).max() <= 1


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    folder = tmp_path / "p" / "a"
    folder.mkdir(parents=True)
    pixels, exif = picture(0), Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    Image.fromarray(pixels).save(folder / "0.png", exif=exif)
    assert torch.equal(
        batch(image_folder(tmp_path / "p", LOOK), [0])[0][0], as_x(np.rot90(pixels, -1).copy())
    )


def test_other_sizes_are_resized_by_the_shorter_side_and_cut_in_the_middle(tmp_path):
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = picture(1)  # only the middle is kept
    (tmp_path / "p" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "p" / "a" / "0.png")
    assert torch.equal(
        batch(image_folder(tmp_path / "p", LOOK), [0])[0][0], as_x(pixels[:, 8:16].copy())
    )


def test_random_crops_lie_where_the_draw_says(tmp_path):
    pixels = as_x(write(tmp_path / "p" / "a" / "0.png", size=(9, 9)))
    source = image_folder(tmp_path / "p", PictureFormat(size=8, crop="random"))  # kept at 9
    draw, seen = Draw(range(40)), set()
    x, _ = source.batch([0] * 40, draw)
    for found, u, v in zip(
        x, draw.uniform("down").tolist(), draw.uniform("right").tolist(), strict=True
    ):
        down, right = int(u * 2), int(v * 2)
        seen.add((down, right))
        assert torch.equal(found, pixels[:, down : down + 8, right : right + 8])
    assert len(seen) == 4


def test_flips_depend_on_the_seed_alone(classes):
    source, plain = (
        image_folder(classes[0], PictureFormat(size=8, flip=flip)) for flip in (True, False)
    )
    x, draw = batch(plain, range(6))[0], Draw(range(6))
    wanted = torch.stack(
        [
            image.flip(-1) if u < 0.5 else image
            for image, u in zip(x, draw.uniform("flip").tolist(), strict=True)
        ]
    )
    assert torch.equal(batch(source, range(6))[0], wanted)
    assert torch.equal(batch(source, [4])[0][0], wanted[4])


def jsonl(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_captions_and_numbers_come_from_metadata(tmp_path):
    folder = tmp_path / "p"
    for i in range(3):
        write(folder / f"{i}.png", i)
    jsonl(
        folder,
        [
            {
                "file_name": f"{i}.png",
                "text": f"picture {i}",
                "pose": [i, 0.5],
                "age": i,
                "kind": "ab"[i % 2],
            }
            for i in range(3)
        ],
    )
    source = image_folder(folder, LOOK)
    assert (
        source.columns["text"].kind == "text"
        and source.columns["pose"] == Column(kind="vector", width=2)
        and source.columns["age"].width == 1
    )
    _, targets = batch(source, [2, 0])
    assert (
        targets["text"] == ["picture 2", "picture 0"]
        and targets["pose"].tolist() == [[2.0, 0.5], [0.0, 0.5]]
        and targets["age"].tolist() == [[2.0], [0.0]]
    )
    stated = image_folder(
        folder, LOOK, columns={"kind": "class", "age": "class"}, classes=["young", "old", "older"]
    )
    assert (
        stated.columns["kind"].classes == ("a", "b")
        and stated.columns["age"].classes == ("young", "old", "older")
        and "text" not in stated.columns
    )
    assert batch(stated, [1])[1]["kind"].tolist() == [1]


def test_metadata_may_be_csv(tmp_path):
    folder = tmp_path / "p"
    write(folder / "0.png")
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["0.png", "a, b"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the reader of CSV files leaves one open
        assert batch(image_folder(folder, LOOK), [0])[1]["text"] == ["a, b"]
        gc.collect()


def spoilt(folder, how):
    """Spoil a folder of three pictures and a caption for each."""
    rows = [{"file_name": f"{i}.png", "text": "t", "n": [1, 2]} for i in range(3)]
    for i in range(3):
        write(folder / f"{i}.png", i)
    if how == "missing":
        rows += [{"file_name": "9.png", "text": "t", "n": [1, 2]}] * 2
    if how == "unnamed":
        rows = rows[:2]
    if how == "nameless":
        del rows[1]["file_name"]
    if how == "list":
        rows[2]["n"] = [1, 2, 3]
    if how == "not finite":
        rows[2]["n"] = [1.0, float("nan")]
    if how == "empty caption":
        rows[1]["text"] = None
    jsonl(folder, rows)
    if how == "not json":
        (folder / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{nonsense\n')


@pytest.mark.parametrize(
    ("how", "columns", "message"),
    [
        (
            "missing",
            None,
            r"metadata.jsonl: names images that are missing: '9.png' and 1 more; add them",
        ),
        (
            "unnamed",
            None,
            r"metadata.jsonl: has no row for '2.png'; add rows, or remove the images$",
        ),
        ("nameless", None, r"metadata.jsonl: row 2 has no file_name; give the picture"),
        ("not json", None, r"metadata.jsonl: line 2 is not JSON"),
        ("list", None, r"row 2 of 'n' must hold 2 numbers$"),
        ("empty caption", None, r"row 1 has no 'text'; give a value, or remove the row$"),
        (
            "not finite",
            None,
            r"row 2 of 'n' holds numbers that are not finite; correct or remove them$",
        ),
        (
            "none",
            {"txet": "text"},
            r"there is no column 'txet'; the columns are text, n; correct data.columns$",
        ),
        ("none", {"n": "class"}, r"the column 'n' is not a class: its first value is '\[1, 2\]'"),
        ("none", {"text": "vector"}, r"the column 'text' is not a vector: its first value is 't'"),
        ("none", {"n": "text"}, r"the column 'n' is not a text"),
    ],
)
def test_metadata_that_do_not_fit_are_one_line(tmp_path, how, columns, message):
    spoilt(tmp_path / "p", how)
    with pytest.raises(ValueError, match=message) as caught:
        image_folder(tmp_path / "p", LOOK, columns=columns)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_nothing_are_one_line(tmp_path, classes):
    (tmp_path / "empty").mkdir()
    for folder, message in [
        (tmp_path / "none", "there is no such folder; check data.path$"),
        (tmp_path / "empty", "holds no images; check data"),
    ]:
        with pytest.raises(FileNotFoundError, match=message):
            image_folder(folder, LOOK)
    (classes[0] / "bird").mkdir()
    with pytest.raises(
        ValueError, match=r"the class folder 'bird' holds no images; fill or remove it$"
    ):
        image_folder(classes[0], LOOK)


def test_classes_may_be_called_train_and_test(tmp_path):
    pixels = {
        n: write(tmp_path / "vehicles" / n / "0.png", i)
        for i, n in enumerate(("car", "test", "train", "val"))
    }
    source = image_folder(tmp_path / "vehicles", LOOK)
    x, targets = batch(source, range(4))
    assert source.columns["label"].classes == ("car", "test", "train", "val") and sorted(
        targets["label"].tolist()
    ) == [0, 1, 2, 3]
    assert all(
        torch.equal(image, as_x(pixels[source.columns["label"].classes[k]]))
        for image, k in zip(x, targets["label"].tolist(), strict=True)
    )


def test_pictures_beside_class_folders_are_refused(classes):
    write(classes[0] / "cover.png")
    with pytest.raises(
        ValueError,
        match=r"'cover.png' and 'dog/2.png' lie at different depths, so that folders cannot be "
        r"classes; move one of them$",
    ):
        image_folder(classes[0], LOOK)


def test_stated_classes_give_the_order_and_must_hold_all_that_are_found(classes):
    source = image_folder(classes[0], LOOK, classes=["dog", "bird", "cat"])
    assert source.columns["label"].classes == ("dog", "bird", "cat") and batch(source, [0, 4])[1][
        "label"
    ].tolist() == [2, 0]
    with pytest.raises(
        ValueError,
        match=r"'label' holds the class 'dog', which is not one of cat, bird; add it to data",
    ):
        image_folder(classes[0], LOOK, classes=["cat", "bird"])


def test_a_test_folder_of_some_classes_keeps_their_indices(classes, tmp_path):
    from guidestar.train.build.data import sources
    from guidestar.train.recipe.schema import Data, NetworkPart, Recipe, Training

    write(tmp_path / "other" / "dog" / "0.png")
    write(tmp_path / "other" / "dog2" / "0.png")
    recipe = Recipe(
        name="r",
        data=Data(path=str(classes[0]), size=8, test=str(tmp_path / "other")),
        model=NetworkPart(widths=(8,), head=8, train=Training(steps=1)),
    )
    with pytest.raises(ValueError, match=r"holds the class 'dog2'"):
        sources(recipe)
    (tmp_path / "other" / "dog2").rename(tmp_path / "other" / "cat")
    train, test = sources(recipe)
    assert test.columns == train.columns and sorted(batch(test, [0, 1])[1]["label"].tolist()) == [
        0,
        1,
    ]


def test_bad_pictures_are_named_and_skipped_up_to_a_number(classes):
    folder, pixels = classes
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "0.png").write_bytes(b"<html>404</html>")
    said = []
    source = image_folder(folder, LOOK, max_bad=2, say=said.append)
    assert source.size == 4 and len(said) == 2 and "cat/1.png" in said[0] and "dog/0.png" in said[1]
    x, targets = batch(source, range(4))
    assert targets["label"].tolist() == [0, 0, 1, 1] and torch.equal(
        x[1], as_x(pixels["cat", 2])
    )  # labels keep to their pictures
    with pytest.raises(
        ValueError,
        match=r"cannot read the image [^\n]*dog/0.png[^\n]*, after [^\n]*cat/1.png; replace or "
        r"remove it, or raise data.max_bad \(now 1\)$",
    ):
        image_folder(folder, LOOK, max_bad=1)


def test_decoded_pictures_are_kept_and_made_anew_when_files_change(classes, tmp_path, monkeypatch):
    folder, _ = classes
    cache = tmp_path / "cache"
    first = batch(image_folder(folder, LOOK, cache=cache), range(6))[0].clone()
    assert torch.equal(first, batch(image_folder(folder, LOOK), range(6))[0])
    with monkeypatch.context() as patch:
        patch.setattr("guidestar.data.pictures.decode", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(batch(image_folder(folder, LOOK, cache=cache), range(6))[0], first)
    changed = write(folder / "cat" / "0.png", 99)
    assert torch.equal(batch(image_folder(folder, LOOK, cache=cache), [0])[0][0], as_x(changed))
    assert not list(cache.glob("*.writing"))


def test_a_cache_that_was_cut_short_is_not_used(classes, tmp_path, monkeypatch):
    folder, cache = classes[0], tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(
            "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            image_folder(folder, LOOK, cache=cache)
    assert list(cache.iterdir()) == []
    assert image_folder(folder, LOOK, cache=cache).size == 6


def test_parquet_holds_encoded_pictures(tmp_path):
    import datasets

    pixels = [picture(i) for i in range(3)]
    table = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in pixels], "text": ["a", "b", "c"]},
        features=datasets.Features(image=datasets.Image(), text=datasets.Value("string")),
    )
    table.to_parquet(tmp_path / "d.parquet")
    source = parquet(tmp_path, LOOK)
    x, targets = batch(source, [2, 0])
    assert torch.equal(x[0], as_x(pixels[2])) and targets["text"] == ["c", "a"]
    holed = datasets.Dataset.from_dict(
        {"image": [None, Image.fromarray(pixels[1])]},
        features=datasets.Features(image=datasets.Image()),
    )
    (tmp_path / "holed").mkdir()
    holed.to_parquet(tmp_path / "holed" / "d.parquet")
    said = []
    assert (
        torch.equal(
            batch(parquet(tmp_path / "holed", LOOK, max_bad=1, say=said.append), [0])[0][0],
            as_x(pixels[1]),
        )
        and "row 0 (it is empty)" in said[0]
    )
    with pytest.raises(ValueError, match=r"there is no column 'img'; the columns are image, text$"):
        parquet(tmp_path, LOOK, image="img")
    with pytest.raises(FileNotFoundError, match=r"there is no \.parquet file; check data"):
        parquet(tmp_path / "none", LOOK)


# --- streams ---


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, pixels, label in samples:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            for suffix, data in (
                ("png", stream.getvalue()),
                ("cls", str(label).encode()),
                ("txt", f"number {key}".encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for n in range(2):
        shard(folder / f"{n}.tar", [(f"{n}{i}", picture(10 * n + i), i % 3) for i in range(5)])
    (folder / "classes.txt").write_text("a\nb\nc\n")
    return folder


def test_a_stream_gives_the_same_sample_at_the_same_position(shards):
    one = Shards(shards, LOOK, buffer=4, seed=3)
    assert one.size is None and one.shape == (3, 8, 8)
    assert one.columns == {
        "label": Column(kind="class", classes=("a", "b", "c")),
        "caption": Column(kind="text"),
    }
    walked = [batch(one, [3 * i, 3 * i + 1, 3 * i + 2]) for i in range(8)]  # over two passes of ten
    captions = [c for _, t in walked for c in t["caption"]]
    assert (
        sorted(captions[:10])
        == sorted(captions[10:20])
        == sorted(f"number {n}{i}" for n in range(2) for i in range(5))
    )
    assert captions[:10] != captions[10:20]
    for x, targets in walked:
        for image, caption, label in zip(
            x, targets["caption"], targets["label"].tolist(), strict=True
        ):
            n, i = map(int, caption.removeprefix("number "))
            assert torch.equal(image, as_x(picture(10 * n + i))) and label == i % 3
    resumed = batch(Shards(shards, LOOK, buffer=4, seed=3), [15, 16, 17])
    assert resumed[1]["caption"] == captions[15:18]
    assert batch(one, [2, 5])[1]["caption"] == [
        captions[2],
        captions[5],
    ]  # back to an earlier position
    processes = [Shards(shards, LOOK, buffer=4, seed=3) for _ in range(2)]
    taken = [
        [c for i in range(0, 12, 4) for c in batch(p, [i + r, i + r + 2])[1]["caption"]]
        for r, p in enumerate(processes)
    ]
    assert sorted(c for one in taken for c in one) == sorted(captions[:12])
    other = [
        c
        for i in range(3)
        for c in batch(Shards(shards, LOOK, buffer=4, seed=4), [3 * i, 3 * i + 1, 3 * i + 2])[1][
            "caption"
        ]
    ]
    assert other != captions[:9]


def test_each_pass_is_mixed_by_the_next_seed(shards):
    """By the reader's own shuffling, seeded by the seed plus the number of the pass."""
    import datasets

    files = [str(shards / f"{n}.tar") for n in range(2)]
    whole = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    wanted = [
        s["txt"] if isinstance(s["txt"], str) else bytes(s["txt"]).decode()
        for epoch in range(3)
        for s in whole.shuffle(seed=3 + epoch, buffer_size=4)
    ]
    assert batch(Shards(shards, LOOK, buffer=4, seed=3), range(30))[1]["caption"] == wanted
    plain = batch(Shards(shards, LOOK, buffer=1), range(20))[1]["caption"]
    assert plain == [f"number {n}{i}" for n in range(2) for i in range(5)] * 2


def test_a_stream_is_walked_once_where_positions_rise(shards):
    source, starts = Shards(shards, LOOK, buffer=1), []
    endless = source._endless
    source._endless = lambda: starts.append(1) or endless()
    for rows, count in (([0, 1], 1), ([2], 1), ([5, 6], 1), ([6], 2), ([7], 2), ([0], 3)):
        caption = batch(source, rows)[1]["caption"]
        assert caption == [f"number {r // 5}{r % 5}" for r in rows] and len(starts) == count


def spoil(tar, key):
    """Overwrite the middle of one picture in a shard."""
    with tarfile.open(tar) as file:
        member = file.getmember(f"{key}.png")
    content = bytearray(tar.read_bytes())
    content[member.offset_data : member.offset_data + member.size] = b"x" * member.size
    tar.write_bytes(content)


def test_bad_pictures_of_a_stream_are_named_and_no_other_moves(shards):
    whole = batch(Shards(shards, LOOK, buffer=4, seed=3), range(20))
    spoil(shards / "0.tar", "00")
    spoil(shards / "1.tar", "13")
    said = []
    source = Shards(shards, LOOK, buffer=4, seed=3, max_bad=2, say=said.append)
    x, targets = batch(source, range(20))  # two passes
    assert len(said) == 2 and "'00'" in "".join(said) and "'13'" in "".join(said)
    for i, caption in enumerate(whole[1]["caption"]):
        if caption in ("number 00", "number 13"):  # the first readable one, with its own label
            assert (
                targets["caption"][i] == "number 01"
                and int(targets["label"][i]) == 1
                and torch.equal(x[i], as_x(picture(1)))
            )
        else:
            assert targets["caption"][i] == caption and torch.equal(x[i], whole[0][i])
    for process in range(2):  # whoever looks
        rows = list(range(process, 20, 2))
        assert batch(Shards(shards, LOOK, buffer=4, seed=3, max_bad=2), rows)[1]["caption"] == [
            targets["caption"][r] for r in rows
        ]
    with pytest.raises(
        ValueError,
        match=r"cannot read the image of '(00|13)' [^\n]*; replace or remove it, or raise "
        r"data.max_bad \(now 1\)$",
    ):
        batch(Shards(shards, LOOK, buffer=4, seed=3, max_bad=1), range(20))


def test_a_training_on_a_stream_resumes_at_its_position(shards, tmp_path):
    """Stopped and resumed, it sees the samples of one that was not, and ends with the same
    weights.
    """

    class Error(Objective):
        def __call__(self, net, x0, target, draw):
            seen.append(sorted(target["caption"]))
            return (net(x0.flatten(1)) - target["label"][:, None]).square().mean(1)

    def trainer():
        torch.manual_seed(0)
        return Trainer(
            torch.nn.Linear(192, 1),
            Error(),
            Shards(shards, LOOK, buffer=4, seed=3),
            TrainSettings(steps=8, batch=3, accumulate=2, warmup=1),
        )

    ends = []
    for stops in ((), (3, 5)):
        seen, path = [], tmp_path / f"{len(stops)}.pt"
        for stop in stops:
            steps = fit(trainer(), path)
            for progress in steps:
                if progress.step == stop:
                    steps.close()
        last = trainer()
        list(fit(last, path))
        ends.append((seen, last.module.weight.detach().clone()))
    assert (
        ends[0][0] == ends[1][0] and len(ends[0][0]) == 16 and torch.equal(ends[0][1], ends[1][1])
    )


def test_streams_without_names_or_pictures_are_refused(shards, tmp_path):
    (shards / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"holds classes without names; give them as data.classes"):
        Shards(shards, LOOK)
    with pytest.raises(FileNotFoundError, match=r"there is no \.tar file; check data"):
        Shards(tmp_path / "none", LOOK)
    with pytest.raises(
        ValueError,
        match=r"'02' has the class 2, but there are 2 names; correct it, or name all classes in "
        r"classes.txt$",
    ):
        batch(Shards(shards, LOOK, classes=["a", "b"], buffer=1), [0, 1, 2])


# --- tensors ---


def held(tmp_path, **more):
    x = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))
    content = {
        "x": x,
        "activity": torch.tensor([0, 1, 2, 0, 1, 2]),
        "speed": torch.arange(6) / 2.0,
        **more,
    }
    save_file(
        {k: v for k, v in content.items() if v is not None},
        tmp_path / "d.safetensors",
        {"classes": json.dumps({"activity": ["sit", "walk", "run"]})},
    )
    return tmp_path / "d.safetensors", x


def test_tensors_read_with_their_columns(tmp_path):
    path, x = held(tmp_path)
    source = tensors(path)
    assert source.columns == {
        "activity": Column(kind="class", classes=("sit", "walk", "run")),
        "speed": Column(kind="vector", width=1),
    }
    found, targets = batch(source, [5, 1])
    assert (
        torch.equal(found, x[[5, 1]])
        and targets["activity"].tolist() == [2, 1]
        and targets["speed"].tolist() == [[2.5], [0.5]]
    )
    assert list(tensors(path, columns={"speed": "vector"}).columns) == ["speed"]


def test_numpy_arrays_read_alone_and_with_columns(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3))
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "x.npy", x)
    assert tensors(tmp_path / "f" / "x.npy").columns == {}
    np.save(tmp_path / "f" / "label.npy", np.array([0, 1, 1, 0]))
    source = tensors(tmp_path / "f", classes=["no", "yes"])
    assert (
        source.shape == (3,)
        and source.columns["label"].classes == ("no", "yes")
        and torch.equal(batch(source, [3])[0][0], torch.from_numpy(x[3]).float())
    )


def nan_row(x):
    x = x.clone()
    x[4, 0, 1] = float("nan")
    return x


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({"x": None}, None, r"holds no samples 'x', but activity, speed; name the tensor"),
        (
            {"x": torch.zeros(6)},
            None,
            r"samples must be floating point, \[N, D\], \[N, T, C\] or of more",
        ),
        ({"x": torch.zeros(6, 2, dtype=torch.int64)}, None, r"samples must be floating point"),
        ({"x": "nan"}, None, r"1 of 6 samples are not finite in float32, first that of row 4"),
        (
            {"activity": torch.zeros(5, dtype=torch.int64)},
            None,
            r"there are 6 samples, but 5 values of 'activity'; give one for each sample$",
        ),
        (
            {"activity": torch.arange(6)},
            None,
            r"the classes of 'activity' run from 0 to 5, but there are 3 names",
        ),
        (
            {"activity": torch.tensor([0, 1, -1, 0, 1, 2])},
            None,
            r"the classes of 'activity' run from -1 to 2",
        ),
        (
            {"speed": torch.full((6,), float("inf"))},
            None,
            r"the column 'speed' holds values that are not finite; correct or remove them$",
        ),
        (
            {},
            {"sped": "vector"},
            r"there is no column 'sped'; the columns are activity, speed; correct data.columns$",
        ),
        (
            {},
            {"speed": "class"},
            r"the column 'speed' is not a class: it holds \[6\] of torch.float32; give",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_one_line(tmp_path, change, columns, message):
    path, x = held(tmp_path)
    held(tmp_path, **{k: nan_row(x) if isinstance(v, str) else v for k, v in change.items()})
    with pytest.raises(ValueError, match=message) as caught:
        tensors(path, columns=columns)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    path, _ = held(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"d.safetensors: truncated or corrupt"):
        tensors(path)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"o.npy: not readable as a NumPy array of numbers"):
        tensors(tmp_path / "o.npy")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder; check data.path$"):
        tensors(tmp_path / "none.npy")


def test_arrays_of_another_byte_order_are_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.5, -1], [2, 3]], ">f4"))
    assert torch.equal(tensors(tmp_path / "x.npy").x, torch.tensor([[0.5, -1], [2, 3]]))


def test_folders_without_arrays_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no .npy files; expected x.npy, and one"):
        tensors(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"there is no such file or folder; check data\.path$"
    ):
        tensors(tmp_path / "none")


def test_numbers_beyond_float32_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, 1.0], [1e300, 1.0]]))
    with pytest.raises(ValueError, match=r"1 of 2 samples are not finite in float32, .* row 1"):
        tensors(tmp_path / "x.npy")


def test_odd_values_of_tensors_are_one_line(tmp_path):
    path, x = held(tmp_path, phase=torch.zeros(6, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"the column 'phase' is not a class: .*complex64"):
        tensors(path)
    held(tmp_path, x=x.to(torch.float8_e4m3fn))
    assert torch.equal(tensors(path).x, x.to(torch.float8_e4m3fn).float())
    save_file({"x": x}, path, {"classes": "[" * 100_000})
    assert tensors(path).columns == {}


def test_units_are_those_of_the_data_and_go_back(tmp_path):
    x = torch.randn(50, 7, 3, dtype=torch.float64) * torch.tensor([1.0, 20.0, 0.0]) + torch.tensor(
        [5.0, -3.0, 2.0]
    )
    scale = Standardiser.of(x)
    source = Standardised(source=InMemory(x=x.float(), targets={}, columns={}), scale=scale)
    found = batch(source, range(50))[0]
    mean, std = x.flatten(0, 1).mean(0), x.flatten(0, 1).std(0, correction=0)
    wanted = (x - mean) / torch.tensor([std[0], std[1], 1.0])  # what does not vary keeps its size
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(scale.undo(found).double(), x, atol=1e-4, rtol=0)


def test_latents_are_encoded_once(tmp_path):
    source = InMemory(
        x=torch.randn(5, 3, 4, 4), targets={"text": list("abcde"), "n": torch.arange(5)}, columns={}
    )
    seen = []

    def encode(x):
        seen.append(len(x))
        return x[:, :2, ::2, ::2] * 0.5

    first, again = (latents(source, encode, tmp_path / "l", key="k", batch=2) for _ in range(2))
    assert seen == [2, 2, 1]
    for found in (first, again):
        x, targets = batch(found, [4, 1])
        torch.testing.assert_close(x, (source.x[[4, 1], :2, ::2, ::2] * 0.5).half().float())
        assert targets["text"] == ["e", "b"] and targets["n"].tolist() == [4, 1]


def test_latents_keep_all_captions(tmp_path):
    words = [("a", "b", "c")] * 40
    source = InMemory(x=torch.zeros(40, 3, 4, 4), targets={"text": words}, columns={})
    found = latents(source, lambda x: x, tmp_path, key="k")
    draw = Draw(range(40))
    drawn = found.batch(range(40), draw)[1]["text"]
    assert drawn == ["abc"[int(3 * u)] for u in draw.uniform("caption").tolist()]
    assert {*drawn} == {*"abc"}


def test_latents_of_other_data_are_made_anew(tmp_path):
    for count in (3, 2):
        source = InMemory(x=torch.full((count, 1, 2, 2), count), targets={}, columns={})
        found = latents(source, lambda x: x / 2, tmp_path, key="k")
        assert torch.equal(found.x, torch.full((count, 1, 2, 2), count / 2))


# --- setting aside ---


def test_a_share_is_set_aside_once_and_for_all():
    source = InMemory(x=torch.arange(20.0)[:, None], targets={}, columns={})
    train, aside = split(source, 0.25, seed=1)
    a, b = (batch(part, range(part.size))[0][:, 0].tolist() for part in (train, aside))
    assert len(b) == 5 and sorted(a + b) == list(range(20))
    assert (
        batch(split(source, 0.25, seed=1)[1], range(5))[0][:, 0].tolist()
        == b
        != batch(split(source, 0.25, seed=2)[1], range(5))[0][:, 0].tolist()
    )
    assert split(source, 0.0) == (source, None)
    with pytest.raises(ValueError, match=r"leaves one part empty; change data.holdout"):
        split(source, 0.01)


def test_nothing_is_shown_while_parquet_is_read(tmp_path, monkeypatch, capfd):
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.Dataset.from_dict({"a": [1, 2]}).to_parquet(tmp_path / "x.parquet")
    datasets.enable_progress_bars()
    capfd.readouterr()
    assert folders._load([tmp_path / "x.parquet"])["a"][1] == 2
    assert datasets.utils.are_progress_bars_disabled() and capfd.readouterr().err == ""
