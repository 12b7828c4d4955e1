import io

from deeplab_jax.utils import progress


def test_count_is_told_now_and_then_or_by_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    with progress.counting(2, "images") as count:
        count()
        count()
    assert capsys.readouterr().out == "1/2 images\n2/2 images\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with progress.counting(2, "images") as count:
        count()
    assert "1/2" in capsys.readouterr().out


def test_count_goes_to_another_stream_with_its_rate(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    stream = io.StringIO()
    with progress.counting(2, "read", stream, unit="images") as count:
        count()
    assert capsys.readouterr().out == ""
    text = stream.getvalue()
    assert text.startswith("1/2 read, ")
    assert text.endswith(" images/s\n")
    stream.isatty = lambda: True
    with progress.counting(2, "read", stream) as count:
        count()
    assert "1/2" in stream.getvalue()[len(text) :]
