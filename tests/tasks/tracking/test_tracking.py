"""Tracking against real MLflow: a local database, a server, a server that is down and one that hangs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from urllib.request import urlopen

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.paths import home
from tasks.tracking import mlflow as tracking
from tasks.tracking.outbox import delivered, destination, exclusive, history, undelivered, without_secrets

ADAPTER = {"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": "weights"}
ROWS = [
    {"prompt": "2 + 2?", "response": "4", "score": 0.5},
    {"prompt": "dénes", "response": "", "score": float("nan")},
]
CHECKOUT = Path(__file__).resolve().parents[3]


@contextmanager
def at_home(folder: Path, uri: str = "") -> Iterator[Path]:
    """Work as a user whose project state lies in ``folder`` and whose tracking server is ``uri``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNFLOW_HOME", str(folder))
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        home.cache_clear()
        yield folder / "outbox"
    home.cache_clear()


def until(true: Callable[[], object]) -> None:
    """Wait until a condition holds; the limit is for a machine that has much else to do."""
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        threading.Event().wait(0.1)


def until_it_answers(server: "subprocess.Popen[bytes]", uri: str, log: Path) -> None:
    """Wait for a server that is starting; what it printed is shown when it ends instead, or never answers."""

    def answers() -> bool:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            with urlopen(f"{uri}/health", timeout=5) as found:
                return bool(found.status == 200)
        except OSError:
            return False

    try:
        until(answers)
    except AssertionError as error:
        raise AssertionError(f"{error}; it printed:\n{log.read_text()}") from None


def start(key: str, **given: object) -> tracking.Recorder:
    stage = key.rpartition("/")[2]
    settings = {"name": stage, "params": {}, "tags": {"stage": stage}, **given}
    return tracking.start(key, **settings)  # type: ignore[arg-type]


def start_without_delivery(key: str, **given: object) -> tracking.Recorder:
    """A stage whose delivery process was killed at once."""
    recorder = start(key, **given)
    assert recorder.delivery
    recorder.delivery.kill()
    recorder.delivery.wait()
    return recorder


def adapter_in(folder: Path) -> Path:
    path = folder / "adapter"
    path.mkdir()
    for name, text in ADAPTER.items():
        (path / name).write_text(text)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runs_named(client: MlflowClient, name: str) -> list[Run]:
    experiment = client.get_experiment_by_name("alignflow")
    return list(client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'"))


def points(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


@dataclass(frozen=True)
class DownedStage:
    """What a stage saw while its server was down; another stage of that server is still running."""

    folder: Path
    uri: str
    call_seconds: float
    finish_seconds: float
    said: str
    running: tracking.Recorder


@pytest.fixture(scope="module")
def downed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DownedStage]:
    folder, uri = tmp_path_factory.mktemp("downed"), f"http://127.0.0.1:{free_port()}"
    with at_home(folder, uri):
        parent = start_without_delivery("flow")
        running = start("still-running")
        begin = time.monotonic()
        recorder = start("downed", parent=parent.folder)
        recorder.log(1, {"loss": 0.5})
        recorder.table("samples", ROWS)
        recorder.adapter(adapter_in(folder), name="downed")
        called = time.monotonic()
        running.log(1, {"loss": 0.25})
        with redirect_stdout(StringIO()) as said:
            recorder.finish("FINISHED", {"loss": 0.5})
        finished = time.monotonic()
    yield DownedStage(folder, uri, called - begin, finished - called, said.getvalue().strip(), running)
    if running.delivery and running.delivery.stdin:
        running.delivery.stdin.close()


@pytest.fixture(scope="module")
def server(downed: DownedStage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server at the address that was down before."""
    folder = tmp_path_factory.mktemp("server")
    database, artifacts = f"sqlite:///{folder}/server.db", f"{folder}/artifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", downed.uri.rpartition(":")[2], "--backend-store-uri", database]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--artifacts-destination", artifacts],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        until_it_answers(process, downed.uri, folder / "log")
        yield downed.uri
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Pipeline:
    client: MlflowClient
    folder: Path
    uri: str


@pytest.fixture(scope="module", params=["local", "server"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A finished flow: dpo ran in it, sft was reused from an earlier plain run; all three tracked at once."""
    folder = tmp_path_factory.mktemp(request.param)
    uri = request.getfixturevalue("server") if request.param == "server" else ""
    with at_home(folder, uri):
        source = start("plain/sft")
        parent = tracking.start_pipeline("flow/1", name="flow", params={"seed": 1}, tags={"git_commit": "abc"})
        dpo = start(
            "flow/1/dpo",
            params={
                "dpo": {"beta": 0.1, "betas": [1, 2], **{f"p{i}": i for i in range(150)}},
                "text": "x" * 9000,
            },
            datasets=[{"name": "pairs", "digest": "d" * 64, "source": "/data/pairs.jsonl"}],
            parent=parent.folder,
        )
        for step in range(1, 601):
            dpo.log(step, {"loss": 1 / step, "kl/reference": float("nan") if step == 3 else 0.1})
        until(lambda: delivered(dpo.folder).last_step == 600)
        dpo.table("samples", ROWS)
        dpo.adapter(adapter_in(folder), name="alignflow-dpo")
        dpo.artifact(folder / "adapter" / "adapter_config.json")
        source.tag({"dvc.out.artifacts/sft": "md5-of-sft"})
        source.finish("FINISHED", {"loss": 2.0})
        dpo.finish("FINISHED", {"train_seconds": 3.0, "loss": 1 / 600})
        tracking.link_ran(parent.folder, "dpo", {"artifacts/dpo": "md5-of-dpo"})
        tracking.link_reused(parent.folder, "sft", {"loss": 2.0}, {"artifacts/sft": "md5-of-sft"})
        tracking.link_reused(parent.folder, "dpo", {}, {"artifacts/dpo": "md5-of-dpo"})
        parent.finish("FINISHED", {})
    tracking_uri = uri or f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(tracking_uri)
    return Pipeline(MlflowClient(tracking_uri), folder, tracking_uri)


def test_a_flow_leaves_nothing_undelivered(pipeline: Pipeline) -> None:
    assert tracking.pending(pipeline.folder / "outbox") == []


def test_every_point_of_a_metric_arrives_with_its_step(pipeline: Pipeline) -> None:
    (run,) = runs_named(pipeline.client, "dpo")
    assert points(pipeline.client, run, "loss") == [(step, 1 / step) for step in range(1, 601)]
    assert run.data.metrics["train_seconds"] == 3.0


def test_nested_params_arrive_dotted_and_long_ones_cut(pipeline: Pipeline) -> None:
    (run,) = runs_named(pipeline.client, "dpo")
    assert run.data.params["dpo.beta"] == "0.1"
    assert run.data.params["dpo.betas"] == "[1, 2]"
    assert run.data.params["dpo.p149"] == "149"
    assert run.data.params["text"] == "x" * 6000


def test_a_dataset_is_an_input_of_its_run(pipeline: Pipeline) -> None:
    (run,) = runs_named(pipeline.client, "dpo")
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("pairs", "d" * 36)
    assert json.loads(given.dataset.source) == {"uri": "/data/pairs.jsonl"}


def test_stages_are_children_of_the_flow_and_a_plain_run_is_not(pipeline: Pipeline) -> None:
    (parent,) = runs_named(pipeline.client, "flow")
    (child,) = runs_named(pipeline.client, "dpo")
    (plain,) = runs_named(pipeline.client, "sft")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in plain.data.tags
    assert {run.info.status for run in (parent, child, plain)} == {"FINISHED"}


def test_a_reused_stage_names_the_run_that_made_its_output(pipeline: Pipeline) -> None:
    (parent,) = runs_named(pipeline.client, "flow")
    (reused,) = runs_named(pipeline.client, "sft (reused)")
    (source,) = runs_named(pipeline.client, "sft")
    assert reused.data.tags["source_run"] == source.info.run_id
    assert reused.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert reused.data.metrics == {"loss": 2.0}


def test_a_stage_that_ran_is_tagged_with_its_outputs_and_not_listed_as_reused(pipeline: Pipeline) -> None:
    (run,) = runs_named(pipeline.client, "dpo")
    assert run.data.tags["dvc.out.artifacts/dpo"] == "md5-of-dpo"
    assert runs_named(pipeline.client, "dpo (reused)") == []


def test_a_table_reads_back_as_mlflow_tables_do(pipeline: Pipeline) -> None:
    (run,) = runs_named(pipeline.client, "dpo")
    table = pipeline.client.load_table(run.info.experiment_id, "samples.json", [run.info.run_id])
    assert list(table.columns) == ["prompt", "response", "score"]
    assert table["prompt"].tolist() == ["2 + 2?", "dénes"]
    assert table["score"].isna().tolist() == [False, True]


def test_an_adapter_downloads_from_the_registry_unchanged(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/alignflow-dpo/1", dst_path=str(tmp_path)))
    assert {name: (folder / name).read_text() for name in ADAPTER} == ADAPTER


def test_the_model_lists_its_version_and_carries_the_last_metrics_of_its_run(pipeline: Pipeline) -> None:
    (run,) = runs_named(pipeline.client, "dpo")
    (output,) = run.outputs.model_outputs
    model = pipeline.client.get_logged_model(output.model_id)
    assert str(model.status) == "READY"
    (version,) = json.loads(model.tags["mlflow.modelVersions"])
    assert (version["name"], int(version["version"])) == ("alignflow-dpo", 1)
    assert {metric.key: metric.value for metric in model.metrics}["loss"] == 1 / 600
    assert {metric.key: metric.value for metric in model.metrics}["train_seconds"] == 3.0


def test_artifacts_of_the_local_database_lie_under_home(pipeline: Pipeline) -> None:
    if pipeline.uri.startswith("http"):
        pytest.skip("a server keeps its own artifacts")
    (run,) = runs_named(pipeline.client, "dpo")
    stored = pipeline.folder / "mlartifacts" / run.info.run_id / "artifacts"
    assert {file.name for file in stored.iterdir()} == {"samples.json", "adapter_config.json"}


def test_delivering_everything_again_duplicates_nothing(pipeline: Pipeline) -> None:
    def metrics() -> str:  # as text: NaN is not equal to itself
        names = ("flow", "dpo", "sft", "sft (reused)")
        return str([run.data.metrics for name in names for run in runs_named(pipeline.client, name)])

    before = metrics()
    for state in pipeline.folder.glob("outbox/*/delivered.json"):
        state.unlink()
    assert len(tracking.pending(pipeline.folder / "outbox")) == 4
    with at_home(pipeline.folder):
        assert tracking.deliver(pipeline.folder / "outbox") == []
    (run,) = runs_named(pipeline.client, "dpo")
    assert metrics() == before
    assert len(points(pipeline.client, run, "loss")) == 600
    assert len(pipeline.client.search_model_versions("name = 'alignflow-dpo'")) == 1
    assert len(run.outputs.model_outputs) == 1


def test_calls_return_at_once_while_the_server_is_down(downed: DownedStage) -> None:
    assert downed.call_seconds < 1


def test_finish_gives_up_on_a_dead_server_in_time_and_says_what_is_left(downed: DownedStage) -> None:
    assert downed.finish_seconds < 12
    assert downed.said.startswith("[downed] ")
    assert downed.said.count("\n") == 0
    for words in (downed.uri, "2 lines of metrics", "1 table, 1 adapter", "refused", "`alignflow deliver`"):
        assert words in downed.said


def test_a_server_that_comes_up_later_receives_all_that_was_kept(downed: DownedStage, server: str) -> None:
    with at_home(downed.folder, ""):  # the record knows where it was meant to go
        assert tracking.deliver(downed.folder / "outbox") == []
    client = MlflowClient(server)
    (run,) = runs_named(client, "downed")
    (parent,) = [run for run in runs_named(client, "flow") if run.info.status == "RUNNING"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert points(client, run, "loss") == [(1, 0.5)]
    assert len(client.search_model_versions("name = 'downed'")) == 1


def test_a_running_stage_catches_up_by_itself_when_its_server_returns(downed: DownedStage, server: str) -> None:
    downed.running.log(2, {"loss": 0.125})
    until(lambda: not undelivered(downed.running.folder))
    (run,) = runs_named(MlflowClient(server), "still-running")
    assert points(MlflowClient(server), run, "loss") == [(1, 0.25), (2, 0.125)]


def test_a_hung_server_holds_a_stage_no_longer_than_the_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # accepts and never answers
        with at_home(tmp_path, f"http://user:secret@127.0.0.1:{deaf.getsockname()[1]}"):
            recorder = start("hung")
            recorder.log(1, {"loss": 0.5})
            begin = time.monotonic()
            recorder.finish("FINISHED", {})
            assert time.monotonic() - begin < 12
        assert recorder.delivery
        recorder.delivery.kill()
        recorder.delivery.wait()
    said = capsys.readouterr().out
    assert "no answer" in said
    assert "secret" not in said
    assert [line["metrics"] for line in history(recorder.folder)] == [{"loss": 0.5}]


@pytest.fixture(scope="module")
def local_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def local(local_home: Path) -> Iterator[Path]:
    """The outbox of a home with a local database."""
    with at_home(local_home) as outbox:
        yield outbox


STAGE_TO_KILL = """
import sys
from tasks.tracking import mlflow as tracking
recorder = tracking.start("killed", name="killed", params={}, tags={})
for step in range(1, 11):
    recorder.log(step, {"loss": float(step)})
sys.stdin.readline()
for step in range(11, 21):
    recorder.log(step, {"loss": float(step)})
print("logged", flush=True)
sys.stdin.readline()
"""


def test_metrics_arrive_live_survive_a_kill_and_continue_in_the_same_run(local: Path) -> None:
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE_TO_KILL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT
    )
    assert stage.stdin
    assert stage.stdout
    until(lambda: delivered(local / "killed").last_step == 10)  # the stage still runs
    stage.stdin.write(b"go on\n")
    stage.stdin.flush()
    assert stage.stdout.readline() == b"logged\n"
    stage.kill()
    stage.communicate()
    until(lambda: delivered(local / "killed").last_step == 20)
    client = client_of(local)
    (run,) = runs_named(client, "killed")
    assert run.info.status == "RUNNING"
    assert points(client, run, "loss") == [(step, float(step)) for step in range(1, 21)]

    resumed = start("killed")
    for step in range(16, 31):  # from the checkpoint: the same again, but for step 20
        resumed.log(step, {"loss": 0.5 if step == 20 else float(step)})
    resumed.finish("FINISHED", {"loss": 30.0})
    until(lambda: not undelivered(resumed.folder))  # on a busy machine after finish has given up waiting
    (same,) = runs_named(client, "killed")
    assert (same.info.run_id, same.info.status) == (run.info.run_id, "FINISHED")
    expected = [(step, float(step)) for step in range(1, 31)]
    assert points(client, same, "loss") == sorted([*expected, (20, 0.5)])


def client_of(outbox: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{outbox.parent}/mlflow.db")


def test_a_later_line_of_a_step_wins(local: Path) -> None:
    recorder = start_without_delivery("repeats")
    for value in (1.0, 2.0):
        recorder.log(7, {"loss": value})
    assert tracking.deliver(local) == []
    (run,) = runs_named(client_of(local), "repeats")
    assert points(client_of(local), run, "loss") == [(7, 2.0)]


def test_a_line_that_a_kill_cut_in_half_is_dropped_and_the_next_stands(local: Path) -> None:
    recorder = start_without_delivery("cut")
    recorder.log(1, {"loss": 1.0})
    with (recorder.folder / "history.jsonl").open("a") as file:
        file.write('{"time": 17, "st')
    start_without_delivery("cut").log(2, {"loss": 2.0})
    assert tracking.deliver(local) == []
    (run,) = runs_named(client_of(local), "cut")
    assert points(client_of(local), run, "loss") == [(1, 1.0), (2, 2.0)]


def test_two_deliveries_at_once_make_one_run(local: Path) -> None:
    recorder = start_without_delivery("contested")
    recorder.log(1, {"loss": 1.0})
    both = [threading.Thread(target=tracking.deliver, args=[local]) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    (run,) = runs_named(client_of(local), "contested")
    assert points(client_of(local), run, "loss") == [(1, 1.0)]


def test_a_delivery_lock_is_held_once(local: Path) -> None:
    folder = start_without_delivery("locked").folder
    with exclusive(folder, 0), pytest.raises(BlockingIOError, match="another process"), exclusive(folder, 0):
        pass
    assert tracking.deliver(local) == []


def test_what_mlflow_refuses_holds_back_nothing_else(local: Path) -> None:
    refused = [{"name": "n" * 501, "digest": "d", "source": "s"}]
    recorder = start_without_delivery("refused", datasets=refused)
    recorder.tag({"note": "kept"})
    recorder.finish("FAILED", {})
    (line,) = tracking.deliver(local)
    (run,) = runs_named(client_of(local), "refused")
    assert run.info.status == "FAILED"
    assert run.data.tags["note"] == "kept"
    assert "1 start" in line
    shutil.rmtree(recorder.folder)


def test_a_second_adapter_becomes_the_next_version_and_the_same_one_does_not(local: Path, tmp_path: Path) -> None:
    recorder = start_without_delivery("versions")
    path = adapter_in(tmp_path)
    recorder.adapter(path, name="versions")
    recorder.adapter(path, name="versions")
    (path / "adapter_model.safetensors").write_text("other weights")
    recorder.adapter(path, name="versions")
    assert tracking.deliver(local) == []
    versions = client_of(local).search_model_versions("name = 'versions'")
    assert sorted(int(version.version) for version in versions) == [1, 2]


def test_settings_of_the_delivery_do_not_leak_into_its_caller(local: Path) -> None:
    start_without_delivery("environment")
    before = dict(os.environ)
    assert tracking.deliver(local) == []
    assert dict(os.environ) == before


def test_a_stage_that_tracks_does_not_import_mlflow() -> None:
    code = "import sys; from tasks.tracking import mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False).returncode == 0


def test_a_relative_database_lies_beside_home_whatever_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worktree").mkdir()
    monkeypatch.chdir(tmp_path / "worktree")
    with at_home(tmp_path / "checkout" / ".alignflow", "sqlite:///runs.db"):
        assert destination() == f"sqlite:///{tmp_path}/checkout/runs.db"


def test_user_and_password_of_the_server_are_used_and_stored_nowhere(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_home(tmp_path, server.replace("://", "://planted:pass@")) as outbox:
        recorder = start("a-stage")
        recorder.log(1, {"loss": 0.5})
        recorder.finish("FINISHED", {})
        until(lambda: not undelivered(recorder.folder))
        assert delivered(recorder.folder).uri == server
        left = [path for path in outbox.rglob("*") if path.is_file()]
        assert recorder.folder / "journal.jsonl" in left
        assert [path for path in left if b"planted" in path.read_bytes() or b"pass@" in path.read_bytes()] == []
        assert [path for path in left if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://u:p@host:5000/mlflow", "http://host:5000/mlflow"),
        ("http://u:p/w@x@host", "http://host"),
        ("postgresql://host/db?user=u&password=p", "postgresql://host/db"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_loses_everything_that_may_be_secret(uri: str, expected: str) -> None:
    assert without_secrets(uri) == expected


class Guarded(BaseHTTPRequestHandler):
    """A proxy before the server, which knows no user."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_wrong_password_is_one_line_with_the_names_of_the_settings(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as guard:
        threading.Thread(target=guard.serve_forever, daemon=True).start()
        expected = "user name or password is wrong; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        with at_home(tmp_path, f"http://u:wrong@127.0.0.1:{guard.server_port}") as outbox:
            recorder = start_without_delivery("a-stage")
            (said,) = tracking.deliver(outbox)
            assert f"to http://127.0.0.1:{guard.server_port} ({expected})" in said
            assert tracking.unreachable(destination()) == expected
            recorder.log(1, {"loss": 0.5})
        guard.shutdown()
