"""Secrets in wrong places: refused where they are settings, and printed nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline.errors import Misconfigured
from pipeline.storage import S3Store, StorageOptions, holds_user, masked, names_secret
from pipeline.storage.secrets import masked_for_people, masked_options

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
PLAIN = SECRET.replace("/", "")
NIGHT = ["catalogue.source=/nowhere/catalogue.csv", "model.kind=vae"]
STORE = "store=s3://shop/visual"


@pytest.mark.parametrize(
    "words",
    [
        [STORE, f"store.key={SECRET}"],
        [STORE, f"store.secret_access_key={SECRET}"],
        [STORE, f"catalogue.storage={{key: {SECRET}}}"],
        [STORE, f"store.endpoint=https://me:{SECRET}@host"],
        [STORE, f"store.endpoint=https://me:{PLAIN}@host:9000/"],
        [STORE, f"store.endpoint=https://host/?token={PLAIN}"],
        [STORE, f"catalogue.storage.endpoint=http://:{PLAIN}@host"],
        [f"store=s3://AKIAEXAMPLE:{SECRET}@shop/visual"],
        [f"store=https://me:{PLAIN}@host/x"],
        [STORE, f"store.password={{{PLAIN}"],
        [STORE, f"--store.key={SECRET}"],
        [STORE, f"--secret={PLAIN}"],
        [STORE, f"index.metric=https://me:{PLAIN}@x"],
    ],
    ids=lambda words: words[-1].partition("=")[0] + " " + words[-1][-9:],
)
def test_a_secret_in_a_config_is_refused_without_being_printed(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["refresh", "--json", *NIGHT, *words])
    out, err = capsys.readouterr()
    assert code == 2
    answer = json.loads(out)
    assert answer["exit_code"] == 2
    for text in (out, err):
        assert PLAIN not in text
        assert SECRET not in text
        assert "FEMI" not in text
    assert words[-1].lstrip("-").partition("=")[0].partition(".")[0] in err


@pytest.mark.parametrize("value", [SECRET, f"[{SECRET}", f"{{a: {SECRET}"])
def test_a_secret_in_the_environment_or_a_file_is_not_printed(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODEBOOKS__STORE__SECRET", value)
    assert main(["refresh", *NIGHT, STORE]) == 2
    night = tmp_path / "night.yaml"
    night.write_text(f"store: {{url: 's3://shop/v', aws_secret_access_key: '{SECRET}'}}\n")
    monkeypatch.delenv("CODEBOOKS__STORE__SECRET")
    assert main(["refresh", "--config", str(night), *NIGHT]) == 2
    text = "".join(capsys.readouterr())
    assert "FEMI" not in text
    assert "secrets are never part of a config" in text
    assert "night.yaml line 1" in text


def test_an_endpoint_in_the_environment_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{PLAIN}@127.0.0.1:1")
    with pytest.raises(Misconfigured, match="AWS_ENDPOINT_URL") as caught:
        S3Store("s3://b", StorageOptions(region="eu-west-9")).get("a")
    assert PLAIN not in str(caught.value)


def test_the_last_words_of_a_command_hold_no_value_of_a_secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "short")
    text = masked_for_people(f"botocore said {SECRET} and short, see https://me:pw@host/a?X-Amz-Signature=ff&v=1")
    assert text == "botocore said *** and short, see https://***@host/a?X-Amz-Signature=***&v=1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a@2x.png", "s3://bucket/a@2x.png"),
        ("https://host:8080/a@2x.png", "https://host:8080/a@2x.png"),
        ("https://user@host/a", "https://***@host/a"),
        (f"s3://KEY:{SECRET}@bucket/a", "s3://***@bucket/a"),
        (
            "https://cdn/a?Expires=1&Signature=ab%2F&Key-Pair-Id=K",
            "https://cdn/a?Expires=1&Signature=***&Key-Pair-Id=***",
        ),
        ("https://x.blob/a?sv=1&sig=abc%3D", "https://x.blob/a?sv=1&sig=***"),
        ("https://cdn/a?access_token=abc&width=3", "https://cdn/a?access_token=***&width=3"),
        ("see https://cdn/a?monkey=1", "see https://cdn/a?monkey=1"),
    ],
)
def test_what_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert holds_user(text) == ("***@" in shown)


def test_a_long_word_is_cut_after_its_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    url = f"https://cdn/{'a' * 60}?{'b=1&' * 10}Signature={'c' * 2_000}&id={SECRET}{'d' * 2_000}"
    said = masked_for_people(f"a key {'k' * 2_000_000} and {url} stand")
    assert said.startswith(f"a key {'k' * 100}...(2,000,000 characters) and https://cdn/")
    assert said.endswith(" characters) stand")
    assert len(said) < 500
    assert "ccc" not in said
    assert SECRET not in said
    assert masked_for_people("k" * 999) == "k" * 999


def test_names_of_secrets() -> None:
    secret = ("key", "secret", "secret_access_key", "awsSecretAccessKey", "password", "session_token", "api-key")
    assert all(names_secret(name) for name in secret)
    plain = ("item_id", "monkey", "keyboard", "url", "endpoint", "train.epochs", "max_unreachable", "tokenizer")
    assert not any(names_secret(name) for name in plain)
    assert masked_options("unrecognized arguments: --store.key=abc --epochs=3") == (
        "unrecognized arguments: --store.key=*** --epochs=3"
    )


def test_an_endpoint_without_secrets_stays() -> None:
    assert StorageOptions(endpoint="https://s3.shop.example:9000").endpoint == "https://s3.shop.example:9000"
