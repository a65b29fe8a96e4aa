"""metrics.jsonl tells each step once."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from student_training.metrics import METRICS_FILE, MetricsLog, read_metrics


def write(folder, *, from_step, steps):
    with MetricsLog(folder, from_step=from_step, num_steps=10, progress=True) as log:
        for step in steps:
            log.advance()
            log.write("training", step=step, epoch=step / 10, figures={"loss": step * 1.0, "weights": "ema"})


def test_later_and_broken_lines_are_cut_on_resume(tmp_path):
    write(tmp_path, from_step=0, steps=range(1, 8))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "training", "st')
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 7
    write(tmp_path, from_step=4, steps=range(5, 7))
    lines = read_metrics(tmp_path / METRICS_FILE)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[4] == {"kind": "training", "step": 5, "epoch": 0.5, "loss": 5.0, "weights": "ema"}
    write(tmp_path, from_step=0, steps=[1])
    assert [line["step"] for line in read_metrics(tmp_path / METRICS_FILE)] == [1]


def test_tensorboard_shows_each_step_once(tmp_path):
    write(tmp_path, from_step=0, steps=range(1, 8))
    write(tmp_path, from_step=4, steps=range(5, 7))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4, 5, 6]


def test_no_bar_where_there_is_no_terminal(tmp_path, capsys):
    write(tmp_path, from_step=0, steps=[1])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert read_metrics(tmp_path / "nowhere.jsonl") == []
