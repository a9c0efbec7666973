"""A record that outlives kills: whatever is left of its files, the next run goes on without loss or repetition."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from camrt import CamrtError
from camrt.evaluate.journal import Journal, Records, Shard, fingerprint_of

SETTINGS = {"model": {"name": "a"}, "thresholds": (20, 100, 110)}
IMAGES = {f"image {number}": [number, 1] for number in range(7)}


def run(folder: Path, most: int | None = None, shard: str = "1/1") -> list[str]:
    """Does at most so many images of a shard; returns which."""
    with Journal(folder, "maps", SETTINGS, Shard.parse(shard)) as journal:
        done = journal.waiting(IMAGES)[:most]
        for image in done:
            journal.add(image, {"number": IMAGES[image][0]}, IMAGES[image])
    return done


def complete(folder: Path) -> bool:
    return dict(Records(folder, "maps")) == {image: {"number": stamp[0]} for image, stamp in IMAGES.items()}


def test_goes_on(tmp_path: Path) -> None:
    images = list(IMAGES)
    assert run(tmp_path, 3) == images[:3]
    assert run(tmp_path, 2) == images[3:5]
    assert run(tmp_path) == images[5:]
    assert run(tmp_path) == []
    assert complete(tmp_path)
    assert len((tmp_path / "maps.jsonl").read_bytes().splitlines()) == 1 + len(IMAGES)


def test_what_ran(tmp_path: Path) -> None:
    """The last line of an image counts; failures and lines of earlier versions do not say it."""
    with Journal(tmp_path, "maps", SETTINGS) as journal:
        journal.add("a", {}, ran="OpenVINO bf16")
        journal.add("b", {}, ran="OpenVINO bf16")
        journal.add("c", {}, ran="OpenVINO bf16")
        journal.add("c", {}, ran="CPUExecutionProvider fp32")
        journal.add("d", {})
        journal.record_failure("e", "broken")
    assert Records(tmp_path, "maps").ran == {"OpenVINO bf16": 2, "CPUExecutionProvider fp32": 1}


def test_cut_anywhere(tmp_path: Path) -> None:
    """A file of any length, as a kill or a full disk leaves it: what is whole counts, and nothing else is there."""
    run(tmp_path)
    file = tmp_path / "maps.jsonl"
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        whole = max(content[:length].count(b"\n") - 1, 0)
        assert len(Records(tmp_path, "maps")) == whole
        assert run(tmp_path) == list(IMAGES)[whole:]
        assert complete(tmp_path)
        assert len(file.read_bytes().splitlines()) == 1 + len(IMAGES)


def test_shards_share_the_work(tmp_path: Path) -> None:
    done = [run(tmp_path, shard=f"{number}/3") for number in (1, 2, 3)]
    assert [len(images) for images in done] == [3, 2, 2]
    assert sorted(image for images in done for image in images) == list(IMAGES)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"maps.{number}-of-3.jsonl" for number in (1, 2, 3)]
    assert complete(tmp_path)


def test_the_number_of_shards_may_change(tmp_path: Path) -> None:
    run(tmp_path, 1, shard="1/2")
    run(tmp_path, 1, shard="3/3")
    assert run(tmp_path) == [f"image {number}" for number in (1, 3, 4, 5, 6)]
    assert run(tmp_path, shard="2/2") == []
    assert complete(tmp_path)


def test_a_changed_image_is_done_again(tmp_path: Path) -> None:
    run(tmp_path)
    with Journal(tmp_path, "maps", SETTINGS, Shard(2, 2)) as journal:
        assert journal.waiting({**IMAGES, "image 3": [3, 2]}) == ["image 3"]
        journal.add("image 3", {"number": 33}, [3, 2])
    records = Records(tmp_path, "maps")  # the newer line counts, whatever the files are called
    assert dict(records)["image 3"] == {"number": 33}
    assert records.is_done("image 3", [3, 2])
    assert not records.is_done("image 3", [3, 1])


def test_a_refused_image_is_tried_again(tmp_path: Path) -> None:
    with Journal(tmp_path, "maps", SETTINGS) as journal:
        journal.record_failure("image 1", "is broken", [1, 1])
    records = Records(tmp_path, "maps")
    assert (records.failures, "image 1" in records, dict(records)) == ({"image 1": "is broken"}, True, {})
    assert run(tmp_path) == list(IMAGES)
    assert Records(tmp_path, "maps").failures == {}
    assert complete(tmp_path)


def test_many_threads(tmp_path: Path) -> None:
    names = [f"{number:05}\u2028 \udcff" for number in range(500)]  # names of files need not be text
    with Journal(tmp_path, "maps", {}) as journal, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: journal.add(name, {"name": name}), names))
    assert {name: found["name"] for name, found in Records(tmp_path, "maps")} == {name: name for name in names}


def test_one_process_a_file(tmp_path: Path) -> None:
    with Journal(tmp_path, "maps", SETTINGS) as journal:
        with pytest.raises(CamrtError, match=r"maps.jsonl: another run writes it"):
            Journal(tmp_path, "maps", SETTINGS).__enter__()
        with Journal(tmp_path, "maps", SETTINGS, Shard(1, 2)):  # another file
            pass
        journal.add("image 0", {})
    with pytest.raises(RuntimeError, match="with block"):
        journal.add("image 0", {})
    run(tmp_path)


def test_other_settings(tmp_path: Path) -> None:
    run(tmp_path, 1)
    before = (tmp_path / "maps.jsonl").read_bytes()
    with pytest.raises(CamrtError, match=r"thresholds: found \[20, 100, 110\], expected None. Name another folder"):
        Journal(tmp_path, "maps", {"model": {"name": "a"}}).__enter__()
    assert (tmp_path / "maps.jsonl").read_bytes() == before
    with Journal(tmp_path, "others", {}):  # another record of the same folder
        pass
    other = (tmp_path / "maps.jsonl").read_text().replace("[20, ", "[30, ")
    (tmp_path / "maps.2-of-2.jsonl").write_text(other)
    with pytest.raises(CamrtError, match="other settings than those of the other journals"):
        Records(tmp_path, "maps")


def test_a_journal_without_results_takes_other_settings(tmp_path: Path) -> None:
    """A run that fails at its start does not keep the next one from other settings."""
    for shard in (Shard(), Shard(1, 2)):
        with Journal(tmp_path, "maps", {"preprocess": None}, shard) as journal:
            assert journal.waiting(IMAGES)
    assert Records(tmp_path, "maps").settings is None
    assert run(tmp_path, 2) == list(IMAGES)[:2]
    assert Records(tmp_path, "maps").settings == {"model": {"name": "a"}, "thresholds": [20, 100, 110]}
    assert run(tmp_path, shard="1/2") == [f"image {number}" for number in (2, 4, 6)]
    assert run(tmp_path) == [f"image {number}" for number in (3, 5)]
    assert complete(tmp_path)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"{\n", "maps.jsonl:2: the line is not JSON"),
        (b"\x00\x00\n", "maps.jsonl:2: the line is not JSON"),
        (b"[" * 100000 + b"\n", "maps.jsonl:2: the line is not JSON"),
        (b"[]\n", "maps.jsonl:2: the line is not part of a journal"),
        (b'{"image": 3, "found": {}, "at": 1}\n', "maps.jsonl:2: the line is not part of a journal"),
        (b'{"image": "a", "at": 1}\n', "maps.jsonl:2: the line is not part of a journal"),
        (b'{"image": "a", "found": {}, "at": null}\n', "maps.jsonl:2: the line is not part of a journal"),
    ],
)
def test_damaged_lines(tmp_path: Path, line: bytes, text: str) -> None:
    run(tmp_path, 2)
    file = tmp_path / "maps.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], line, *lines[1:]])
    file.write_bytes(damaged)
    with pytest.raises(CamrtError, match=text):
        run(tmp_path)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("header", [{}, [], {"journal": "maps"}, {"journal": "other", "settings": {}, "format": 1}])
def test_no_journal(tmp_path: Path, header: object) -> None:
    (tmp_path / "maps.jsonl").write_text(json.dumps(header) + "\n")
    with pytest.raises(CamrtError, match="found no journal of 'maps'"):
        Records(tmp_path, "maps")


def test_journals_of_earlier_versions_go_on(tmp_path: Path) -> None:
    """The lines of format 1 as they are on disk."""
    (tmp_path / "maps.jsonl").write_text(
        '{"journal": "maps", "format": 1, "settings": {"model": {"name": "a"}, "thresholds": [20, 100, 110]}}\n'
        '{"image": "image 0", "stamp": [0, 1], "found": {"number": 0}, "at": 1.5}\n'
        '{"image": "image 1", "stamp": [1, 1], "refused": "is broken", "at": 2.5}\n'
    )
    records = Records(tmp_path, "maps")
    assert (dict(records), records.failures) == ({"image 0": {"number": 0}}, {"image 1": "is broken"})
    assert run(tmp_path) == list(IMAGES)[1:]
    assert complete(tmp_path)
    keys = [list(json.loads(line)) for line in (tmp_path / "maps.jsonl").read_text().splitlines()[3:]]
    assert keys == [["image", "stamp", "found", "at"]] * 6


def test_another_format(tmp_path: Path) -> None:
    (tmp_path / "maps.jsonl").write_text('{"journal": "maps", "format": 9, "settings": {}}\n')
    with pytest.raises(CamrtError, match="format 9, expected 1"):
        Records(tmp_path, "maps")


def test_no_folder(tmp_path: Path) -> None:
    assert (len(Records(tmp_path / "none", "maps")), Records(tmp_path / "none", "maps").settings) == (0, None)
    (tmp_path / "file").touch()
    with pytest.raises(CamrtError, match="cannot be written to"):
        Journal(tmp_path / "file", "maps", {}).__enter__()
    (tmp_path / "maps.jsonl").mkdir()
    with pytest.raises(CamrtError, match="cannot be read"):
        Records(tmp_path, "maps")
    with pytest.raises(ValueError, match="the name"):
        Journal(tmp_path, "../maps", {})


def test_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits on files are POSIX's")
    run(tmp_path, 2)
    room = (tmp_path / "maps.jsonl").stat().st_size + 10
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path, "maps", SETTINGS) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(CamrtError, match=r"maps.jsonl: cannot be written: the disk is full"):
                journal.add("image 2", {}, [2, 1])  # the first ten bytes of it fit
            with pytest.raises(CamrtError, match=r"maps.jsonl: cannot be written: File too large"):
                journal.add("image 2", {}, [2, 1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "maps.jsonl").stat().st_size == room
    assert run(tmp_path) == list(IMAGES)[2:]
    assert complete(tmp_path)


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2", "1/9999999"])
def test_no_shard(text: str) -> None:
    with pytest.raises(CamrtError, match="expected i/n"):
        Shard.parse(text)


def test_stamp(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path / "none") is None
    (tmp_path / "a").write_bytes(b"abc")
    assert fingerprint_of(tmp_path / "a") == [3, (tmp_path / "a").stat().st_mtime_ns]


def _append_for_ever(folder: Path, shard: str) -> None:
    with Journal(folder, "maps", SETTINGS, Shard.parse(shard)) as journal:
        for number in range(10**6):
            journal.add(f"{shard} {number}", {"text": "x" * (number % 5000)})
            time.sleep(0.0005)


def test_killed_while_it_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    shards: Sequence[str] = ("1/2", "2/2")
    for _ in range(2):
        processes = [context.Process(target=_append_for_ever, args=(tmp_path, shard)) for shard in shards]
        for process in processes:
            process.start()
        sizes = [0, 0]
        files = [tmp_path / f"maps.{shard.replace('/', '-of-')}.jsonl" for shard in shards]
        while min(sizes) < 30_000:
            time.sleep(0.01)
            sizes = [file.stat().st_size if file.exists() else 0 for file in files]
        assert len(Records(tmp_path, "maps")) > 10  # read while they write
        for process in processes:
            process.kill()
            process.join()
            process.close()
        for name, found in Records(tmp_path, "maps"):
            assert len(found["text"]) == int(name.split()[1]) % 5000
        for shard in shards:
            with Journal(tmp_path, "maps", SETTINGS, Shard.parse(shard)) as journal:
                assert journal.file.read_bytes().endswith(b"\n")
        for file in files:
            file.unlink()
