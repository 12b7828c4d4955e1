"""The rehearsal of scripts/gpu_evidence.sh, its options, and how it goes on after an end."""

import gzip
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest


@pytest.fixture(scope="module")
def evidence(repository):
    """The package scripts/evidence, by the name that the script gives it."""
    sys.path.insert(0, str(repository / "scripts"))
    import evidence.__main__
    import evidence.flags
    import evidence.inference
    import evidence.kernels
    import evidence.record
    import evidence.summary

    yield evidence
    sys.path.remove(str(repository / "scripts"))


@pytest.fixture
def start(repository):
    """Returns start(*arguments) -> the finished process of the script."""

    def start(*arguments):
        return subprocess.run(
            ["bash", repository / "scripts" / "gpu_evidence.sh", *map(str, arguments)],
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )

    return start


@pytest.fixture
def box(evidence, tmp_path):
    return evidence.record.Box(tmp_path, True, time.time() + 100)


def test_measured_results_are_kept_and_the_next_call_goes_on(evidence, box):
    record, measured = evidence.record.Record("steps", True), []
    limited = evidence.record.Box(box.output, False, time.time() + 100)

    def item(name, seconds=0.0, fails=False):
        def run():
            measured.append(name)
            if fails:
                raise ValueError("no\nsuch thing")
            return {"line": name}

        return evidence.record.Item(name, run, seconds)

    items = [item("a"), item("b", fails=True), item("c", 1000)]
    assert not evidence.record.measure(limited, record, items)
    record = evidence.record.Record.read(box.output, "steps", True)
    assert list(record.items) == ["a", "b"]
    assert record.errors == {"b": "ValueError: no such thing"}
    assert evidence.record.measure(box, record, items)
    assert measured == ["a", "b", "c"]


def test_an_item_that_was_ended_twice_is_given_up(evidence):
    record = evidence.record.Record("steps", True, running="a", tries={"a": 1})
    record.give_up("was killed")
    assert not record.items
    assert not record.running
    record.running, record.tries = "a", {"a": 2}
    record.give_up("was killed")
    assert record.errors == {"a": "was killed"}


def test_labels_that_differ_have_a_limit(evidence):
    labels = np.zeros(2000, np.uint8)
    other = labels.copy()
    for share, is_good in ((2, True), (3, False)):
        other[:share] = 1
        assert evidence.inference.judge("float32", labels, other)["is_good"] is is_good
        assert evidence.inference.judge("bfloat16", labels, other)["is_good"]


def test_kernels_of_streams_are_summed_by_kind(evidence, tmp_path):
    program = evidence.kernels.read_program(
        """
  %cudnn.1 = (f32[8]{0}, u8[0]{0}) custom-call(%a, %b), custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(s)/jvp(DeepLabV3Plus)/conv2/conv/conv_general_dilated"}
  ROOT %fusion.2 = f32[8]{0} fusion(%a), kind=kLoop, calls=%f, \
metadata={op_name="jit(s)/transpose(jvp(DeepLabV3Plus))/conv2/norm/mul"}
  %while.3 = (s32[]) while(%t), condition=%c, body=%b
"""
    )
    names = {(1, None): "/device:GPU:0", (2, None): "/host:CPU",
             (1, 7): "Stream #7(Compute)", (1, 8): "XLA Ops", (2, 9): "python"}  # fmt: skip
    events = [
        {"ph": "M", "pid": pid, "name": "thread_name" if tid else "process_name",
         "args": {"name": name}} | ({"tid": tid} if tid else {})
        for (pid, tid), name in names.items()
    ]  # fmt: skip
    for tid, pid, name, operation, dur in (
        (7, 1, "sm90_xmma_fprop", "cudnn.1", 3000),
        (7, 1, "loop_fusion", "fusion.2", 2000),
        (7, 1, "MemcpyD2D", "", 500),
        (7, 1, "body", "while.3", 9000),
        (8, 1, "cudnn.1", "cudnn.1", 3000),
        (9, 2, "call", "", 9000),
    ):
        args = {"hlo_op": operation} if operation else {}
        event = {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": 0, "dur": dur}
        events.append(event | {"args": args})
    path = tmp_path / "a.trace.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)
    got = evidence.kernels.summary(list(evidence.kernels.read_kernels(path)), program, steps=2)
    assert got["kinds"] == pytest.approx(
        {
            "convolutions and 1x1, forward": 0.0015,
            "norms, backward": 0.001,
            "copies and transposes": 0.00025,
        }
    )
    assert [row["operation"] for row in got["largest"]] == ["cudnn.1", "fusion.2", "MemcpyD2D"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stage", "speed"], "error: --stage=speed: there is no such stage - use next, environ"),
        (["--minutes", "0"], "error: --minutes=0: no time to measure in - give a number above 0"),
        (["--camvid", "/nowhere"], "error: --camvid=/nowhere: it holds no images/train - name "),
    ],
)
def test_wrong_use_is_one_line(evidence, capsys, tmp_path, arguments, told):
    with pytest.raises(SystemExit) as end:
        evidence.__main__.main([*arguments, "--output", str(tmp_path)])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(told)
    assert err.count("\n") == 1


def test_a_rehearsal_and_a_card_do_not_share_a_folder(evidence, capsys, tmp_path):
    evidence.record.Record("steps", True).write(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        evidence.__main__.main(["--output", str(tmp_path)])
    assert "it holds a rehearsal - give another folder" in capsys.readouterr().err


def test_an_output_that_is_no_folder_is_one_line(evidence, capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        evidence.__main__._locked(tmp_path / "file")
    err = capsys.readouterr().err
    assert "file: it cannot be written to (File exists) - give another folder" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"x": 1}'])
def test_a_file_that_is_no_record_is_named(evidence, capsys, tmp_path, text):
    (tmp_path / "steps.json").write_text(text)
    with pytest.raises(SystemExit) as caught:
        evidence.__main__.main(["--list", "--output", str(tmp_path)])
    assert caught.value.code == 2
    assert f"error: {tmp_path / 'steps.json'}: it is no record (" in capsys.readouterr().err


@pytest.mark.process("starts a process to look for the card")
def test_a_processor_is_refused(start, tmp_path):
    got = start("--output", tmp_path / "a")
    assert got.returncode == 2
    assert "its jax has no GPU, but cpu - give --rehearse" in got.stderr
    assert got.stderr.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.process("compiles an option of XLA's for each flag")
def test_xla_knows_every_flag(evidence):
    import jax

    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    for flag in evidence.flags.FLAGS:
        lowered.compile(compiler_options={flag.name: flag.value})
    words = " ".join(evidence.flags.label(flag) for flag in evidence.flags.FLAGS)
    subprocess.run(  # XLA ends a process that is given an unknown flag
        [sys.executable, "-c", "import jax; jax.jit(lambda x: x + 1)(1.0)"],
        env=os.environ | {"XLA_FLAGS": words},
        check=True,
    )


@pytest.mark.slow("runs all stages, several processes and three trainings: minutes")
def test_rehearsal(start, tmp_path):
    got = start("--rehearse", "--output", tmp_path)
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert got.returncode == 0, got.stdout + got.stderr + logs
    text = (tmp_path / "summary.md").read_text()
    for path in sorted(tmp_path.glob("*.json")):
        record = json.loads(path.read_text())
        assert (record["status"], record["reason"]) == ("done", ""), path.name
        assert f"## {record['stage']}: " in text
    assert len(list(tmp_path.glob("*.json"))) == 8
    assert "Mean of 3: " in text
    began = time.monotonic()
    again = start("--rehearse", "--output", tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert time.monotonic() - began < 60  # nothing is measured twice
