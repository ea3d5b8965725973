"""What a run tells: metrics that a failed night cannot take away, a message at the end, and neither at its cost."""

from __future__ import annotations

import json
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from jobs.__main__ import main
from pipeline.ends import failure_of
from pipeline.errors import ConfigError, Conflict, GateRefused, InputError, Unavailable
from pipeline.evaluation import GateVerdict
from pipeline.events import Examined, Finished, Planned, ShardEnded, StageBegan, StageEnded, Trained, listening, tell
from pipeline.monitoring import MonitorConfig, WebhookConfig, check_told, monitored
from pipeline.monitoring.metrics import CHANNEL_FAMILIES, RUN_FAMILIES, Success, channel_metrics, run_metrics, text_of
from pipeline.monitoring.monitor import within
from pipeline.monitoring.sinks import Textfile, textfile_name
from pipeline.monitoring.state import Ended, Named, RunState
from pipeline.monitoring.webhook import TRIES, message, post
from pipeline.release import ChannelEntry
from pipeline.storage.config import StoreConfig

ODD = 'a "b" \\ c\nd'
NAMED = Named("2026-11-21", "refresh", "stable", "0.1.0", {"catalogue": "shoes"})
CREATED = datetime(2026, 11, 21, 3, tzinfo=UTC)
HEAD = ChannelEntry(
    number=7, release_id="2026-11-21-0123456789ab", manifest_sha256="0" * 64, run="2026-11-21", attempt=1,
    reason="publish", created=CREATED,
)  # fmt: skip


def night() -> RunState:
    """Return a run that has done everything and is about to end."""
    state = RunState(NAMED, ["textfile"])
    tell_all = [
        StageBegan("plan"),
        StageEnded("plan", 2.0),
        Planned({"photos": 10, "added": 4}),
        StageBegan("encode", 4),
        ShardEnded("encode", 1, 3, 1, reused=False, node="a", seconds=2.0),
        ShardEnded("encode", 2, 1, 0, reused=False, node="a", seconds=0.5),
        StageEnded("encode", 8.0, 4),
        Trained(20, 20, 1.25, 1000.0),
        Examined(
            (GateVerdict("min_recall", 0.9, 0.95, passed=False), GateVerdict("min_items", 10.0, None, passed=True)),
            {("decode", ODD): 1},
            {"recall": 0.9},
        ),
    ]
    for event in tell_all:
        state.note(event)
    return state


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    """Return the one series of a name that has these labels among its own."""
    found = [
        value for (known, has), value in series(text).items() if known == name and labels.items() <= dict(has).items()
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def test_a_run_in_the_words_of_prometheus() -> None:
    state = night()
    state.end(Ended(1e9, 4, "refused by a gate", published=False, release="r", details={}))
    text = text_of(run_metrics(state.standing())).decode()
    common = {"command": "refresh", "channel": "stable", "catalogue": "shoes"}
    for name, labels, expected in [
        ("exit_code", {}, 4),
        ("in_progress", {}, 0),
        ("ended_timestamp_seconds", {}, 1e9),
        ("stage_seconds", {"stage": "encode"}, 8.0),
        ("stage_photos", {"stage": "encode"}, 4),
        ("stage_planned_photos", {"stage": "encode"}, 4),
        ("stage_photos_per_second", {"stage": "encode"}, 0.5),
        ("stage_shards", {"stage": "encode"}, 2),
        ("node_photos", {"stage": "encode", "node": "a"}, 4),
        ("node_seconds", {"stage": "encode", "node": "a"}, 2.5),
        ("plan", {"counted": "added"}, 4),
        ("quarantined_photos", {"stage": "decode", "reason": ODD}, 1),
        ("measure", {"measure": "recall"}, 0.9),
        ("gate_value", {"gate": "min_recall"}, 0.9),
        ("gate_limit", {"gate": "min_recall"}, 0.95),
        ("gate_passed", {"gate": "min_recall"}, 0),
        ("gate_limit", {"gate": "min_items"}, None),
        ("train_photos_per_second", {}, 1000.0),
        ("monitor_failures", {"sink": "textfile"}, 0),
    ]:
        assert value(text, f"codebooks_run_{name}", **common, **labels) == expected, name
    assert r'reason="a \"b\" \\ c\nd"' in text  # as the text format escapes it, on one line
    assert value(text, "codebooks_last_success_timestamp_seconds") is None


def test_a_run_that_works_has_neither_an_end_nor_an_exit_code() -> None:
    text = text_of(run_metrics(night().standing())).decode()
    assert value(text, "codebooks_run_in_progress") == 1
    assert value(text, "codebooks_run_exit_code") is None
    assert value(text, "codebooks_run_ended_timestamp_seconds") is None


def test_names_follow_the_conventions() -> None:
    families = (*RUN_FAMILIES, *CHANNEL_FAMILIES)
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"codebooks(_[a-z0-9]+)+", family.name)
        assert not re.search(r"_(total|count|sum|bucket|gauge|ms|minutes|megabytes)$", family.name), family.name
        assert family.help.endswith(".")
    state = night()
    state.end(Ended(0.0, 0, "published", published=True, release="r"))
    for registry in (run_metrics(state.standing()), channel_metrics(state.standing(), Success(1.0, HEAD))):
        lines = text_of(registry).decode().splitlines()
        named = [line.partition("{")[0] for line in lines if not line.startswith("#")]
        for name in set(named):
            assert sum(line.startswith((f"# HELP {name} ", f"# TYPE {name} gauge")) for line in lines) == 2, name


def test_a_failed_night_leaves_the_last_success_and_no_reason_of_yesterday(tmp_path: Path) -> None:
    sink, state = Textfile(str(tmp_path)), night()
    state.end(Ended(1e9, 0, "published", published=True, release="r"))
    sink.tell(state.standing(), Success(1e9, HEAD), timeout_s=1)
    failed = RunState(NAMED)
    failed.end(Ended(2e9, 6, "temporary, try again", published=False, release=None))
    sink.tell(failed.standing(), None, timeout_s=1)
    texts = [path.read_text() for path in sorted(tmp_path.iterdir())]
    both = "\n".join(texts)
    assert value(both, "codebooks_last_success_timestamp_seconds", channel="stable", catalogue="shoes") == 1e9
    assert value(both, "codebooks_release_created_timestamp_seconds") == CREATED.timestamp()
    assert value(both, "codebooks_run_exit_code", command="refresh") == 6
    assert not any("quarantined" in text for text in texts)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, state = Textfile(str(tmp_path)), night()
    sink.tell(state.standing(), None, timeout_s=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("os.fchmod", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        sink.tell(state.standing(), None, timeout_s=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_group_has_a_file_of_its_own() -> None:
    groups = [
        {"channel": "stable"},
        {"command": "refresh", "channel": "stable"},
        {"command": "train", "channel": "stable"},
        {"channel": "stable", "catalogue": "a/b"},
        {"channel": "stable", "catalogue": "a_b"},
    ]
    names = [textfile_name(group) for group in groups]
    assert names[:2] == ["codebooks_stable.prom", "codebooks_refresh_stable.prom"]
    assert len(set(names)) == len(groups)
    assert all(re.fullmatch(r"codebooks[A-Za-z0-9_.-]+\.prom", name) for name in names)


def test_a_pushgateway_gets_groups_that_name_themselves(receiving: Any, tmp_path: Path) -> None:
    with receiving() as gateway:
        config = MonitorConfig.model_validate({"metrics": {"pushgateway": gateway.url, "labels": {"catalogue": "a/b"}}})
        with monitored(config, StoreConfig(url=str(tmp_path)), run="n", command="refresh", channel="stable"):
            tell(Finished("r", published=False, reason="evaluated"))
    assert {method for method, *_ in gateway.got} == {"PUT"}  # POST would leave the reasons of yesterday
    assert {path for _, path, *_ in gateway.got} == {
        "/metrics/job/codebooks/catalogue@base64/YS9i/channel/stable/command/refresh"
    }
    assert value(gateway.got[-1][3].decode(), "codebooks_run_exit_code") == 0


@pytest.fixture
def told(tmp_path: Path, receiving: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Any, float]]]:
    """Run something monitored with a receiver of a message; returns the receiver and the seconds it took."""
    monkeypatch.setattr("pipeline.monitoring.webhook._FIRST_WAIT_S", 0.02)

    def run(
        what: Callable[[], None], *answers: int | float, timeout_s: float = 5.0, **headers: str
    ) -> tuple[Any, float]:
        with receiving(*answers, **headers) as receiver:
            config = MonitorConfig.model_validate(
                {
                    "webhook": {"url": f"{receiver.url}/hook/SECRETPATH"},
                    "timeout_s": timeout_s,
                    "links": "https://x.example/v",
                }
            )
            began = time.monotonic()
            try:
                with monitored(config, StoreConfig(url=str(tmp_path)), run="n", command="refresh", channel="stable"):
                    what()
            finally:
                took = time.monotonic() - began
            return receiver, took

    return run


def published() -> None:
    """Be a night that published."""
    tell(Finished("n-0123", published=True, reason="published", details={"report": "releases/n-0123/report-0.html"}))


def test_the_message_says_how_the_night_ended(told: Any) -> None:
    receiver, _ = told(published)
    ((method, path, headers, body),) = receiver.got
    said = json.loads(body)
    assert (method, path, headers["Content-Type"]) == ("POST", "/hook/SECRETPATH", "application/json")
    assert said["text"] == "refresh n: published, exit code 0, release n-0123, published"
    wanted = {"verdict": "published", "exit_code": 0, "run": "n", "release": "n-0123", "published": True, "error": None}
    assert {name: said[name] for name in wanted} == wanted
    assert said["report"] == "https://x.example/v/releases/n-0123/report-0.html"


@pytest.mark.parametrize(
    ("error", "code", "verdict"),
    [
        (GateRefused("recall 0.5", release="n-1"), 4, "refused"),
        (Conflict("other"), 5, "conflict"),
        (Unavailable("503"), 6, "temporary"),
        (KeyboardInterrupt(), 6, "temporary"),
        (InputError("https://me:hunter2hunter2@host/x is no table"), 3, "failed"),
        (RuntimeError("odd"), 1, "failed"),
    ],
)
def test_an_error_passes_on_and_is_told(told: Any, receiving: Any, tmp_path: Path, error: BaseException, code: int,
                                        verdict: str) -> None:  # fmt: skip
    with receiving() as receiver:
        config = MonitorConfig.model_validate({"webhook": {"url": receiver.url}})
        with (
            pytest.raises(type(error)) as raised,
            monitored(config, StoreConfig(url=str(tmp_path)), run="n", command="refresh", channel="stable"),
        ):
            raise error
    assert raised.value is error
    said = json.loads(receiver.got[0][3])
    assert (said["exit_code"], said["verdict"]) == (code, verdict)
    assert failure_of(error).exit_code == code
    assert "hunter2" not in receiver.got[0][3].decode()


def test_a_server_error_is_tried_again_with_the_same_key(told: Any) -> None:
    receiver, _ = told(published, 500, 503, 200)
    assert len(receiver.got) == 3
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in receiver.got}) == 1
    assert len({body for *_, body in receiver.got}) == 1


@pytest.mark.parametrize(("answer", "tries"), [(404, 1), (400, 1), (307, 1), (500, TRIES)])
def test_a_refusal_is_warned_of_and_stops_nothing(
    told: Any, capsys: pytest.CaptureFixture[str], answer: int, tries: int
) -> None:
    receiver, _ = told(published, answer, timeout_s=20.0, Location="/elsewhere")
    assert len(receiver.got) == tries  # a redirect would carry the address's secret elsewhere
    said = capsys.readouterr().err
    assert f"warning: monitor: webhook was not told: POST {receiver.url}: HTTP {answer}" in said
    assert "SECRETPATH" not in said


def test_a_receiver_that_hangs_costs_the_time_out_and_no_more(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, took = told(published, 3600.0, timeout_s=0.5)
    assert took < 200
    assert "warning: monitor: webhook was not told" in capsys.readouterr().err


def test_bytes_that_drip_cost_the_time_out_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    """A time-out of each wait alone never ends: every byte begins it anew."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        config = WebhookConfig.model_validate({"url": f"http://127.0.0.1:{server.getsockname()[1]}"})
        failed: list[str] = []
        began = time.monotonic()
        within(0.3, [("webhook", lambda left: post(config, {}, timeout_s=left))], lambda name, _: failed.append(name))
        assert time.monotonic() - began < 200
        assert failed == ["webhook"]
        over.set()


@pytest.mark.parametrize("metrics", [{"textfile": "/nowhere/at/all"}, {"pushgateway": "http://127.0.0.1:9"}])
def test_metrics_that_cannot_be_told_are_warned_of(
    metrics: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MonitorConfig.model_validate({"metrics": metrics, "timeout_s": 2})
    with monitored(config, StoreConfig(url=str(tmp_path)), run="n", command="refresh", channel="stable"):
        published()
    assert f"warning: monitor: {next(iter(metrics))} was not told: " in capsys.readouterr().err


def test_a_message_that_cannot_be_made_stops_nothing(
    told: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.monitoring.monitor.message", lambda *_, **__: 1 / 0)
    told(published)
    assert "warning: monitor: monitor was not told: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"webhook": {"url": "http://hooks.example/SECRETPATH"}}, "must be https"),
        ({"webhook": {"url": "https://me:hunter2hunter2@hooks.example"}}, "must not name a user or password"),
        ({"webhook": {"url": "hooks.example"}}, "must be an address such as"),
        ({"metrics": {"pushgateway": "http://gateway.example", "authorization_env": "X"}}, "must be https"),
        ({"metrics": {"textfile": "/x/codebooks.prom"}}, "is the folder"),
        ({"metrics": {"labels": {"stage": "x"}}}, "'stage' is a label that the metrics have themselves"),
        ({"metrics": {"labels": {"Bad-Name": "x"}}}, "'Bad-Name' is no label's name"),
        ({"timeout_s": 600}, "less than or equal to 20"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MonitorConfig.model_validate(section)


def test_the_address_of_a_webhook_is_printed_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night = ["refresh", "--json", f"store={tmp_path}", "catalogue.source=/nowhere.csv", "model.kind=vae"]
    for given in ("http://hooks.example/SECRETPATH", "[https://hooks.example/SECRETPATH"):
        assert main([*night, f"monitor.webhook.url={given}"]) == 2
        out, err = capsys.readouterr()
        assert "SECRETPATH" not in out + err
        assert "monitor.webhook.url" in err
    assert "SECRETPATH" not in repr(
        MonitorConfig.model_validate({"webhook": {"url": "https://hooks.example/SECRETPATH"}})
    )


def test_an_authorization_that_is_not_set_is_warned_of_by_name(
    receiving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with receiving() as receiver:
        config = MonitorConfig.model_validate({"webhook": {"url": receiver.url, "authorization_env": "HOOK_AUTH"}})
        for value_of in (None, "Bearer hunter2hunter2"):
            if value_of:
                monkeypatch.setenv("HOOK_AUTH", value_of)
            with monitored(config, StoreConfig(url=str(tmp_path)), run="n", command="refresh", channel="stable"):
                published()
    assert [headers.get("Authorization") for _, _, headers, _ in receiver.got] == ["Bearer hunter2hunter2"]
    said = capsys.readouterr().err
    assert "the environment variable HOOK_AUTH is not set" in said
    assert "hunter2" not in said


def test_a_message_has_numbers_that_json_knows() -> None:
    state = RunState(NAMED)
    state.note(Examined((GateVerdict("min_recall", float("nan"), None, passed=True),), {}, {}))
    state.end(Ended(0.0, 0, "evaluated", published=False, release=None))
    said = json.dumps(message(state.standing(), store="s3://shop/visual/", links=None), allow_nan=False)
    assert json.loads(said)["gates"][0]["value"] is None


def test_whoever_listens_can_stop_nothing() -> None:
    with listening(lambda _: 1 / 0):
        tell(Finished(None, published=False, reason="done"))


def test_doctor_says_who_could_not_be_told(
    receiving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with receiving(200) as there, receiving(503) as busy:
        hook = f"{there.url}/SECRETPATH"
        well = {"metrics": {"textfile": str(tmp_path), "pushgateway": there.url}, "webhook": {"url": hook}}
        assert [(found.level, found.name) for found in check_told(well)] == [
            ("ok", "textfile"), ("ok", "pushgateway"), ("ok", "webhook"),
        ]  # fmt: skip
        assert [path for _, path, *_ in there.got] == ["/-/ready"]  # a webhook is not called for a look
        ill = {
            "metrics": {"textfile": str(tmp_path / "absent"), "pushgateway": busy.url},
            "webhook": {"url": "https://127.0.0.1:9/SECRETPATH", "authorization_env": None},
        }
        found = {each.name: each for each in check_told(ill)}
        assert {each.level for each in found.values()} == {"warn"}
        assert "HTTP 503" in found["pushgateway"].text
        assert main(["doctor", f"store={tmp_path / 'store'}", f"monitor.webhook.url={hook}"]) == 0
    said = capsys.readouterr().err
    assert "webhook: 127.0.0.1:" in said
    assert "SECRETPATH" not in said + repr(found)
    with pytest.raises(ConfigError, match=r"monitor.webhook.url: .* must be https"):
        list(check_told({"webhook": {"url": "http://hooks.example/SECRETPATH"}}))
    monkeypatch.delenv("HOOK_AUTH", raising=False)
    (absent,) = check_told({"webhook": {"url": hook, "authorization_env": "HOOK_AUTH"}})
    assert "HOOK_AUTH is not set" in absent.text
