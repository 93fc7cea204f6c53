"""What a run leaves to read."""

import importlib.util
import json
import math
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ganlab.data.batches import Scaling
from ganlab.data.store import Source
from ganlab.errors import InputError
from ganlab.tasks.base import Field
from ganlab.training.records import PALETTE, Meter, Records, panel, picture, read_metrics, rgb_bands


def test_a_meter_gives_means_of_what_it_saw_and_starts_anew():
    meter = Meter()
    for i in range(5):
        meter.add({"a": torch.tensor(float(i), requires_grad=True), "b": 2.0})
        if i % 2:
            meter.add({"sometimes": torch.tensor(10.0 * i, dtype=torch.float64)})
    assert meter.totals()["a"].tolist() == [10.0, 5.0]
    assert meter.means() == {"a": 2.0, "b": 2.0, "sometimes": 20.0}
    assert meter.means() == {}
    meter.add({"a": 7.0})
    assert meter.means() == {"a": 7.0}


def test_a_meter_continues_where_another_stopped():
    one, other, whole = Meter(), Meter(), Meter()
    for meter, values in [(one, (1.0, 2.5)), (whole, (1.0, 2.5, 9.0))]:
        for value in values:
            meter.add({"x": value})
    other.sums = dict(one.totals())
    other.add({"x": 9.0})
    assert other.means() == whole.means()


def test_metrics_are_appended_as_lines(tmp_path):
    for after, steps in [(0, (1, 2)), (2, (3,))]:
        records = Records(tmp_path, after, tensorboard=False)
        for step in steps:
            records.metrics(step, {"a": step / 3})
        records.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": s, "a": s / 3} for s in (1, 2, 3)]
    assert read_metrics(tmp_path) == [{"step": s, "a": s / 3} for s in (1, 2, 3)]
    assert read_metrics(tmp_path / "nothing") == []


@pytest.mark.parametrize("tail", ["", '{"step": 4, "a": 0.5', '{"st', '{"step": 9, "a": 1}\n{"'])
def test_lines_after_the_checkpoint_go_and_half_lines_too(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 2, "a": 0.1}\n{"step": 3, "a": 1e-07}\n'
    path.write_text(kept + '{"step": 4, "a": 2.0}\n' + tail)
    assert [line["step"] for line in read_metrics(tmp_path)][:3] == [2, 3, 4]
    Records(tmp_path, 3, tensorboard=False).close()
    assert path.read_text() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_new_run_forgets_older_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    Records(tmp_path, 0, tensorboard=False).close()
    assert read_metrics(tmp_path) == []


def test_cutting_metrics_never_leaves_half_of_them(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr("ganlab.files.os.replace", killed)
    with pytest.raises(SystemExit):
        Records(tmp_path, 1, tensorboard=False)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_holds_what_the_lines_hold(tmp_path):
    records = Records(tmp_path, 0, tensorboard=True)
    for step in (1, 2, 3):
        records.metrics(step, {"generator/l1": step / 2})
    records.samples(2, np.full((4, 6, 3), 9, np.uint8))
    records.close()
    events = board(tmp_path)
    scalars = events.Scalars("generator/l1")
    assert [(e.step, e.value) for e in scalars] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(2, 6, 4)]


def test_tensorboard_forgets_what_lies_behind_the_checkpoint(tmp_path):
    for after, value in [(0, 1.0), (2, 5.0)]:
        records = Records(tmp_path, after, tensorboard=True)
        for step in range(after + 1, 5):
            records.metrics(step, {"a": value})
        records.close()
    assert [(e.step, e.value) for e in board(tmp_path).Scalars("a")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 5.0),
        (4, 5.0),
    ]


def test_tensorboard_only_when_wanted_and_there(tmp_path, monkeypatch):
    Records(tmp_path, tensorboard=False).close()
    assert not (tmp_path / "tensorboard").exists()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    Records(tmp_path, tensorboard=None).close()
    assert not (tmp_path / "tensorboard").exists()
    with pytest.raises(InputError, match="pip install tensorboard"):
        Records(tmp_path, tensorboard=True)
    monkeypatch.undo()
    Records(tmp_path, tensorboard=None).close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_samples_are_written_as_they_are(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = Records(tmp_path, tensorboard=False).samples(12, noise)
    assert path == tmp_path / "samples" / "step-00000012.png"
    assert (np.asarray(Image.open(path)) == noise).all()


def image_field(bands):
    source = Source("image", "image", "uint8", tuple(bands))
    return Field(source, Scaling((0.0,) * len(bands), (255.0,) * len(bands), (0.0,) * len(bands)))


@pytest.mark.parametrize(
    ("bands", "order"),
    [
        (("1", "2", "3"), (0, 1, 2)),
        (("blue", "green", "red", "nir"), (2, 1, 0)),
        (("B2", "B3", "B4", "B8"), (2, 1, 0)),
        (("B04", "B8A", "B02", "B03"), (0, 3, 2)),
        (("pan",), (0, 0, 0)),
        (("VV", "VH"), (0, 0, 0)),
    ],
)
def test_pictures_show_red_green_and_blue(bands, order):
    assert rgb_bands(bands, len(bands)) == list(order)
    stored = np.random.default_rng(1).integers(0, 256, (2, len(bands), 3, 4)).astype(np.float32)
    shown = picture(image_field(bands), torch.from_numpy(stored / 127.5 - 1))
    assert shown.dtype == np.uint8
    assert (shown == stored[:, order].transpose(0, 2, 3, 1)).all()
    wild = torch.tensor([-5.0, 5.0]).view(1, 1, 1, 2).expand(1, len(bands), 1, 2)
    assert picture(image_field(bands), wild)[0, 0].tolist() == [[0] * 3, [255] * 3]


def test_pictures_of_labels_have_the_colours_of_their_classes():
    field = Field(Source("label", "label", "uint8", ("class",), classes=(0, 3, 7)), None)
    label = torch.tensor([[0, 3], [7, 3]]).view(1, 1, 2, 2)
    shown = picture(field, field.enter(label))[0]
    assert shown.tolist() == [
        [list(PALETTE[0]), list(PALETTE[1])],
        [list(PALETTE[2]), list(PALETTE[1])],
    ]
    many = Field(
        Source("label", "label", "uint8", ("class",), classes=tuple(range(len(PALETTE) + 1))), None
    )
    last = picture(many, many.enter(torch.full((1, 1, 1, 1), len(PALETTE))))
    assert last[0, 0, 0].tolist() == list(PALETTE[0])


def test_a_panel_keeps_every_pixel():
    rows = [[np.full((3, 4, 3), 10 * r + c, np.uint8) for c in range(3)] for r in range(2)]
    whole = panel(rows)
    assert whole.shape == (2 * 5, 3 * 6, 3)
    for r in range(2):
        for c in range(3):
            assert (whole[5 * r : 5 * r + 3, 6 * c : 6 * c + 4] == 10 * r + c).all()
    assert (whole[3:5] == 255).all()
    assert math.isclose((whole == 255).mean(), 1 - 2 * 3 * 12 / (10 * 18))


def test_a_tensorboard_that_fails_in_its_thread_is_told_in_one_line(tmp_path, monkeypatch, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    hook, write = threading.excepthook, RecordWriter.write
    lines = []

    def fills_up(self, data):
        lines.append(data)
        if len(lines) > 2:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", fills_up)
    records = Records(tmp_path, tensorboard=True)

    def write_many():
        for step in range(1, 200):
            records.metrics(step, {"a": 1.0})
            time.sleep(0.001)
        records.close()

    with pytest.warns(UserWarning, match="TensorBoard cannot be written: .*No space") as said:
        write_many()
    assert len(said) == 1
    assert len(read_metrics(tmp_path)) == 199
    assert capfd.readouterr().err == ""
    assert threading.excepthook is hook
